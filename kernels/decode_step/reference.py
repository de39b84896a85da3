"""The definition of the decode step, in plain torch: fp32 throughout, fp64 for fp64 inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tnbench.kernels.linear_attention.reference import state_dtype

FEATURE_MAPS = {
    "none": lambda x: x,
    "swish": F.silu,
    "1+elu": lambda x: F.elu(x) + 1,
    "elu": F.elu,
    "relu": F.relu,
    "squared-relu": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, dim=-1),
}
"""φ by its name in the registry (tnbench/model/feature_maps.py)."""


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    scale: float,
    feature_map: str,
    theta: Tensor | None,
    position: Tensor | None,
    form: str,
) -> Tensor:
    """Shapes as in `tnbench.kernels.decode_step.decode_step`."""
    wide = state_dtype(q.dtype)
    q, k = (FEATURE_MAPS[feature_map](x.to(wide)) for x in (q, k))
    if theta is not None and position is not None:
        phase = position.to(wide).view(-1, 1, 1) * theta.to(wide)
        q, k = (_turned(x, phase.cos(), phase.sin(), form) for x in (q, k))
    if log_decay is not None:
        state.mul_(log_decay.to(wide).exp().view(-1, 1, 1))
    state.add_(k[..., :, None] * v.to(wide)[..., None, :])
    return (scale * (q[..., None, :] @ state).squeeze(-2)).to(v.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, form: str) -> Tensor:
    if form == "cosine":
        return torch.cat([x * cos, x * sin], dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
