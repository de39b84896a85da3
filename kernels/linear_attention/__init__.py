"""Decayed causal linear attention: one operator, several implementations that agree.

    o_i = scale · ( Σ_{j<=i} λ^(i-j) (q_i · k_j) v_j  +  λ^(i+1) q_i S_0 ),      λ = exp(log_decay), per head

(arXiv 2307.14995, eq. 2 to 4; S_0 is the state that an earlier segment left behind). The final state is
S_t = λ^t S_0 + Σ_j λ^(t-1-j) k_j v_jᵀ, so that a sequence may be computed segment by segment.

| name | file | cost in the length t | what for |
|---|---|---|---|
| `triton` | triton_op.py | t | training and prefill on an NVIDIA GPU |
| `quadratic` | reference.py | t² | the definition |
| `chunked` | chunked.py | t | training and prefill in plain torch |
| `recurrent` | recurrent.py | t, one step at a time | the paper's robust inference |
| `original` | original.py | t, one step at a time | the paper's first inference form, which overflows |
| `lightning1` | lightning1.py | t² | the paper's Lightning Attention, in tiles, on an NVIDIA GPU |
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tnbench.kernels import devices
from tnbench.kernels.layout import WIDEST
from tnbench.kernels.linear_attention.chunked import chunked
from tnbench.kernels.linear_attention.original import original
from tnbench.kernels.linear_attention.recurrent import recurrent
from tnbench.kernels.linear_attention.reference import quadratic, state_dtype

TORCH = {
    "quadratic": quadratic,
    "chunked": chunked,
    "recurrent": recurrent,
    "original": original,
}
"""Implementations in plain torch: any device, any dtype."""

IMPLEMENTATIONS = ("triton", *TORCH, "lightning1")

# Up to this length one masked product is faster than chunks and their states (measured on CPU).
SHORT = 128

AUTOCAST = frozenset(d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d))
"""Devices with autocast; asked here because torch.compile cannot look into the question."""

__all__ = ["IMPLEMENTATIONS", "TORCH", "chunked", "linear_attention", "original", "quadratic", "recurrent"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
    cu_seqlens: Tensor | None = None,
    precise: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal linear attention with one decay per head.

    Args:
        q, k: (batch, time, heads, key dim).
        v: (batch, time, heads, value dim).
        log_decay: (heads,), the logarithm of λ, at most 0; None for λ = 1. Differentiable.
        scale: factor on the output.
        initial_state: (sequences, heads, key dim, value dim), fp32 (fp64 for fp64 inputs).
        output_state: whether to return the final state.
        cu_seqlens: (sequences + 1,) int32 from 0 to the time, not decreasing: where the sequences that are
            packed into a batch of one begin and end; `triton` takes it on the GPU and trusts its numbers.
            Without it, sequences = batch.
        precise: 16-bit inputs are multiplied to at least TF32 precision, fp32 inputs to that of fp32.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`: `triton` where the kernels can run, else a
            form in plain torch, which is said once.

    Autocast has no effect in here: matrix products are computed in the inputs' dtype (v's, under autocast).

    Returns:
        The output (batch, time, heads, value dim) in v's dtype, and the final state
        (sequences, heads, key dim, value dim), or None.

    Raises:
        ValueError: shapes that do not fit, an unknown implementation, or `triton` where it cannot run.
    """
    _check(q, k, v, log_decay, initial_state, cu_seqlens)
    device = q.device.type
    if device in AUTOCAST and torch.is_autocast_enabled(device):
        # Autocast would round states and decays, which are summed in fp32, to its own dtype.
        with torch.autocast(device, enabled=False):
            return linear_attention(
                q.to(v.dtype),
                k.to(v.dtype),
                v,
                log_decay,
                scale=scale,
                initial_state=initial_state,
                output_state=output_state,
                cu_seqlens=cu_seqlens,
                precise=precise,
                implementation=implementation,
            )
    if implementation == "auto":
        implementation = _choose(q, v)
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "output_state": output_state}
    if implementation == "triton":
        reason = _obstacle(q, v)
        if reason is not None:
            raise ValueError(f"implementation triton: {reason}; take auto or chunked")
        if q.numel() and v.numel():
            from tnbench.kernels.linear_attention.triton_op import triton_linear_attention

            return triton_linear_attention(
                q, k, v, log_decay, cu_seqlens=cu_seqlens, precise=precise, **options
            )
        implementation = "chunked"  # there is nothing to launch
    if implementation == "lightning1":
        return _lightning1(q, k, v, log_decay, cu_seqlens=cu_seqlens, **options)
    if implementation not in TORCH:
        raise ValueError(f"implementation {implementation!r}: known are auto, {', '.join(IMPLEMENTATIONS)}")
    compute = TORCH[implementation]
    if cu_seqlens is not None:
        compute = partial(_packed, compute, cu_seqlens.tolist())
    if not precise or v.dtype not in (torch.bfloat16, torch.float16):
        return compute(q, k, v, log_decay, **options)
    out, state = compute(q.float(), k.float(), v.float(), log_decay, **options)
    return out.to(v.dtype), state


def _check(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or q.ndim != 4:
        raise ValueError(
            "q and k must be (batch, time, heads, key dim) and v (batch, time, heads, value dim), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[1] == 0:
        raise ValueError("q, k and v hold no time step")
    sequences = q.shape[0]
    if cu_seqlens is not None:
        if q.shape[0] != 1 or cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype != torch.int32:
            raise ValueError("cu_seqlens must be a vector of int32, for a batch of one")
        sequences = len(cu_seqlens) - 1
    expected = (sequences, q.shape[2], q.shape[3], v.shape[3])
    if state is not None and tuple(state.shape) != expected:
        raise ValueError(f"initial_state must be {expected}, got {tuple(state.shape)}")
    if log_decay is not None and log_decay.shape != (q.shape[2],):
        raise ValueError(f"log_decay must be ({q.shape[2]},), got {tuple(log_decay.shape)}")


def _obstacle(q: Tensor, v: Tensor) -> str | None:
    """Why the Triton kernels cannot take these operands, or None."""
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        return f"the kernels take head dims up to {WIDEST}, these are {q.shape[-1]} and {v.shape[-1]}"
    if q.dtype != v.dtype:
        return f"q, k and v must share one dtype, these are {q.dtype} and {v.dtype}"
    return devices.obstacle(v)


def _choose(q: Tensor, v: Tensor) -> str:
    time = q.shape[1]
    if time == 1:
        return "recurrent"
    reason = _obstacle(q, v)
    if reason is None:
        return "triton"
    devices.fall_back("linear_attention", "chunked", reason)
    return "quadratic" if time <= SHORT else "chunked"


def _packed(
    compute: Any,
    bounds: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    output_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sequence after sequence; one of no tokens leaves its state as it is."""
    if bounds[0] != 0 or bounds[-1] != q.shape[1] or sorted(bounds) != bounds:
        raise ValueError(f"cu_seqlens must rise from 0 to the time {q.shape[1]}, got {bounds}")
    outs, finals = [], []
    for n, (begin, end) in enumerate(pairwise(bounds)):
        first = None if initial_state is None else initial_state[n : n + 1]
        if begin == end:
            empty = q.new_zeros((1, *q.shape[2:], v.shape[-1]), dtype=state_dtype(q.dtype))
            finals.append(empty if first is None else first)
            continue
        piece = slice(begin, end)
        out, final = compute(
            q[:, piece],
            k[:, piece],
            v[:, piece],
            log_decay,
            scale=scale,
            initial_state=first,
            output_state=output_state,
        )
        outs.append(out)
        finals.append(final)
    return torch.cat(outs, dim=1), torch.cat(finals) if output_state else None


def _lightning1(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    output_state: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, None]:
    if initial_state is not None or output_state or cu_seqlens is not None:
        raise ValueError("implementation lightning1 has neither states nor packed sequences; take auto")
    reason = _obstacle(q, v)
    if reason is not None:
        raise ValueError(f"implementation lightning1: {reason}; take quadratic")
    from tnbench.kernels.linear_attention.lightning1 import lightning1

    return lightning1(q, k, v, log_decay, scale=scale), None
