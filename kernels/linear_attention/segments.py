"""The two quantities that devices exchange when a sequence is spread over them.

A device that holds one segment of t tokens needs the state before it to compute its outputs
(`triton_linear_attention` with `initial_state`), and the gradient of the state after it to compute its
gradients (the gradient of the final state that the same function returns). What it has to offer to the
others does not depend on what they send:

    S_after  = λ^t S_before + segment_state(k, v)
    R_before = λ^t R_after  + segment_state_gradient(q, do)
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.devices import on, together
from tnbench.kernels.layout import aligned, widened
from tnbench.kernels.linear_attention.triton_op import planned


@torch.no_grad()
def segment_state(
    k: Tensor, v: Tensor, log_decay: Tensor | None, *, cu_seqlens: Tensor | None = None, precise: bool = False
) -> Tensor:
    """Σ_j λ^(t-1-j) k_j v_jᵀ of keys (b, t, h, dk) and values (b, t, h, dv): (sequences, h, dk, dv) fp32."""
    return _state(k, v, log_decay, 1.0, cu_seqlens, precise, reverse=False)


@torch.no_grad()
def segment_state_gradient(
    q: Tensor, do: Tensor, log_decay: Tensor | None, *, scale: float = 1.0, cu_seqlens: Tensor | None = None,
    precise: bool = False,
) -> Tensor:  # fmt: skip
    """scale Σ_j λ^(j+1) q_j do_jᵀ: what the outputs of a segment add to the gradient of the state before
    it."""
    return _state(q, do, log_decay, scale, cu_seqlens, precise, reverse=True)


def _state(
    b: Tensor, c: Tensor, log_decay: Tensor | None, scale: float, cu_seqlens: Tensor | None, precise: bool,
    reverse: bool
) -> Tensor:  # fmt: skip
    together(b, values=c, log_decay=log_decay, cu_seqlens=cu_seqlens)
    keys, values = b.shape[-1], c.shape[-1]
    b, c = aligned(widened(b)), aligned(widened(c))
    if log_decay is not None:
        log_decay = log_decay.float().contiguous()
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.contiguous()
    p = planned(b, b, c, cu_seqlens, precise, False)
    with on(b):
        ends = p.run_spans(b, c, log_decay, cu_seqlens, float(scale), reverse)
        final = p.states(b, p.sequences)
        p.run_states(b, c, log_decay, cu_seqlens, None, ends, final, None, float(scale), reverse)
    return final[..., :keys, :values]
