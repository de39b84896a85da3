"""Gated linear attention between its two projections, as one operator: φ, linear attention, norm, gate.

With the projection split into Q, K, V and U of `width` channels each, and φ applied to each channel,

    O = scale · (φ(Q) φ(K)ᵀ ⊙ M) V        Y = Norm(O) ⊙ a(U)        (arXiv 2307.14995, eq. 3)

As one operator it keeps for its backward pass the projection and O alone, φ(Q) and φ(K) are computed again,
and its gradient is written into one tensor that the projection's backward multiplies as it is. As single
operators they keep φ(Q) and φ(K) too, and four gradients are copied into one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tnbench.kernels import devices
from tnbench.kernels.layout import STEP, WIDEST

MAPS = ("none", "swish", "1+elu", "elu", "relu", "squared-relu", "sigmoid")
"""Feature maps φ that the operator computes: those that take each channel alone."""


class Norm(NamedTuple):
    """The norm of O, as `tnbench.kernels.normalisation.norm` takes it; over `width` or over one head."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    centred: bool = False
    eps: float = 1e-6


PLAIN = Norm()
"""SRMSNorm."""


def obstacle(projected: Tensor, heads: int) -> str | None:
    """Why the kernels cannot take this projection (batch, time, 4 · width), or None if they can."""
    dim = projected.shape[-1] // 4 // heads
    if dim > WIDEST:
        return f"the kernels take head dims up to {WIDEST}, these are {dim}"
    if dim * projected.element_size() % STEP:
        return f"the kernels take rows of whole steps of {STEP} bytes, head dim {dim} has none"
    if not projected.numel():
        return "there is nothing to launch"
    return devices.obstacle(projected)


def gated_linear_attention(
    projected: Tensor,
    log_decay: Tensor | None,
    *,
    heads: int,
    feature_map: str = "swish",
    scale: float = 1.0,
    norm: Norm = PLAIN,
    per_head: bool = False,
    activation: str = "none",
) -> Tensor:
    """Y of the equations above, from an empty state; on a GPU, for gradients of first order.

    Args:
        projected: (batch, time, 4 · width): Q, K, V and U side by side, heads contiguous in each.
        log_decay: (heads,), the logarithm of λ, at most 0; None for λ = 1. Differentiable.
        heads: a divisor of width.
        feature_map: φ, of `MAPS`.
        scale: factor on O.
        norm: its weight and bias have as many values as it normalises.
        per_head: whether each head is normalised alone.
        activation: a, as `tnbench.kernels.normalisation.norm` names it.

    Returns:
        (batch, time, width) in projected's dtype.

    Raises:
        ValueError: an unknown feature map, shapes that do not fit, or `obstacle` has a reason.
    """
    if feature_map not in MAPS:
        raise ValueError(f"feature_map {feature_map!r}: known are {', '.join(MAPS)}")
    if projected.ndim != 3 or projected.shape[-1] % (4 * heads):
        raise ValueError(
            f"projected must be (batch, time, 4 · width) with a width that {heads} heads divide, got "
            f"{tuple(projected.shape)}"
        )
    if log_decay is not None and log_decay.shape != (heads,):
        raise ValueError(f"log_decay must be ({heads},), got {tuple(log_decay.shape)}")
    reason = obstacle(projected, heads)
    if reason is not None:
        raise ValueError(f"gated_linear_attention: {reason}; apply its parts one by one")
    devices.together(projected, log_decay=log_decay, weight=norm.weight, bias=norm.bias)
    if log_decay is not None and (log_decay.dtype != torch.float32 or not log_decay.is_contiguous()):
        log_decay = log_decay.float().contiguous()
    from tnbench.kernels.gated_linear_attention.triton_op import mix

    return mix(
        projected.contiguous(), log_decay, norm.weight, norm.bias, heads, feature_map, float(scale),
        norm.centred, norm.eps, per_head, activation,
    )  # fmt: skip
