"""Triton kernels of decayed causal linear attention: states of segments, their outputs, and all gradients.

Every kernel walks chunks of C tokens with a state in fp32 registers, and knows two directions. With r the
index inside a chunk of n tokens,

    forward   S ← λ^n S + Σ_r λ^(n-1-r) b_r c_rᵀ        y_r = λ^(r+1)   a_r S + Σ_{s<=r} λ^(r-s) (a_r·b_s) c_s
    reverse   R ← λ^n R + Σ_r λ^(r+1)   b_r c_rᵀ        y_r = λ^(n-1-r) a_r R + Σ_{s>=r} λ^(s-r) (a_r·b_s) c_s

where S is the state before the chunk and R the gradient of the state after it. Output and gradients are one
recurrence with the operands in different places, which is why one function, `_walk` of triton_walks.py,
computes them all:

| y  | direction | a  | b  | c  | state            |
|----|-----------|----|----|----|------------------|
| o  | forward   | q  | k  | v  | S, (dk, dv)      |
| dq | forward   | do | v  | k  | Sᵀ, (dv, dk)     |
| dk | reverse   | v  | do | q  | Rᵀ, (dv, dk)     |
| dv | reverse   | k  | q  | do | R, (dk, dv)      |

λ is only raised to non-negative powers. Decays multiply fp32 score tiles, fp32 results, or c, never b, whose
transpose then stays a shared-memory operand. Nothing transposes a product that feeds another product: the
compilers of Triton 3.4 to 3.7.0 get that wrong on Hopper. No atomics: results repeat bit for bit.

Sequences are cut into segments of `length` tokens, counted over the whole batch. Packed sequence n begins
at segment cu_seqlens[n] // length + n, which leaves gaps but needs no look at cu_seqlens on the host.

A head forgets: what lies further back than the distance at which λ^distance < 2^-32 is beyond what the fp32
sums that it would enter can resolve, and is not read. An initial state, whose size nobody knows, is always
carried on.

The end-states that join segments are those of spans, whole parts of segments: shorter walks that start at
zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def log2_decay(log_decay, h):
    """log2 λ of head h, 0 without a decay."""
    rate = 0.0
    if log_decay is not None:
        rate = tl.load(log_decay + h).to(tl.float32) * LOG2E
    return rate


@triton.jit
def forgotten(rate):
    """Tokens after which a head has forgotten (at most 2^30)."""
    return tl.minimum(32.0 / tl.maximum(-rate, 1e-7), 1073741824.0).to(tl.int32)


@triton.jit
def locate(unit, cu_seqlens, sequences, time, length, count):
    """(n, index of the unit in sequence n, batch row, first token, tokens, unit where n begins)."""
    if cu_seqlens is None:
        n = unit // count
        row = n
        begin = n * 0
        tokens = begin + time
        base = n * count
    else:
        low = unit * 0
        high = low + sequences - 1
        while low < high:  # the last n whose first unit is not beyond this one
            middle = (low + high + 1) // 2
            if tl.load(cu_seqlens + middle) // length + middle <= unit:
                low = middle
            else:
                high = middle - 1
        n = low
        row = n * 0
        begin = tl.load(cu_seqlens + n)
        tokens = tl.load(cu_seqlens + n + 1) - begin
        base = begin // length + n
    return n, unit - base, row, begin, tokens, base


@triton.jit
def row_index(at, r, count, CHUNK: tl.constexpr):
    """Rows of chunk `at`, as a (CHUNK, 1) index. The bound keeps the compiler from turning row addresses
    into dozens of 64-bit induction variables, which spill; one multiply-add each is cheaper."""
    return tl.minimum(at * CHUNK + r, count - 1).to(tl.int64)[:, None]


@triton.jit
def tile_mask(rows, columns, count, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Mask of a tile with `count` rows; columns are compared only where the width is no multiple of the
    tile's."""
    mask = (rows < count)[:, None]
    if WIDTH % COLUMNS != 0:
        mask = mask & (columns < WIDTH)[None, :]
    return mask


@triton.jit
def state_mask(x, y, WX: tl.constexpr, WY: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr):
    mask = None
    if WX % BX != 0 or WY % BY != 0:
        mask = (x < WX)[:, None] & (y < WY)[None, :]
    return mask


@triton.jit
def load_state(pointer, offsets, mask):
    state = tl.load(pointer + offsets) if mask is None else tl.load(pointer + offsets, mask=mask, other=0.0)
    return state.to(tl.float32)


@triton.jit
def _seen(tile):
    tl.inline_asm_elementwise("", "=r,=r,r", [tile], dtype=tl.int32, is_pure=False, pack=2)


@triton.jit
def look(tile, left):
    """A second use of a tile that only feeds products, never executed and without instructions.

    The compiler gives such a tile one buffer more than its stages need, for products that run on behind the
    next load; here every product is waited for, and the buffer is better spent on a stage. `left` is
    positive, which the compiler does not know.
    """
    if left <= 0:
        _seen(tile)


@triton.jit
def start_state(
    start, ends, cu_seqlens, n, begin, first, count, tokens, time, span, h, heads, rate, offsets, mask,
    size: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The state that reaches a segment of `count` tokens from `first`: the given one and the end-states of
    the spans in between, by Horner."""
    state = tl.zeros([BX, BY], dtype=tl.float32)
    if start is not None:
        state = load_state(start + (n * heads + h).to(tl.int64) * size, offsets, mask)
    if ends is not None:
        near = tl.cdiv(forgotten(rate), span)  # spans that are remembered
        base = n * tl.cdiv(time, span) if cu_seqlens is None else begin // span + n
        if REVERSE:
            low = tl.cdiv(first + count, span)
            high = tl.minimum(tl.cdiv(tokens, span), low + near)
            if start is not None:
                state = state * tl.exp2(rate * tl.maximum(tokens - high * span, 0))
            for i in tl.range(0, high - low, loop_unroll_factor=2):
                j = high - 1 - i
                width = tl.minimum(span, tokens - j * span)
                other = load_state(ends + ((base + j) * heads + h).to(tl.int64) * size, offsets, mask)
                state = state * tl.exp2(rate * width) + other
        else:
            high = first // span
            low = tl.maximum(high - near, 0)
            if start is not None:
                state = state * tl.exp2(rate * (low * span).to(tl.float32))
            for j in tl.range(low, high, loop_unroll_factor=2):
                other = load_state(ends + ((base + j) * heads + h).to(tl.int64) * size, offsets, mask)
                state = state * tl.exp2(rate * span) + other
    return state


RUNTIME = ["sequences", "time", "heads", "length", "segments", "span", "scale"]


@triton.jit(do_not_specialize=RUNTIME)
def span_states(
    b, c, log_decay, ends, cu_seqlens, b_batch, b_time, b_head, c_batch, c_time, c_head,
    sequences, time, heads, length, segments, span, scale,
    DB: tl.constexpr, DC: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, TMA: tl.constexpr, DEEP: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """End-state of each span from zero, as far as a segment reads it: into ends (spans of all, heads, DB,
    DC) fp32.

    Program (tile of c's columns, head, span). `b` (.., DB) and `c` (.., DC) make the state (DB, DC): k and
    v forward, q and do (times `scale`) in reverse. `segments` counts the spans of a sequence; `length` is
    that of the segments.
    """
    pid = tl.program_id(0)
    tiles: tl.constexpr = (DC + TILE - 1) // TILE
    tile = pid % tiles
    h = (pid // tiles) % heads
    unit = pid // tiles // heads
    _n, index, row, begin, tokens, _base = locate(unit, cu_seqlens, sequences, time, span, segments)  # pyright: ignore[reportGeneralTypeIssues]
    first = index * span
    rate = log2_decay(log_decay, h)
    count = tl.minimum(span, tokens - first)
    # The reader is the segment next to the one that this span lies in; what it has forgotten is left out.
    memory = forgotten(rate)
    if REVERSE:
        border = first // length * length
        needed = tl.minimum(count, memory - (first - border))
        wanted = border > 0
    else:
        border = (first // length + 1) * length
        needed = tl.minimum(count, memory - (border - first - count))
        wanted = border < tokens
    if wanted & (needed > 0):
        r = tl.arange(0, CHUNK)
        x = tl.arange(0, BB)
        y = tile * TILE + tl.arange(0, TILE)
        state = tl.zeros([BB, TILE], dtype=tl.float32)
        token = (begin + first).to(tl.int64)
        b += row.to(tl.int64) * b_batch + h.to(tl.int64) * b_head + token * b_time
        c += row.to(tl.int64) * c_batch + h.to(tl.int64) * c_head + token * c_time
        if TMA:
            b_box = tl.make_tensor_descriptor(b, [count, DB], [b_time, 1], [CHUNK, BB])
            c_box = tl.make_tensor_descriptor(c, [count, DC], [c_time, 1], [CHUNK, TILE])
        chunks = tl.cdiv(count, CHUNK)
        skipped = chunks - tl.cdiv(needed, CHUNK) if REVERSE else (count - needed) // CHUNK
        for i in range(skipped, chunks):
            at = i
            if REVERSE:
                at = chunks - 1 - i
            left = tl.minimum(CHUNK, count - at * CHUNK)
            if TMA:
                bt = b_box.load([at * CHUNK, 0]).to(DTYPE)
                ct = c_box.load([at * CHUNK, tile * TILE])
            else:
                rows = row_index(at, r, count, CHUNK)
                bt = tl.load(b + rows * b_time + x[None, :], mask=tile_mask(r, x, left, DB, BB), other=0.0)
                bt = bt.to(DTYPE)
                ct = tl.load(c + rows * c_time + y[None, :], mask=tile_mask(r, y, left, DC, TILE), other=0.0)
            if DEEP:
                look(bt, left)
            if REVERSE:
                weight = tl.exp2(rate * (r + 1)) * scale
            else:
                weight = tl.exp2(rate * tl.maximum(left - 1 - r, 0))
            ct = (ct.to(tl.float32) * weight[:, None]).to(DTYPE)
            state = state * tl.exp2(rate * left)
            state = tl.dot(tl.trans(bt), ct, state, input_precision=PRECISION)
        target = ends + (unit * heads + h).to(tl.int64) * (DB * DC) + x[:, None] * DC + y[None, :]
        tl.store(target, state, mask=state_mask(x, y, DB, DC, BB, TILE))


@triton.jit(do_not_specialize=RUNTIME)
def states(
    b, c, log_decay, start, ends, final, kept, cu_seqlens, b_batch, b_time, b_head, c_batch, c_time, c_head,
    sequences, time, heads, length, segments, span, scale,
    DB: tl.constexpr, DC: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state at the end of each sequence, or the states at the borders of chunks. Program (tile of c's
    columns, head, segment).

    Args:
        start: (sequences, heads, DB, DC), the state that reaches each sequence, or None.
        ends: what `span_states` wrote, or None where each sequence is one segment.
        final: (sequences, heads, DB, DC) fp32, written by the last segment in walking order, or None.
        kept: (chunks of all, heads, DB, DC), written: S before each chunk, or R after it; or None.
    """
    pid = tl.program_id(0)
    tiles: tl.constexpr = (DC + TILE - 1) // TILE
    tile = pid % tiles
    h = (pid // tiles) % heads
    unit = pid // tiles // heads
    n, index, row, begin, tokens, _base = locate(unit, cu_seqlens, sequences, time, length, segments)  # pyright: ignore[reportGeneralTypeIssues]
    first = index * length
    last = tl.maximum(tl.cdiv(tokens, length) - 1, 0)
    end = index == 0 if REVERSE else index == last
    wanted = index <= last
    if kept is None:
        wanted = end
    if wanted:
        rate = log2_decay(log_decay, h)
        count = tl.minimum(length, tokens - first)
        r = tl.arange(0, CHUNK)
        x = tl.arange(0, BB)
        y = tile * TILE + tl.arange(0, TILE)
        offsets = x[:, None] * DC + y[None, :]
        mask = state_mask(x, y, DB, DC, BB, TILE)
        size: tl.constexpr = DB * DC
        state = start_state(
            start, ends, cu_seqlens, n, begin, first, count, tokens, time, span, h, heads, rate, offsets,
            mask,
            size, BB, TILE, REVERSE,
        )  # fmt: skip
        token = (begin + first).to(tl.int64)
        b += row.to(tl.int64) * b_batch + h.to(tl.int64) * b_head + token * b_time
        c += row.to(tl.int64) * c_batch + h.to(tl.int64) * c_head + token * c_time
        chunks = tl.cdiv(count, CHUNK)
        if kept is not None:
            if cu_seqlens is None:
                place = n * tl.cdiv(time, CHUNK) + first // CHUNK
            else:
                place = begin // CHUNK + n + first // CHUNK
            kept += (place * heads + h).to(tl.int64) * size
        for i in range(chunks):
            at = i
            if REVERSE:
                at = chunks - 1 - i
            if kept is not None:
                # Addresses are tied to the loop: hoisted, they would hold registers over every step.
                rows = x + tl.full([], DB, tl.int64) * (at * heads)
                tl.store(kept + rows[:, None] * DC + y[None, :], state.to(kept.dtype.element_ty), mask=mask)
            left = tl.minimum(CHUNK, count - at * CHUNK)
            rows = row_index(at, r, count, CHUNK)
            bt = tl.load(b + rows * b_time + x[None, :], mask=tile_mask(r, x, left, DB, BB), other=0.0)
            ct = tl.load(c + rows * c_time + y[None, :], mask=tile_mask(r, y, left, DC, TILE), other=0.0)
            if REVERSE:
                weight = tl.exp2(rate * (r + 1)) * scale
            else:
                weight = tl.exp2(rate * tl.maximum(left - 1 - r, 0))
            ct = (ct.to(tl.float32) * weight[:, None]).to(DTYPE)
            state = state * tl.exp2(rate * left)
            state = tl.dot(tl.trans(bt.to(DTYPE)), ct, state, input_precision=PRECISION)
        if final is not None and end:
            tl.store(final + (n * heads + h).to(tl.int64) * size + offsets, state, mask=mask)
