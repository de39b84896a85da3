"""Lightning Attention 1, the paper's own algorithm (arXiv 2307.14995, alg. 1 and 2): (Q Kᵀ ⊙ M) V in tiles.

Its time is quadratic in the length, as that of the naive form, but its memory is linear: no score is
written. It is here for the paper's comparison with the naive form; `linear_attention` is linear in both.

The printed algorithm 1 walks every block of columns. Here, as in the official forward kernel, blocks that
the mask would zero are left out. The backward follows the mathematics, not the misprints of algorithm 2
(where dK is a product with V).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tnbench.kernels.devices import INTERPRETED, machine, obstacle, on, together
from tnbench.kernels.layout import WIDEST, aligned, missing, power, widened


class Blocks(NamedTuple):
    """B_r rows of the output a program holds, B_c rows walked at a step, warps, pipeline stages."""

    rows: int
    columns: int
    warps: int
    stages: int


DECAY = Blocks(32, 32, 4, 2)
"""Of the decay's gradient."""

# (compute capability from, 16-bit products, head dims up to): the largest blocks that spill nothing.
TABLE = {
    (80, True, 64): Blocks(64, 64, 4, 3),
    (80, True, 128): Blocks(64, 64, 8, 2),
    (80, True, 256): Blocks(64, 32, 8, 2),
    (80, False, 64): Blocks(64, 32, 8, 1),
    (80, False, 128): Blocks(32, 32, 8, 1),
    (80, False, 256): Blocks(16, 32, 8, 1),
    (90, True, 64): Blocks(128, 64, 4, 3),
    (90, True, 128): Blocks(128, 32, 4, 3),
    (90, True, 256): Blocks(64, 32, 8, 2),
    (90, False, 64): Blocks(64, 32, 8, 1),
    (90, False, 128): Blocks(32, 32, 8, 1),
    (90, False, 256): Blocks(16, 32, 8, 1),
}


def blocks(capability: int, dtype: torch.dtype, dim: int, block: tuple[int, int] | None = None) -> Blocks:
    """Those of the table for operands of this dtype and largest head dim, or those asked for."""
    half = dtype != torch.float32
    known = max(c for c, _, _ in TABLE if c <= capability)
    size = min(d for c, h, d in TABLE if (c, h) == (known, half) and d >= dim)
    found = TABLE[known, half, size]
    if block is None or block == found[:2]:
        return found
    return Blocks(*block, 8 if block[0] >= 128 else 4, found.stages)


def lightning1(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    block: tuple[int, int] | None = None,
) -> Tensor:
    """o_i = scale Σ_{j<=i} λ^(i-j) (q_i·k_j) v_j, differentiable in q, k, v and the decay.

    Args:
        q, k: (batch, time, heads, key dim), bf16, fp16 or fp32, on an NVIDIA GPU; copied where rows do not
            begin at multiples of 16 bytes. 16-bit operands are multiplied as they are, fp32 ones as three
            TF32 products: fp32 accuracy.
        v: (batch, time, heads, value dim), of q's dtype. Head dims go up to 256.
        log_decay: (heads,), log λ, at most 0; None for λ = 1.
        scale: factor on the output.
        block: (B_r, B_c), powers of two from 16: rows of the output a program holds, and rows of k and v it
            walks at a step; in the backward likewise for each gradient. None takes the table's.

    Returns:
        The output (batch, time, heads, value dim) in v's dtype. There are no states.

    Raises:
        ValueError: shapes, dtypes, a device or blocks that do not fit.
    """
    if q.ndim != 4 or q.shape != k.shape or q.shape[:3] != v.shape[:3]:
        raise ValueError(
            "q and k must be (batch, time, heads, key dim) and v (batch, time, heads, value dim), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if (reason := obstacle(q)) is not None:
        raise ValueError(f"lightning1 is a set of Triton kernels: {reason}")
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"q, k, v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        raise ValueError(f"head dims go up to {WIDEST}, got {q.shape[-1]} and {v.shape[-1]}")
    if log_decay is not None and log_decay.shape != (q.shape[2],):
        raise ValueError(f"log_decay must be ({q.shape[2]},), got {tuple(log_decay.shape)}")
    if block is not None and (len(block) != 2 or any(n < 16 or n & (n - 1) for n in block)):
        raise ValueError(f"block must be two powers of two from 16, got {block}")
    together(q, k=k, v=v, log_decay=log_decay)
    rows, columns = block or (0, 0)
    rate = None if log_decay is None else log_decay.float().contiguous()
    wide = widened(q), widened(k), widened(v)
    out = torch.ops.tnbench.lightning1(*wide, rate, float(scale), rows, columns)
    return out[..., : v.shape[-1]] if missing(v) else out


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _empty(x: Tensor) -> Tensor:
    """Like x, contiguous."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _product(
    a: Tensor, b: Tensor, c: Tensor, log_decay: Tensor | None, scale: float, chosen: Blocks, reverse: bool
) -> Tensor:
    from tnbench.kernels.linear_attention import lightning1_kernels as kernels

    a, b, c = aligned(a), aligned(b), aligned(c)
    y = _empty(c)
    batch, time, heads, width = c.shape
    if y.numel() == 0:
        return y
    dtype, precision = kernels.products(c.dtype)
    product: Any = kernels.product
    product[(batch * heads * -(-time // chosen.rows),)](
        a, b, c, y, log_decay, *_strides(a, b, c, y), time, heads, scale,
        DB=b.shape[-1], DC=width, BB=power(b.shape[-1]), BC=power(width),
        ROWS=chosen.rows, COLUMNS=chosen.columns, REVERSE=reverse, DTYPE=dtype, PRECISION=precision,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    return y


def _chosen(q: Tensor, v: Tensor, rows: int, columns: int) -> Blocks:
    dim = max(q.shape[-1], v.shape[-1])
    return blocks(machine(q.device.index).capability, q.dtype, dim, (rows, columns) if rows else None)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, rows: int, columns: int
) -> Tensor:
    with on(q):
        return _product(q, k, v, log_decay, scale, _chosen(q, v, rows, columns), reverse=False)


def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, rows: int,
    columns: int, decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    chosen = _chosen(q, v, rows, columns)
    with on(q):
        dq = _product(do, v, k, log_decay, scale, chosen, reverse=False)
        dk = _product(v, do, q, log_decay, scale, chosen, reverse=True)
        dv = _product(k, q, do, log_decay, scale, chosen, reverse=True)
        rate = q.new_empty(0, dtype=torch.float32)
        if decay:
            rate = _decay_gradient(do, q, k, v, log_decay) * scale
    return dq, dk, dv, rate


def _decay_gradient(do: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Tensor:
    """d log λ (heads,) fp32, of an output without scale."""
    from tnbench.kernels.linear_attention import lightning1_kernels as kernels

    q, k, v, do = (aligned(x) for x in (q, k, v, do))
    batch, time, heads, width = q.shape
    parts = torch.zeros(batch, heads, -(-time // DECAY.rows), dtype=torch.float32, device=q.device)
    if parts.numel():
        dtype, precision = kernels.products(q.dtype)
        gradient: Any = kernels.decay_gradient
        gradient[(parts.numel(),)](
            q, k, v, do, parts, log_decay, *_strides(q, k, v, do), time, heads,
            DK=width, DV=v.shape[-1], PIECE=32, BLOCK=DECAY.rows, DTYPE=dtype, PRECISION=precision,
            num_warps=DECAY.warps, num_stages=DECAY.stages,
        )  # fmt: skip
    return parts.sum((0, 2))


LIBRARY = torch.library.Library("tnbench", "FRAGMENT")
LIBRARY.define(
    "lightning1(Tensor q, Tensor k, Tensor v, Tensor? log_decay, float scale, int rows, int columns)"
    " -> Tensor"
)
LIBRARY.define(
    "lightning1_backward(Tensor do, Tensor q, Tensor k, Tensor v, Tensor? log_decay, float scale, int rows,"
    " int columns, bool decay) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
    LIBRARY.impl("lightning1", _forward, _device)
    LIBRARY.impl("lightning1_backward", _backward, _device)


@torch.library.register_fake("tnbench::lightning1", lib=LIBRARY)
def _(q, k, v, log_decay, scale, rows, columns):
    return _empty(v)


@torch.library.register_fake("tnbench::lightning1_backward", lib=LIBRARY)
def _(do, q, k, v, log_decay, scale, rows, columns, decay):
    rate = q.new_empty(q.shape[2] if decay else 0, dtype=torch.float32)
    return _empty(q), _empty(k), _empty(v), rate


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    q, k, v, log_decay, ctx.scale, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(q, k, v, log_decay)


def _differentiate(ctx, do: Tensor) -> tuple:
    q, k, v, log_decay = ctx.saved_tensors
    decay = ctx.needs_input_grad[3]
    dq, dk, dv, rate = torch.ops.tnbench.lightning1_backward(
        do, q, k, v, log_decay, ctx.scale, ctx.rows, ctx.columns, decay
    )
    return dq, dk, dv, rate if decay else None, None, None, None


def _refuse(ctx, *gradients):
    raise RuntimeError("lightning1 can be differentiated once; take implementation quadratic")


torch.library.register_autograd("tnbench::lightning1_backward", _refuse, lib=LIBRARY)
torch.library.register_autograd("tnbench::lightning1", _differentiate, setup_context=_setup, lib=LIBRARY)


@register_flop_formula(torch.ops.tnbench.lightning1)
def _flops(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """t (t + 1) (dk + dv) a head: two products of half a square."""
    batch, time, heads, dk = q_shape
    return batch * heads * time * (time + 1) * (dk + v_shape[-1])


@register_flop_formula(torch.ops.tnbench.lightning1_backward)
def _flops_backward(do_shape, q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """Six products: the scores for dv, those of do and v for dq and for dk, and the three gradients."""
    return 3 * _flops(q_shape, k_shape, v_shape)
