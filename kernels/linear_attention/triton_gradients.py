"""Triton kernel of d log λ, chunk by chunk. Conventions and helpers are those of triton_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from tnbench.kernels.linear_attention.triton_kernels import (
    load_state,
    locate,
    log2_decay,
    state_mask,
    tile_mask,
)


@triton.jit(do_not_specialize=["sequences", "time", "heads", "chunks", "scale"])
def decay_gradient(
    q, k, v, do, out, log_decay, before, after, cu_seqlens,
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head, do_batch, do_time, do_head,
    sequences, time, heads, chunks, scale,
    DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A chunk's part of d log λ, into out (chunks of all, heads) fp32.

    d log λ = Σ_i <R_i, S_i> over all tokens i. With S before the chunk of n tokens and R after it, the
    chunk's part is

        n λ^n <R, S> + Σ_r (r+1) λ^(r+1) scale q_r S do_r + Σ_r (n-1-r) λ^(n-1-r) k_r R v_r
        + Σ_{s<r} (r-s) λ^(r-s) scale (q_r·k_s) (v_s·do_r)

    which, unlike Σ_r r (q_r·dq_r - k_r·dk_r), sums no large terms that cancel.
    """
    pid = tl.program_id(0)
    h = pid % heads
    unit = pid // heads
    _n, index, row, begin, tokens, _base = locate(unit, cu_seqlens, sequences, time, CHUNK, chunks)  # pyright: ignore[reportGeneralTypeIssues]
    first = index * CHUNK
    total = 0.0
    if first < tokens:
        rate = log2_decay(log_decay, h)
        left = tl.minimum(CHUNK, tokens - first)
        r = tl.arange(0, CHUNK)
        x = tl.arange(0, BK)
        row64 = row.to(tl.int64)
        h64 = h.to(tl.int64)
        token = (begin + first).to(tl.int64)
        q += row64 * q_batch + h64 * q_head + token * q_time
        k += row64 * k_batch + h64 * k_head + token * k_time
        v += row64 * v_batch + h64 * v_head + token * v_time
        do += row64 * do_batch + h64 * do_head + token * do_time
        place = (unit * heads + h).to(tl.int64) * (DK * DV)
        keys = tile_mask(r, x, left, DK, BK)
        qt = tl.load(q + r[:, None] * q_time + x[None, :], mask=keys, other=0.0).to(DTYPE)
        kt = tl.load(k + r[:, None] * k_time + x[None, :], mask=keys, other=0.0).to(DTYPE)
        gap = r[:, None] - r[None, :]
        weight = tl.where(gap > 0, tl.exp2(rate * tl.maximum(gap, 0)) * gap, 0.0) * scale
        scores = tl.dot(qt, tl.trans(kt), input_precision=PRECISION) * weight
        reach = tl.exp2(rate * (r + 1)) * (r + 1) * scale
        remain = tl.maximum(left - 1 - r, 0)
        remain = tl.exp2(rate * remain) * remain
        whole = tl.exp2(rate * left) * left
        pairs = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        rows = tl.zeros([CHUNK], dtype=tl.float32)
        corner = tl.zeros([BK], dtype=tl.float32)
        for tile in range((DV + TILE - 1) // TILE):
            z = tile * TILE + tl.arange(0, TILE)
            values = tile_mask(r, z, left, DV, TILE)
            vt = tl.load(v + r[:, None] * v_time + z[None, :], mask=values, other=0.0).to(DTYPE)
            dot = tl.load(do + r[:, None] * do_time + z[None, :], mask=values, other=0.0).to(DTYPE)
            mask = state_mask(x, z, DK, DV, BK, TILE)
            offsets = x[:, None] * DV + z[None, :]
            s = load_state(before + place, offsets, mask)
            g = load_state(after + place, offsets, mask)
            corner += tl.sum(s * g, axis=1)
            part = tl.dot(qt, s.to(DTYPE), input_precision=PRECISION) * dot.to(tl.float32)
            rows += tl.sum(part, axis=1) * reach
            part = tl.dot(kt, g.to(DTYPE), input_precision=PRECISION) * vt.to(tl.float32)
            rows += tl.sum(part, axis=1) * remain
            pairs = tl.dot(dot, tl.trans(vt), pairs, input_precision=PRECISION)
        total = tl.sum(corner) * whole + tl.sum(rows) + tl.sum(tl.sum(scores * pairs, axis=1))
    tl.store(out + unit * heads + h, total)
