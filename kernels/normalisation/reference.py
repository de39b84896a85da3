"""The definition of the norms, with their gate and residual, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = {"none": lambda u: u, "swish": lambda u: u * torch.sigmoid(u), "sigmoid": torch.sigmoid}


def wide(x: Tensor) -> Tensor:
    """Sums run in fp32, and in fp64 for fp64 inputs."""
    return x if x.dtype == torch.float64 else x.float()


def norm(
    x: Tensor,
    *,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    centred: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y = ((x − m) / sqrt(mean((x − m)²) + eps) ⊙ w + b) ⊙ a(u), rounded once, at the end.

    m is the mean of the row if `centred` (LayerNorm), else 0 (RMSNorm; SRMSNorm without w and b).
    Shapes and errors as in `tnbench.kernels.normalisation.norm`.
    """
    values = wide(x)
    if centred:
        values = values - values.mean(-1, keepdim=True)
    values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        values = values * weight
    if bias is not None:
        values = values + bias
    result = x.dtype
    if gate is not None:
        values = values * ACTIVATIONS[activation](wide(gate))
        result = torch.promote_types(x.dtype, gate.dtype)
    return values.to(dtype or result)


def add_norm(
    x: Tensor,
    residual: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    centred: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """r' = x + r, rounded to its dtype, and y = norm(r'): (y, r')."""
    total = x + residual
    return norm(total, weight=weight, bias=bias, centred=centred, eps=eps, dtype=dtype), total
