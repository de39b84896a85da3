"""Lightning Attention 1 (arXiv 2307.14995, alg. 1 and 2) in Triton: the left product (Q Kᵀ ⊙ M) V in tiles.

Output and gradients are the same product with the operands in different places,

    y_r = scale Σ_s λ^|r-s| (a_r · b_s) c_s        over s <= r, or over s >= r in reverse

| y  | direction | a  | b  | c  |
|----|-----------|----|----|----|
| o  | forward   | q  | k  | v  |
| dq | forward   | do | v  | k  |
| dk | reverse   | v  | do | q  |
| dv | reverse   | k  | q  | do |

so that one kernel computes them all. A program holds a block of y's rows and walks the blocks of b and c
that the causal mask lets it see.

Beyond the diagonal, with p the row of the program's block that is nearest to the walked ones, λ^|r-s| =
λ^|r-p| λ^|p-s|: a factor for each column of the scores, and one for each row of the sum once it is
complete. No exponent is negative, and transposed scores are computed as such, never by transposing a
product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tnbench.kernels.devices import INTERPRETED
from tnbench.kernels.linear_attention.triton_kernels import log2_decay


def products(dtype: torch.dtype) -> tuple[tl.dtype, str]:
    """What operands of this dtype are multiplied as, and with what precision if that is fp32. bf16 is wrong
    in the interpreter, which therefore takes fp32 for everything."""
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
    return tl.float32 if INTERPRETED else kind, "tf32x3"


@triton.jit
def _rows(
    pointer,
    index,
    x,
    time,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Rows `index` of (time, WIDTH) as a tile BLOCK wide, zero beyond both."""
    at = pointer + index.to(tl.int64)[:, None] * stride + x[None, :]
    if WIDTH != BLOCK:
        if MASKED:
            tile = tl.load(at, mask=(index < time)[:, None] & (x < WIDTH)[None, :], other=0.0)
        else:
            tile = tl.load(at, mask=(x < WIDTH)[None, :], other=0.0)
    elif MASKED:
        tile = tl.load(at, mask=(index < time)[:, None], other=0.0)
    else:
        tile = tl.load(at)
    return tile.to(DTYPE)


@triton.jit
def _accumulate(
    total, left, b, c, b_time, c_time, own, x, z, low, high, time, pivot, rate,
    DB: tl.constexpr, DC: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, COLUMNS: tl.constexpr,
    REVERSE: tl.constexpr, DIAGONAL: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + (left bᵀ ⊙ decays) c over blocks low … high − 1 of COLUMNS rows of b and c."""
    for block in range(low, high):
        index = block * COLUMNS + tl.arange(0, COLUMNS)
        # Forward, blocks beyond the diagonal are complete; in reverse the last one may be ragged.
        bt = _rows(b, index, x, time, b_time, DB, BB, DIAGONAL or REVERSE, DTYPE)
        ct = _rows(c, index, z, time, c_time, DC, BC, DIAGONAL or REVERSE, DTYPE)
        scores = tl.dot(left, tl.trans(bt), input_precision=PRECISION)
        if DIAGONAL:
            gap = own[:, None] - index[None, :]
            if REVERSE:
                gap = -gap
            scores = tl.where(gap >= 0, scores * tl.exp2(rate * gap), 0.0)
        else:
            gap = pivot - index
            if REVERSE:
                gap = -gap
            scores = scores * tl.exp2(rate * gap)[None, :]
        total = tl.dot(scores.to(DTYPE), ct, total, input_precision=PRECISION)
    return total


@triton.jit
def _place(time, heads, ROWS: tl.constexpr, REVERSE: tl.constexpr):
    """(batch row, head, first row) of a program. Heads follow each other, so that their b and c stay in the
    L2 cache; within a head the longest walks start first."""
    blocks = tl.cdiv(time, ROWS)
    pid = tl.program_id(0)
    block = pid % blocks
    if not REVERSE:
        block = blocks - 1 - block
    return (pid // blocks // heads).to(tl.int64), (pid // blocks % heads).to(tl.int64), block * ROWS


@triton.jit(do_not_specialize=["time", "heads"])
def product(
    a, b, c, y, log_decay, a_batch, a_time, a_head, b_batch, b_time, b_head, c_batch, c_time, c_head,
    y_batch, y_time, y_head, time, heads, scale, DB: tl.constexpr, DC: tl.constexpr, BB: tl.constexpr, BC:
    tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REVERSE: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y (batch, time, heads, DC) from a and b (.., DB) and c (.., DC): see the table at the head of this
    file."""
    n, h, first = _place(time, heads, ROWS, REVERSE)  # pyright: ignore[reportGeneralTypeIssues]
    rate = log2_decay(log_decay, h)
    own = first + tl.arange(0, ROWS)
    x = tl.arange(0, BB)
    z = tl.arange(0, BC)
    b += n * b_batch + h * b_head
    c += n * c_batch + h * c_head
    left = _rows(a + n * a_batch + h * a_head, own, x, time, a_time, DB, BB, True, DTYPE)
    blocks = tl.cdiv(time, COLUMNS)
    begin = first // COLUMNS
    end = tl.minimum(tl.cdiv(first + ROWS, COLUMNS), blocks)
    if REVERSE:
        pivot = first + ROWS - 1
        reach = tl.exp2(rate * (pivot - own))
        low = end
        high = blocks
    else:
        pivot = first
        reach = tl.exp2(rate * (own - pivot))
        low = begin * 0
        high = begin
    total = tl.zeros([ROWS, BC], dtype=tl.float32)
    total = _accumulate(
        total, left, b, c, b_time, c_time, own, x, z, low, high, time, pivot, rate,
        DB, DC, BB, BC, COLUMNS, REVERSE, False, DTYPE, PRECISION,
    )  # fmt: skip
    total = total * reach[:, None]
    total = _accumulate(
        total, left, b, c, b_time, c_time, own, x, z, begin, end, time, pivot, rate,
        DB, DC, BB, BC, COLUMNS, REVERSE, True, DTYPE, PRECISION,
    )  # fmt: skip
    at = y + n * y_batch + h * y_head + own.to(tl.int64)[:, None] * y_time + z[None, :]
    tl.store(at, (total * scale).to(y.dtype.element_ty), mask=(own < time)[:, None] & (z < DC)[None, :])


@triton.jit
def _scores(
    a, b, own, index, time, a_time, b_time, WIDTH: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a bᵀ of BLOCK rows each, PIECE columns at a time."""
    x = tl.arange(0, PIECE)
    total = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for at in range(0, WIDTH, PIECE):
        inside = (at + x < WIDTH)[None, :]
        left = a + own.to(tl.int64)[:, None] * a_time + (at + x)[None, :]
        left = tl.load(left, mask=(own < time)[:, None] & inside, other=0.0).to(DTYPE)
        right = b + index.to(tl.int64)[:, None] * b_time + (at + x)[None, :]
        right = tl.load(right, mask=(index < time)[:, None] & inside, other=0.0).to(DTYPE)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["time", "heads"])
def decay_gradient(
    q, k, v, do, parts, log_decay, q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    do_batch, do_time, do_head, time, heads,
    DK: tl.constexpr, DV: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[program] = Σ_{s<=r} (r-s) λ^(r-s) (q_r·k_s) (do_r·v_s), what a block of rows r adds to d log λ.

    Every term is formed as such. Σ r (do_r·o_r) − Σ s (v_s·dv_s) would be cheaper, but its sums are nearly
    equal. Head dims are taken in pieces: four whole tiles of 256 would spill.
    """
    n, h, first = _place(time, heads, BLOCK, False)  # pyright: ignore[reportGeneralTypeIssues]
    rate = log2_decay(log_decay, h)
    own = first + tl.arange(0, BLOCK)
    q += n * q_batch + h * q_head
    k += n * k_batch + h * k_head
    v += n * v_batch + h * v_head
    do += n * do_batch + h * do_head
    total = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
    for block in range(first // BLOCK + 1):
        index = block * BLOCK + tl.arange(0, BLOCK)
        scores = _scores(q, k, own, index, time, q_time, k_time, DK, PIECE, BLOCK, DTYPE, PRECISION)
        pull = _scores(do, v, own, index, time, do_time, v_time, DV, PIECE, BLOCK, DTYPE, PRECISION)
        gap = own[:, None] - index[None, :]
        total += tl.where(gap > 0, scores * pull * (gap * tl.exp2(rate * gap)), 0.0)
    tl.store(parts + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
