"""The definition of decayed causal linear attention: the left product (Q Kᵀ ⊙ M) V, quadratic in time."""

from __future__ import annotations

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States are kept in fp32, and in fp64 for fp64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def powers(log_decay: Tensor | None, exponents: Tensor, heads: int) -> Tensor:
    """λ^exponent per head, in fp32 or better: (heads, *exponents.shape). λ = 1 without a log decay."""
    if log_decay is None:
        return torch.ones((heads, *exponents.shape), device=exponents.device)
    wide = log_decay if log_decay.dtype == torch.float64 else log_decay.float()
    return torch.exp(wide.view(heads, *[1] * exponents.ndim) * exponents)


def causal_mask(log_decay: Tensor | None, time: int, heads: int, device: torch.device) -> Tensor:
    """M of the paper's eq. 2: λ^(i-j) for j <= i, else 0, as (heads, time, time)."""
    steps = torch.arange(time, device=device)
    distance = steps[:, None] - steps[None, :]
    return powers(log_decay, distance.clamp(min=0), heads) * (distance >= 0)


def quadratic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(Q Kᵀ ⊙ M) V. Shapes as in `linear_attention`; cost and memory grow with the square of the time."""
    _, time, heads, _ = q.shape
    steps = torch.arange(time, device=q.device)
    qh, kh, vh = (x.transpose(1, 2) for x in (q, k, v))
    mask = causal_mask(log_decay, time, heads, q.device).to(q.dtype)
    out = ((qh @ kh.transpose(-1, -2)) * mask).to(vh.dtype) @ vh
    if initial_state is not None:
        reach = powers(log_decay, steps + 1, heads)[..., None].to(q.dtype)
        out = out + ((qh * reach) @ initial_state.to(q.dtype)).to(out.dtype)
    state = None
    if output_state:
        wide = state_dtype(q.dtype)
        left = powers(log_decay, time - 1 - steps, heads)[..., None].to(wide)
        state = (kh.to(wide) * left).transpose(-1, -2) @ vh.to(wide)
        if initial_state is not None:
            whole = torch.full((1, 1), time, device=q.device)
            state = state + powers(log_decay, whole, heads).to(wide) * initial_state
    out = out.transpose(1, 2).to(v.dtype)
    return (out if scale == 1.0 else out * scale), state
