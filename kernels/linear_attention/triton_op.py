"""Decayed causal linear attention in Triton: a torch.library operator with gradients, and a shorter way to
the same kernels where nothing needs the operator.

The forward reads q, k, v once and writes o. Where batch and heads do not fill the card, a first launch over
k and v gives the end-states of segments, and the main launch walks all segments at once. The backward does
the same in reverse: one launch over q and do for the end-states, one for dq, dk and dv, with no memory
beside the gradients and those states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from tnbench.kernels.devices import INTERPRETED, obstacle, on, together
from tnbench.kernels.layout import WIDEST, aligned, missing, widened
from tnbench.kernels.linear_attention import plans
from tnbench.kernels.linear_attention.plans import TYPES, Plan


def planned(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, precise: bool, training: bool
) -> Plan:  # fmt: skip
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return plans.plan(
        q.shape, v.shape, (q.stride(), k.stride(), v.stride()), q.dtype, q.device.index, sequences,
        precise, training,
        torch.get_float32_matmul_precision(), plans.override,
    )  # fmt: skip


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, output_state: bool, precise: bool, save: bool,
    clean: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """o, the final state, and the end-states of spans for the backward (`clean`: zeros in those that nobody
    reads)."""
    q, k, v = aligned(q), aligned(k), aligned(v)
    p = planned(q, k, v, cu_seqlens, precise, save)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    final = p.states(v, p.sequences) if output_state else None
    ends = p.run_spans(k, v, log_decay, cu_seqlens, clean=clean)
    p.run_outputs(q, k, v, out, log_decay, initial_state, ends, final, cu_seqlens, scale)
    return out, final, ends


def _backward(
    do: Tensor, dfinal: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, ends: Tensor | None, scale: float, precise: bool,
    decay: bool, initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    q, k, v, do = aligned(q), aligned(k), aligned(v), aligned(do)
    p = planned(q, k, v, cu_seqlens, precise, True)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dstart = p.states(q, p.sequences) if initial else None
    after = p.run_spans(q, do, log_decay, cu_seqlens, scale, reverse=True)
    p.run_gradients(
        q, k, v, dq, dk, dv, do, log_decay, initial_state, ends, dfinal, after, dstart, cu_seqlens, scale
    )  # fmt: skip
    ddecay = None
    if decay:
        ddecay = p.run_decay(q, k, v, do, log_decay, initial_state, ends, dfinal, after, cu_seqlens, scale)
    return dq, dk, dv, ddecay, dstart


# An operator returns tensors: what is not asked for is an empty one.
def _forward_operator(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, output_state: bool, precise: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with on(q):
        out, final, ends = _forward(
            q, k, v, log_decay, initial_state, cu_seqlens, scale, output_state, precise, save, clean=True
        )  # fmt: skip
    nothing = v.new_empty(0, dtype=torch.float32)
    return out, nothing if final is None else final, nothing.clone() if ends is None or not save else ends


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, output_state: bool, precise: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    p = _fake_plan(q, v, cu_seqlens, precise, save)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    nothing = v.new_empty(0, dtype=torch.float32)
    final = p.states(v, p.sequences) if output_state else nothing
    return out, final, p.states(v, p.span_units) if save and p.split else nothing.clone()


def _backward_operator(
    do: Tensor, dfinal: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, ends: Tensor, scale: float, precise: bool,
    decay: bool,
    initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    before = ends if ends.numel() else None
    with on(q):
        dq, dk, dv, ddecay, dstart = _backward(
            do, dfinal, q, k, v, log_decay, initial_state, cu_seqlens, before, scale, precise, decay, initial
        )  # fmt: skip
    nothing = q.new_empty(0, dtype=torch.float32)
    return dq, dk, dv, nothing if ddecay is None else ddecay, nothing.clone() if dstart is None else dstart


def _backward_fake(
    do: Tensor, dfinal: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, ends: Tensor, scale: float, precise: bool,
    decay: bool,
    initial: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    p = _fake_plan(q, v, cu_seqlens, precise, True)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    nothing = q.new_empty(0, dtype=torch.float32)
    ddecay = q.new_empty(p.heads, dtype=torch.float32) if decay else nothing
    return dq, dk, dv, ddecay, p.states(q, p.sequences) if initial else nothing.clone()


def _fake_plan(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, precise: bool, training: bool) -> Plan:
    """Made anew: sizes that are symbols cannot be a key."""
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return Plan(q.shape, v.shape, q.dtype, q.device.index, sequences, precise, training)


_library = torch.library.Library("tnbench", "FRAGMENT")
_library.define(
    "linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state,"
    " Tensor? cu_seqlens, float scale, bool output_state, bool precise, bool save)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "linear_attention_backward(Tensor do, Tensor? dfinal, Tensor q, Tensor k, Tensor v, Tensor? log_decay,"
    " Tensor? initial_state, Tensor? cu_seqlens, Tensor ends, float scale, bool precise, bool decay,"
    " bool initial) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
for _name, _function, _fake in (
    ("linear_attention", _forward_operator, _forward_fake),
    ("linear_attention_backward", _backward_operator, _backward_fake),
):
    _library.impl(_name, _function, "CUDA")
    if INTERPRETED:
        _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"tnbench::{_name}", _fake, lib=_library)


def _setup(ctx, inputs: tuple, output: tuple) -> None:
    q, k, v, log_decay, initial_state, cu_seqlens, ctx.scale, ctx.output_state, ctx.precise, _ = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state, cu_seqlens, output[2])


def _differentiate(ctx, do: Tensor, dfinal: Tensor | None, _) -> tuple:
    q, k, v, log_decay, initial_state, cu_seqlens, ends = ctx.saved_tensors
    decay, initial = ctx.needs_input_grad[3:5]
    dq, dk, dv, ddecay, dstart = torch.ops.tnbench.linear_attention_backward(
        do, dfinal.contiguous() if ctx.output_state and dfinal is not None else None, q, k, v, log_decay,
        initial_state,
        cu_seqlens, ends, ctx.scale, ctx.precise, decay, initial,
    )  # fmt: skip
    return dq, dk, dv, ddecay if decay else None, dstart if initial else None, None, None, None, None, None


def _refuse(ctx, *gradients):
    raise RuntimeError(
        "the Triton linear attention can be differentiated once; take implementation chunked or quadratic"
    )


torch.library.register_autograd("tnbench::linear_attention_backward", _refuse, lib=_library)
torch.library.register_autograd(
    "tnbench::linear_attention", _differentiate, setup_context=_setup, lib=_library
)


class _Attention(torch.autograd.Function):
    """The operator's gradients without its dispatcher, whose autograd costs half a millisecond of the
    host's time."""

    @staticmethod
    def forward(ctx, q, k, v, log_decay, initial_state, cu_seqlens, scale, output_state, precise):
        out, final, ends = _forward(
            q, k, v, log_decay, initial_state, cu_seqlens, scale, output_state, precise, True
        )
        ctx.save_for_backward(q, k, v, log_decay, initial_state, cu_seqlens, ends)
        ctx.scale, ctx.precise = scale, precise
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dfinal):
        q, k, v, log_decay, initial_state, cu_seqlens, ends = ctx.saved_tensors
        decay, initial = ctx.needs_input_grad[3:5]
        if do is None:
            do = torch.zeros_like(v)
        if dfinal is not None:
            dfinal = dfinal.contiguous()
        gradients = _backward(
            do, dfinal, q, k, v, log_decay, initial_state, cu_seqlens, ends, ctx.scale, ctx.precise, decay,
            initial
        )  # fmt: skip
        return *gradients, None, None, None, None


@register_flop_formula(torch.ops.tnbench.linear_attention)
def _flops(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """2 c (dk + dv) in the chunk and 4 dk dv for the state, per token and head, with chunks of 64."""
    batch, time, heads, dk = q_shape
    dv = v_shape[-1]
    return batch * time * heads * (128 * (dk + dv) + 4 * dk * dv)


@register_flop_formula(torch.ops.tnbench.linear_attention_backward)
def _flops_backward(do_shape, dfinal_shape, q_shape, *args, **kwargs) -> int:
    """2 c (3 dk + 2 dv) in the chunk (q kᵀ, dq, dk; do vᵀ, dv) and 10 dk dv for the states."""
    batch, time, heads, dk = q_shape
    dv = do_shape[-1]
    return batch * time * heads * (128 * (3 * dk + 2 * dv) + 10 * dk * dv)


def _watched(q: Tensor) -> bool:
    """Whether something needs to see the operator: a compiler, a mode that counts or fakes, a functional
    transform, a subclass of tensors, another device than the current one."""
    return (
        torch.compiler.is_compiling()
        or type(q) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None
        or (q.is_cuda and q.device.index != torch.cuda.current_device())
    )


def triton_linear_attention(
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
) -> tuple[Tensor, Tensor | None]:
    """o_i = scale (Σ_{j<=i} λ^(i-j) (q_i·k_j) v_j + λ^(i+1) q_i S_0), differentiable in everything but the
    scale.

    Args:
        q, k: (batch, time, heads, key dim) of one dtype (bf16, fp16, fp32), no size 0; copied where rows do
            not begin at multiples of 16 bytes.
        v: (batch, time, heads, value dim). Head dims up to 256.
        log_decay: (heads,), log λ, at most 0; None for λ = 1.
        scale: factor on the output.
        initial_state: (sequences, heads, key dim, value dim) fp32.
        output_state: whether to return the final state.
        cu_seqlens: (sequences + 1,) int32 on the device, from 0 to time: sequences packed in a batch of one.
        precise: products to fp32 accuracy. Otherwise 16-bit inputs are multiplied as they are, and fp32
            inputs to fp32 accuracy too, unless torch was allowed TF32 (torch.set_float32_matmul_precision).

    Returns:
        (batch, time, heads, value dim) in v's dtype, and the final state (sequences, heads, key dim, value
        dim) in fp32, or None.

    Raises:
        ValueError: shapes, dtypes or a device that do not fit.
    """
    _check(q, k, v, log_decay, initial_state, cu_seqlens)
    if missing(q) or missing(v):
        return _widened(q, k, v, log_decay, scale, initial_state, output_state, cu_seqlens, precise)
    if log_decay is not None and (log_decay.dtype != torch.float32 or not log_decay.is_contiguous()):
        log_decay = log_decay.float().contiguous()
    if initial_state is not None:
        initial_state = initial_state.float().contiguous()
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.contiguous()
    scale = float(scale)
    inputs = (q, k, v, log_decay, initial_state)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if _watched(q):
        out, final, _ = torch.ops.tnbench.linear_attention(
            *inputs, cu_seqlens, scale, output_state, precise, save
        )  # fmt: skip
    elif save:
        out, final = _Attention.apply(*inputs, cu_seqlens, scale, output_state, precise)
    else:
        out, final, _ = _forward(*inputs, cu_seqlens, scale, output_state, precise, False)
    return out, final if output_state else None


def _widened(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, initial_state: Tensor | None,
    output_state: bool, cu_seqlens: Tensor | None, precise: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Head dims that do not fill whole steps of 16 bytes: zeros are put behind them, and left out again."""
    dk, dv = q.shape[-1], v.shape[-1]
    if initial_state is not None:
        initial_state = F.pad(initial_state, (0, missing(v), 0, missing(q)))
    out, final = triton_linear_attention(
        widened(q), widened(k), widened(v), log_decay, scale=scale, initial_state=initial_state,
        output_state=output_state, cu_seqlens=cu_seqlens, precise=precise,
    )  # fmt: skip
    return out[..., :dv], None if final is None else final[..., :dk, :dv]


def _check(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    cu_seqlens: Tensor | None
) -> None:  # fmt: skip
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or q.shape[:3] != v.shape[:3]:
        raise ValueError(
            "q and k must be (batch, time, heads, key dim) and v (batch, time, heads, value dim), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.dtype not in TYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"q, k, v must share bf16, fp16 or fp32, got {q.dtype}, {k.dtype}, {v.dtype}")
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        raise ValueError(f"head dims go up to {WIDEST}, got {q.shape[-1]} and {v.shape[-1]}")
    if cu_seqlens is not None and (
        q.shape[0] != 1 or cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32
    ):
        raise ValueError("cu_seqlens must be a vector of int32, for a batch of one")
    if log_decay is not None and log_decay.shape != (q.shape[2],):
        raise ValueError(f"log_decay must be ({q.shape[2]},), got {tuple(log_decay.shape)}")
    if initial_state is not None:
        sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        expected = (sequences, q.shape[2], q.shape[3], v.shape[3])
        if tuple(initial_state.shape) != expected:
            raise ValueError(f"initial_state must be {expected}, got {tuple(initial_state.shape)}")
    together(q, k=k, v=v, log_decay=log_decay, initial_state=initial_state, cu_seqlens=cu_seqlens)
    if not q.is_cuda and not INTERPRETED:
        raise ValueError(f"the Triton linear attention: {obstacle(q)}")
