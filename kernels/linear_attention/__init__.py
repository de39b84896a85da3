"""Decayed causal linear attention: one operator, several implementations that agree.

    o_i = scale · ( Σ_{j<=i} λ^(i-j) (q_i · k_j) v_j  +  λ^(i+1) q_i S_0 ),      λ = exp(log_decay), per head

(arXiv 2307.14995, eq. 2 to 4; S_0 is the state that an earlier segment left behind). The final state is
S_t = λ^t S_0 + Σ_j λ^(t-1-j) k_j v_jᵀ, so that a sequence may be computed segment by segment.

| name | file | cost in the length t | what for |
|---|---|---|---|
| `quadratic` | reference.py | t² | the definition |
| `chunked` | chunked.py | t | training and prefill in plain torch |
| `recurrent` | recurrent.py | t, one step at a time | the paper's robust inference |
| `original` | original.py | t, one step at a time | the paper's first inference form, which overflows |
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tnbench.kernels.linear_attention.chunked import chunked
from tnbench.kernels.linear_attention.original import original
from tnbench.kernels.linear_attention.recurrent import recurrent
from tnbench.kernels.linear_attention.reference import quadratic

IMPLEMENTATIONS = {
    "quadratic": quadratic,
    "chunked": chunked,
    "recurrent": recurrent,
    "original": original,
}

# Up to this length one masked product is faster than chunks and their states (measured on CPU).
SHORT = 128

__all__ = ["IMPLEMENTATIONS", "chunked", "linear_attention", "original", "quadratic", "recurrent"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal linear attention with one decay per head.

    Args:
        q, k: (batch, time, heads, key dim).
        v: (batch, time, heads, value dim).
        log_decay: (heads,), the logarithm of λ, at most 0; None for λ = 1. Differentiable.
        scale: factor on the output.
        initial_state: (batch, heads, key dim, value dim), fp32 (fp64 for fp64 inputs).
        output_state: whether to return the final state.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`.

    Autocast has no effect in here: matrix products are computed in the inputs' dtype (v's, under autocast).

    Returns:
        The output (batch, time, heads, value dim) in v's dtype, and the final state, or None.

    Raises:
        ValueError: shapes that do not fit, or an unknown implementation.
    """
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or q.ndim != 4:
        raise ValueError(
            "q and k must be (batch, time, heads, key dim) and v (batch, time, heads, value dim), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[1] == 0:
        raise ValueError("q, k and v hold no time step")
    expected = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise ValueError(f"initial_state must be {expected}, got {tuple(initial_state.shape)}")
    if log_decay is not None and log_decay.shape != (q.shape[2],):
        raise ValueError(f"log_decay must be ({q.shape[2]},), got {tuple(log_decay.shape)}")
    if implementation == "auto":
        time = q.shape[1]
        implementation = "recurrent" if time == 1 else "quadratic" if time <= SHORT else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r}: known are auto, {', '.join(IMPLEMENTATIONS)}")
    compute = partial(IMPLEMENTATIONS[implementation], scale=scale, output_state=output_state)
    device = q.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return compute(q, k, v, log_decay, initial_state=initial_state)
    # Autocast would round states and decays, which are summed in fp32, to its own dtype.
    with torch.autocast(device, enabled=False):
        return compute(q.to(v.dtype), k.to(v.dtype), v, log_decay, initial_state=initial_state)
