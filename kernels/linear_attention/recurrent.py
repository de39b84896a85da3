"""The paper's robust inference (arXiv 2307.14995, alg. 4): one step at a time, λ never inverted."""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.linear_attention.reference import state_dtype


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """S_t = λ S_{t-1} + k_t v_tᵀ;  o_t = q_t S_t. Shapes as in `linear_attention`; constant state."""
    batch, time, heads, dk = q.shape
    wide = state_dtype(q.dtype)
    state = (
        torch.zeros(batch, heads, dk, v.shape[-1], dtype=wide, device=q.device)
        if initial_state is None
        else initial_state.to(wide)
    )
    factor = None if log_decay is None else log_decay.to(wide).exp().view(heads, 1, 1)
    outputs = []
    for t in range(time):
        update = k[:, t, :, :, None].to(wide) @ v[:, t, :, None, :].to(wide)
        state = update + (state if factor is None else factor * state)
        outputs.append((q[:, t, :, None, :].to(wide) @ state).squeeze(-2))
    out = torch.stack(outputs, dim=1)
    if scale != 1.0:
        out = out * scale
    return out.to(v.dtype), state if output_state else None
