"""The paper's original inference (arXiv 2307.14995, alg. 3), kept to show why it was replaced.

It stores Σ_j λ^(-j) k_j v_jᵀ, whose terms grow without bound: λ^(-t) leaves the range of fp32 and bf16 after
about 88.7 / s steps, and that of fp16 after 11.1 / s, for a head of slope s = -log λ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.linear_attention.reference import state_dtype


def original(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """kv_t = kv_{t-1} + λ^(-t) k_t v_tᵀ;  o_t = λ^t q_t kv_t, all of it in the inputs' dtype.

    Shapes as in `linear_attention`. The state that it returns is the robust one, λ^t kv_t, so that segments
    fit together with those of the other implementations.
    """
    batch, time, heads, dk = q.shape
    kv = torch.zeros(batch, heads, dk, v.shape[-1], dtype=q.dtype, device=q.device)
    if initial_state is not None:
        kv = kv + initial_state.to(q.dtype)
    rate = torch.zeros(heads, device=q.device) if log_decay is None else log_decay
    outputs = []
    shrink = torch.ones(heads, 1, dtype=q.dtype, device=q.device)
    for t in range(1, time + 1):
        shrink = (rate * t).exp().to(q.dtype).view(heads, 1)
        grow = (-rate * t).exp().to(q.dtype).view(heads, 1)
        kv = kv + (k[:, t - 1] * grow)[..., :, None] * v[:, t - 1].to(q.dtype)[..., None, :]
        outputs.append(((q[:, t - 1] * shrink)[..., None, :] @ kv).squeeze(-2))
    out = torch.stack(outputs, dim=1)
    if scale != 1.0:
        out = out * scale
    wide = state_dtype(q.dtype)
    return out.to(v.dtype), (shrink[..., None] * kv).to(wide) if output_state else None
