"""Norms over the last dimension, with what stands beside them in the model: the residual and the gate.

    norm      y = x̂ ⊙ w + b, or (x̂ ⊙ w + b) ⊙ a(u) with a gate u;  x̂ = (x − m) / sqrt(mean((x − m)²) + eps)
    add_norm  r' = x + r, y = norm(r')

SRMSNorm (arXiv 2307.14995, eq. 8) has m = 0 and neither w nor b; RMSNorm (arXiv 1910.07467) has w; LayerNorm
(arXiv 1607.06450) subtracts the mean m of the row and has w and b. All sums run in fp32 or better.

| name | file | what for |
|---|---|---|
| `reference` | reference.py | the definition; any device |
| `triton` | triton_op.py | one read and one write of each tensor, forward and backward |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tnbench.kernels import devices
from tnbench.kernels.normalisation import reference
from tnbench.kernels.normalisation.reference import ACTIVATIONS

IMPLEMENTATIONS = ("reference", "triton")

__all__ = ["ACTIVATIONS", "IMPLEMENTATIONS", "add_norm", "norm", "takes_kernels"]


def takes_kernels(x: Tensor) -> bool:
    """Whether `auto` computes on x with the Triton kernels; where it does not, that is said once."""
    reason = devices.obstacle(x)
    if reason is not None:
        devices.fall_back("norm", "reference", reason)
    return reason is None


def _form(implementation: str, x: Tensor) -> Any:
    """The module that computes."""
    if implementation == "auto":
        implementation = "triton" if takes_kernels(x) else "reference"
    elif implementation == "triton":
        reason = devices.obstacle(x)
        if reason is not None:
            raise ValueError(f"implementation triton: {reason}; take auto or reference")
    if implementation == "reference":
        return reference
    if implementation != "triton":
        raise ValueError(f"implementation {implementation!r}: known are auto, {', '.join(IMPLEMENTATIONS)}")
    from tnbench.kernels.normalisation import triton_op

    return triton_op


def _check(x: Tensor, other: Tensor | None, name: str, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (…, width) with at least one column, got {tuple(x.shape)}")
    if other is not None and other.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {tuple(x.shape)}, got {tuple(other.shape)}")
    for label, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(f"{label} must be ({x.shape[-1]},), got {tuple(parameter.shape)}")
    devices.together(x, **{name: other}, weight=weight, bias=bias)


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
    implementation: str = "auto",
) -> Tensor:
    """Norm of the last dimension, times a gate if there is one. Differentiable, once, in all tensors.

    Args:
        x: (…, width), of any strides.
        gate: u, of x's shape, or None.
        weight, bias: (width,), or None.
        activation: a(u) of the gate: `none`, `swish` or `sigmoid`.
        centred: subtract the row's mean, as LayerNorm does.
        eps: added to the mean square.
        dtype: of the result; by default x's, promoted with the gate's.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`: `triton` where the kernels can run, else
            `reference`, which is said once.

    Returns:
        y of x's shape.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown activation or implementation, `triton` where
            it cannot run.
    """
    _check(x, gate, "gate", weight, bias)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: known are {', '.join(ACTIVATIONS)}")
    form = _form(implementation, x)
    return form.norm(
        x, gate=gate, weight=weight, bias=bias, activation=activation, centred=centred, eps=eps, dtype=dtype
    )


def add_norm(
    x: Tensor,
    residual: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    centred: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """r' = x + r in their common dtype, and y = norm(r') in that dtype or `dtype`.

    Args and errors as in `norm`; `residual` is r, of x's shape.

    Returns:
        (y, r').
    """
    _check(x, residual, "residual", weight, bias)
    form = _form(implementation, x)
    return form.add_norm(x, residual, weight=weight, bias=bias, centred=centred, eps=eps, dtype=dtype)
