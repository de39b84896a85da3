"""LRPE on queries and keys in one launch, forward and backward.

For a channel pair (a, b) of token n with phase nθ:

    A = a cos − b sin          da = dA cos + dB sin          dθ = Σ n (dB A − dA B), over tokens, q and k
    B = a sin + b cos          db = dB cos − dA sin

The rotation form pairs channels j and j + P of a head of 2P channels. The cosine form [x cos, x sin] is the
same with b = 0 and P = d: PAIRED says whether b is there. Channels are walked in the order head · P + j, so
that a program reads whole lines of a fused projection; sin and cos serve q and k both.

A tile is STEPS tokens in a row of BLOCK channels. Its first phase is computed, the next ones follow by
turning on by θ: 4 operations in place of 30, and STEPS roundings at most. The next token is read before the
last is written.

Token i of batch b stands at b · outer + i · inner; these strides and that of the heads come divided by ALIGN,
which promises 16-byte accesses to the compiler. Numbers are not specialised (normalisation/launching.py says
why).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cos_sin(position, theta):
    """cos and sin of position · θ, to about 1e-7, at any position up to 2^24.

    The product is taken with its rounding error, and π/2 is taken off in two parts, exactly: a plain fp32
    phase is off by 4e-3 at a hundred thousand radians. The library's own functions keep a slow path in local
    memory.
    """
    phase = position * theta
    error = tl.fma(position, theta, -phase)
    turns = tl.floor(phase * 0.6366197723675814 + 0.5)
    # π/2 = 1.57079637… − 4.3711388e-8, the first part a float.
    r = tl.fma(turns, -1.5707963705062866, phase)
    r = tl.fma(turns, 4.371138828673793e-8, r) + error
    # Least-squares polynomials on [−0.8, 0.8], a little more than a quadrant.
    z = r * r
    sine = r + r * z * (-0.166666478 + z * (0.00833185297 - z * 0.00019480534))
    cosine = 1.0 - 0.5 * z + z * z * (0.0416666456 + z * (-0.00138872233 + z * 2.44222065e-05))
    quadrant = turns.to(tl.int32)
    swap = (quadrant & 1) != 0
    cos = tl.where(swap, sine, cosine)
    sin = tl.where(swap, cosine, sine)
    cos = tl.where(((quadrant + 1) & 2) != 0, -cos, cos)
    sin = tl.where((quadrant & 2) != 0, -sin, sin)
    return cos, sin


STRIDES = [f"{tensor}_{axis}" for tensor in ("q", "k", "dq", "dk") for axis in ("outer", "inner", "head")]
NUMBERS = ["batch", "time", "start"]


@triton.jit
def _read(x, at, mask):
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(x, at, values, mask):
    tl.store(x + at, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _at(batch, token, channel, outer, inner, head, ANGLES: tl.constexpr, ALIGN: tl.constexpr):
    """Where channel (head · ANGLES + j) of a token stands, for j in the first half of the head."""
    row = batch.to(tl.int64) * outer * ALIGN + token.to(tl.int64) * inner * ALIGN
    return row + (channel // ANGLES) * head * ALIGN + channel % ANGLES


@triton.jit
def _pair(x, at, mask, ANGLES: tl.constexpr, PAIRED: tl.constexpr):
    """a and b; b is a itself where the form has none."""
    a = tl.load(x + at, mask=mask, other=0.0)
    b = a
    if PAIRED:
        b = tl.load(x + at + ANGLES, mask=mask, other=0.0)
    return a, b


@triton.jit
def _turned(a, b, cos, sin, PAIRED: tl.constexpr):
    """A and B."""
    a = a.to(tl.float32)
    first, second = a * cos, a * sin
    if PAIRED:
        b = b.to(tl.float32)
        first -= b * sin
        second += b * cos
    return first, second


@triton.jit
def _on(cos, sin, step_cos, step_sin):
    """cos and sin of the next token."""
    return cos * step_cos - sin * step_sin, sin * step_cos + cos * step_sin


@triton.jit(do_not_specialize=[*NUMBERS, *STRIDES[:6]])
def rotate(
    q, k, theta, q_out, k_out,
    start, time, q_outer, q_inner, q_head, k_outer, k_inner, k_head,
    CHANNELS: tl.constexpr, ANGLES: tl.constexpr, PAIRED: tl.constexpr, SHARED: tl.constexpr,
    ALIGN: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile: axis 0 walks the STEPS tokens of all sequences, axis 1 the channels."""
    tiles = tl.cdiv(time, STEPS)
    batch = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * STEPS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    turn = _read(theta, channel % ANGLES if SHARED else channel, inside)
    within = (channel // ANGLES) * (2 * ANGLES) + channel % ANGLES
    q_at = _at(batch, first, channel, q_outer, q_inner, q_head, ANGLES, ALIGN)
    k_at = _at(batch, first, channel, k_outer, k_inner, k_head, ANGLES, ALIGN)
    qa, qb = _pair(q, q_at, inside, ANGLES, PAIRED)
    ka, kb = _pair(k, k_at, inside, ANGLES, PAIRED)
    cos, sin = _cos_sin((start + first).to(tl.float32), turn)
    out = (batch * time + first).to(tl.int64) * (2 * CHANNELS) + within
    step_cos, step_sin = cos, sin
    if STEPS > 1:
        step_cos, step_sin = _cos_sin(1.0, turn)
    end = tl.minimum(first + STEPS, time)
    for token in range(first, end):
        q_now, q_now_b, k_now, k_now_b = qa, qb, ka, kb
        if STEPS > 1:
            there = inside & (token + 1 < end)
            q_at += q_inner * ALIGN
            k_at += k_inner * ALIGN
            qa, qb = _pair(q, q_at, there, ANGLES, PAIRED)
            ka, kb = _pair(k, k_at, there, ANGLES, PAIRED)
        one, other = _turned(q_now, q_now_b, cos, sin, PAIRED)
        _write(q_out, out, one, inside)
        _write(q_out, out + ANGLES, other, inside)
        one, other = _turned(k_now, k_now_b, cos, sin, PAIRED)
        _write(k_out, out, one, inside)
        _write(k_out, out + ANGLES, other, inside)
        out += 2 * CHANNELS
        if STEPS > 1:
            cos, sin = _on(cos, sin, step_cos, step_sin)


@triton.jit
def _turned_back(
    dx, own, mask, a, b, da, db, cos, sin, LEARNED: tl.constexpr, ANGLES: tl.constexpr, PAIRED: tl.constexpr
):
    """Writes dx of q or of k; returns dB A − dA B if θ is learned, else zeros."""
    da, db = da.to(tl.float32), db.to(tl.float32)
    _write(dx, own, da * cos + db * sin, mask)
    if PAIRED:
        _write(dx, own + ANGLES, db * cos - da * sin, mask)
    torque = tl.zeros(da.shape, tl.float32)
    if LEARNED:
        first, second = _turned(a, b, cos, sin, PAIRED)
        torque = db * first - da * second
    return torque


@triton.jit(do_not_specialize=[*NUMBERS, *STRIDES])
def rotate_backward(
    q, k, theta, dq_out, dk_out, dq, dk, dtheta,
    start, batch, time, q_outer, q_inner, q_head, k_outer, k_inner, k_head,
    dq_outer, dq_inner, dq_head, dk_outer, dk_inner, dk_head,
    CHANNELS: tl.constexpr, ANGLES: tl.constexpr, PAIRED: tl.constexpr, SHARED: tl.constexpr,
    ALIGN: tl.constexpr, LEARNED: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dq, dk, and if LEARNED the (programs of axis 0, CHANNELS) fp32 parts of dθ, for which q and k are read.

    Each program walks its tiles in their order, and `column_sums` the programs: the same bits every time.
    """
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    turn = _read(theta, channel % ANGLES if SHARED else channel, inside)
    step_cos, step_sin = _cos_sin(1.0, turn)
    WIDTH: tl.constexpr = 2 * ANGLES if PAIRED else ANGLES
    within = channel // ANGLES * WIDTH + channel % ANGLES
    total = tl.zeros((BLOCK,), tl.float32)
    tiles = tl.cdiv(time, STEPS)
    for tile in range(tl.program_id(0), batch * tiles, tl.num_programs(0)):
        row = tile // tiles
        first = tile % tiles * STEPS
        dq_at = _at(row, first, channel, dq_outer, dq_inner, dq_head, ANGLES, ALIGN)
        dk_at = _at(row, first, channel, dk_outer, dk_inner, dk_head, ANGLES, ALIGN)
        q_da, q_db = _pair(dq_out, dq_at, inside, ANGLES, True)
        k_da, k_db = _pair(dk_out, dk_at, inside, ANGLES, True)
        qa, qb, ka, kb = q_da, q_db, k_da, k_db
        q_at, k_at = dq_at, dk_at
        if LEARNED:
            q_at = _at(row, first, channel, q_outer, q_inner, q_head, ANGLES, ALIGN)
            k_at = _at(row, first, channel, k_outer, k_inner, k_head, ANGLES, ALIGN)
            qa, qb = _pair(q, q_at, inside, ANGLES, PAIRED)
            ka, kb = _pair(k, k_at, inside, ANGLES, PAIRED)
        position = (start + first).to(tl.float32)
        cos, sin = _cos_sin(position, turn)
        own = (row * time + first).to(tl.int64) * (CHANNELS // ANGLES * WIDTH) + within
        end = tl.minimum(first + STEPS, time)
        for token in range(first, end):
            now_q_da, now_q_db, now_k_da, now_k_db = q_da, q_db, k_da, k_db
            now_qa, now_qb, now_ka, now_kb = qa, qb, ka, kb
            there = inside & (token + 1 < end)
            dq_at += dq_inner * ALIGN
            dk_at += dk_inner * ALIGN
            q_da, q_db = _pair(dq_out, dq_at, there, ANGLES, True)
            k_da, k_db = _pair(dk_out, dk_at, there, ANGLES, True)
            if LEARNED:
                q_at += q_inner * ALIGN
                k_at += k_inner * ALIGN
                qa, qb = _pair(q, q_at, there, ANGLES, PAIRED)
                ka, kb = _pair(k, k_at, there, ANGLES, PAIRED)
            torque = _turned_back(
                dq, own, inside, now_qa, now_qb, now_q_da, now_q_db, cos, sin, LEARNED, ANGLES, PAIRED
            )
            torque += _turned_back(
                dk, own, inside, now_ka, now_kb, now_k_da, now_k_db, cos, sin, LEARNED, ANGLES, PAIRED
            )
            if LEARNED:
                total += position * torque
            position += 1.0
            own += CHANNELS // ANGLES * WIDTH
            cos, sin = _on(cos, sin, step_cos, step_sin)
    if LEARNED:
        tl.store(dtheta + tl.program_id(0) * CHANNELS + channel, total, mask=inside)
