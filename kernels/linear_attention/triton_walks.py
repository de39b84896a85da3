"""Triton kernels of the outputs and of all three gradients: walks over segments, from the states that reach
them. See the table at the head of triton_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tnbench.kernels.linear_attention.triton_kernels import (
    RUNTIME,
    locate,
    log2_decay,
    look,
    row_index,
    start_state,
    state_mask,
    tile_mask,
)


@triton.jit
def _walk(
    a, b, c, y, log_decay, start, ends, final, cu_seqlens, tile, h, n, index, row, begin, tokens,
    a_batch, a_time, a_head, b_batch, b_time, b_head, c_batch, c_time, c_head, y_batch, y_time, y_head,
    time, heads, length, span, scale,
    DA: tl.constexpr, DC: tl.constexpr, BA: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr, TRANSPOSED: tl.constexpr, SCALED: tl.constexpr, TMA: tl.constexpr,
    DEEP: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of columns of y in one segment (see the table at the head of triton_kernels.py)."""
    first = index * length
    last = tl.maximum(tl.cdiv(tokens, length) - 1, 0)
    rate = log2_decay(log_decay, h)
    count = tl.minimum(length, tokens - first)
    r = tl.arange(0, CHUNK)
    x = tl.arange(0, BA)
    z = tile * TILE + tl.arange(0, TILE)
    token = (begin + first).to(tl.int64)
    a += row.to(tl.int64) * a_batch + h.to(tl.int64) * a_head + token * a_time
    b += row.to(tl.int64) * b_batch + h.to(tl.int64) * b_head + token * b_time
    c += row.to(tl.int64) * c_batch + h.to(tl.int64) * c_head + token * c_time
    y += row.to(tl.int64) * y_batch + h.to(tl.int64) * y_head + token * y_time
    if TMA:
        at_box = tl.make_tensor_descriptor(a, [count, DA], [a_time, 1], [CHUNK, BA])
        bt_box = tl.make_tensor_descriptor(b, [count, DA], [b_time, 1], [CHUNK, BA])
        ct_box = tl.make_tensor_descriptor(c, [count, DC], [c_time, 1], [CHUNK, TILE])
    offsets = x[:, None] + z[None, :] * DA if TRANSPOSED else x[:, None] * DC + z[None, :]
    mask = state_mask(x, z, DA, DC, BA, TILE)
    size: tl.constexpr = DA * DC
    state = start_state(
        start, ends, cu_seqlens, n, begin, first, count, tokens, time, span, h, heads, rate, offsets, mask,
        size, BA, TILE, REVERSE,
    )  # fmt: skip
    chunks = tl.cdiv(count, CHUNK)
    for i in range(chunks):
        at = i
        if REVERSE:
            at = chunks - 1 - i
        left = tl.minimum(CHUNK, count - at * CHUNK)
        rows = row_index(at, r, count, CHUNK)
        cc = tile_mask(r, z, left, DC, TILE)
        if TMA:
            at_ = at_box.load([at * CHUNK, 0]).to(DTYPE)
            bt = bt_box.load([at * CHUNK, 0]).to(DTYPE)
            ct = ct_box.load([at * CHUNK, tile * TILE])
        else:
            ac = tile_mask(r, x, left, DA, BA)
            at_ = tl.load(a + rows * a_time + x[None, :], mask=ac, other=0.0).to(DTYPE)
            bt = tl.load(b + rows * b_time + x[None, :], mask=ac, other=0.0).to(DTYPE)
            ct = tl.load(c + rows * c_time + z[None, :], mask=cc, other=0.0)
        if DEEP:
            look(at_, left)
            look(bt, left)
        # Tied to the chunk by `left`: hoisted out of the loop, the tile of decays costs 32 registers.
        here = tl.minimum(r, left).to(tl.float32)
        there = r.to(tl.float32)
        if REVERSE:
            reach = tl.exp2(rate * tl.maximum(left - 1 - r, 0))
            weight = tl.exp2(rate * (r + 1)) * scale
            inside = r[:, None] <= r[None, :]
            here, there = -here, -there
        else:
            reach = tl.exp2(rate * (r + 1)) * scale
            weight = tl.exp2(rate * tl.maximum(left - 1 - r, 0))
            inside = r[:, None] >= r[None, :]
        if tl.float32 == DTYPE:
            gap = rate * (here[:, None] - there[None, :])
        else:  # one multiplication less; its rounding is seen in fp32 alone
            gap = (rate * here)[:, None] - (rate * there)[None, :]
        decay = tl.where(inside, tl.exp2(gap), 0.0)
        if SCALED:
            decay *= scale
        scores = tl.dot(at_, tl.trans(bt), input_precision=PRECISION) * decay
        out = tl.dot(at_, state.to(DTYPE), input_precision=PRECISION) * reach[:, None]
        out = tl.dot(scores.to(DTYPE), ct.to(DTYPE), out, input_precision=PRECISION)
        tl.store(y + rows * y_time + z[None, :], out.to(y.dtype.element_ty), mask=cc)
        ct = (ct.to(tl.float32) * weight[:, None]).to(DTYPE)
        state = state * tl.exp2(rate * left)
        state = tl.dot(tl.trans(bt), ct, state, input_precision=PRECISION)
    if final is not None:
        end = index == last
        if REVERSE:
            end = index == 0
        if end:
            tl.store(final + (n * heads + h).to(tl.int64) * size + offsets, state, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    q, k, v, o, log_decay, start, ends, final, cu_seqlens,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head, o_batch, o_time, o_head,
    sequences, time, heads, length, segments, span, scale,
    DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    SCALED: tl.constexpr, TMA: tl.constexpr, DEEP: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o of each segment, from the state that reaches it. Program (tile of v's columns, head, segment).

    Args:
        start, ends, final: as in `states`.
    """
    pid = tl.program_id(0)
    tiles: tl.constexpr = (DV + TILE - 1) // TILE
    tile = pid % tiles
    h = (pid // tiles) % heads
    unit = pid // tiles // heads
    n, index, row, begin, tokens, _base = locate(unit, cu_seqlens, sequences, time, length, segments)  # pyright: ignore[reportGeneralTypeIssues]
    if index <= tl.maximum(tl.cdiv(tokens, length) - 1, 0):
        _walk(
            q, k, v, o, log_decay, start, ends, final, cu_seqlens, tile, h, n, index, row, begin, tokens,
            q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
            o_batch, o_time, o_head, time, heads, length, span, scale,
            DK, DV, BK, TILE, CHUNK, False, False, SCALED, TMA, DEEP, DTYPE, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def gradients(
    q, k, v, dq, dk, dv, do, log_decay, start, before, dend, after, dstart, cu_seqlens,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    dq_batch, dq_time, dq_head, dk_batch, dk_time, dk_head, dv_batch, dv_time, dv_head,
    do_batch, do_time, do_head, sequences, time, heads, length, segments, span, scale,
    DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TILE_K: tl.constexpr,
    TILE_V: tl.constexpr, CHUNK: tl.constexpr, SCALED: tl.constexpr, TMA: tl.constexpr, DEEP: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dv of each segment, by three walks that share q, k, v, do through the L2.

    Program (tile of dq's, dk's or dv's columns, head, segment).

    Args:
        start, before: the initial state and the end-states of segments, forward.
        dend, after: the same in reverse: the gradient of the final state, and end-states of R.
        dstart: gradient of the initial state, to be written, or None.
    """
    pid = tl.program_id(0)
    KEYS: tl.constexpr = (DK + TILE_K - 1) // TILE_K
    VALUES: tl.constexpr = (DV + TILE_V - 1) // TILE_V
    PARTS: tl.constexpr = 2 * KEYS + VALUES
    part = pid % PARTS
    h = (pid // PARTS) % heads
    unit = pid // PARTS // heads
    n, index, row, begin, tokens, _base = locate(unit, cu_seqlens, sequences, time, length, segments)  # pyright: ignore[reportGeneralTypeIssues]
    if index <= tl.maximum(tl.cdiv(tokens, length) - 1, 0):
        if part < KEYS:
            _walk(
                do, v, k, dq, log_decay, start, before, None, cu_seqlens,
                part, h, n, index, row, begin, tokens,
                do_batch, do_time, do_head, v_batch, v_time, v_head, k_batch, k_time, k_head,
                dq_batch, dq_time, dq_head, time, heads, length, span, scale,
                DV, DK, BV, TILE_K, CHUNK, False, True, SCALED, TMA, DEEP, DTYPE, PRECISION,
            )  # fmt: skip
        if (part >= KEYS) & (part < 2 * KEYS):
            _walk(
                v, do, q, dk, log_decay, dend, after, None, cu_seqlens,
                part - KEYS, h, n, index, row, begin, tokens,
                v_batch, v_time, v_head, do_batch, do_time, do_head, q_batch, q_time, q_head,
                dk_batch, dk_time, dk_head, time, heads, length, span, scale,
                DV, DK, BV, TILE_K, CHUNK, True, True, SCALED, TMA, DEEP, DTYPE, PRECISION,
            )  # fmt: skip
        if part >= 2 * KEYS:
            _walk(
                k, q, do, dv, log_decay, dend, after, dstart, cu_seqlens,
                part - 2 * KEYS, h, n, index, row, begin, tokens,
                k_batch, k_time, k_head, q_batch, q_time, q_head, do_batch, do_time, do_head,
                dv_batch, dv_time, dv_head, time, heads, length, span, scale,
                DK, DV, BK, TILE_V, CHUNK, True, False, SCALED, TMA, DEEP, DTYPE, PRECISION,
            )  # fmt: skip
