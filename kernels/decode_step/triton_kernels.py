"""One token of decayed linear attention: a program updates some columns of a head's state and gives their
outputs.

The state is the traffic: it is asked for first, so that it travels while φ, cos and sin are computed, and
is read and written once. Columns are independent of each other, so that nothing is added up between
programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tnbench.kernels.lrpe.triton_kernels import _cos_sin

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _feature(x, r, DIM: tl.constexpr, FEATURE: tl.constexpr):
    """φ of fp32 values. Softmax counts the channels of the head once: those of rows r below DIM."""
    if FEATURE == "swish":
        x = x / (1.0 + tl.exp2(-x * LOG2E))
    elif FEATURE == "1+elu":
        x = tl.where(x > 0, x + 1.0, tl.exp2(x * LOG2E))
    elif FEATURE == "elu":
        x = tl.where(x > 0, x, tl.exp2(x * LOG2E) - 1.0)
    elif FEATURE == "relu":
        x = tl.maximum(x, 0.0)
    elif FEATURE == "squared-relu":
        x = tl.maximum(x, 0.0)
        x = x * x
    elif FEATURE == "sigmoid":
        x = 1.0 / (1.0 + tl.exp2(-x * LOG2E))
    elif FEATURE == "softmax":
        top = tl.max(tl.where(r < DIM, x, float("-inf")), 0)
        x = tl.exp2((x - top) * LOG2E)
        x = x / tl.sum(tl.where(r < DIM, x, 0.0), 0)
    return x


@triton.jit
def _channels(x, j, r, DIM: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr):
    """φ(x_j) for the rows r of the state, j below DIM."""
    return _feature(tl.load(x + j, mask=r < ROWS, other=0.0).to(tl.float32), r, DIM, FEATURE)


@triton.jit
def _operand(
    x, r, cos, sin, DIM: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr, FORM: tl.constexpr
):
    """q or k as the rows r of the state meet it, zero beyond them.

    cosine: [φ(x) cos, φ(x) sin], 2 DIM rows; rotation: pairs (j, j + DIM / 2) turn.
    """
    if FORM == "cosine":
        values = _channels(x, r % DIM, r, DIM, ROWS, FEATURE) * tl.where(r < DIM, cos, sin)
    else:
        values = _channels(x, r, r, DIM, ROWS, FEATURE)
        if FORM == "rotation":
            other = _channels(x, (r + DIM // 2) % DIM, r, DIM, ROWS, FEATURE)
            values = values * cos + tl.where(r < DIM // 2, -other, other) * sin
    return tl.where(r < ROWS, values, 0.0)


@triton.jit(do_not_specialize=["heads", "theta_head", "position_batch"])
def decode_step(
    q, k, v, log_decay, state, theta, position, out,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, state_batch, state_head, theta_head, position_batch,
    heads, scale,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    FEATURE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Program (tile of columns, head, batch row), tiles fastest: whole rows of a state are read together.

    Args:
        q, k: (batch, heads, DIM); v: (batch, heads, COLUMNS); out like v, contiguous.
        state: (batch, heads, ROWS, COLUMNS) fp32, read and written.
        theta: (heads or 1, angles), position: (batch or 1,), unless FORM is `none`.
        FORM: `none`, `cosine` or `rotation`.
    """
    pid = tl.program_id(0)
    tiles: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    index = pid // tiles
    h = index % heads
    row = (index // heads).to(tl.int64)
    r = tl.arange(0, BLOCK)
    z = pid % tiles * TILE + tl.arange(0, TILE)
    mask = None
    if ROWS % BLOCK != 0 or COLUMNS % TILE != 0:
        mask = (r < ROWS)[:, None] & (z < COLUMNS)[None, :]
    held = state + row * state_batch + h.to(tl.int64) * state_head + r[:, None] * COLUMNS + z[None, :]
    values = tl.load(held, mask=mask)
    column = tl.load(v + row * v_batch + h * v_head + z, mask=z < COLUMNS, other=0.0).to(tl.float32)
    cos = 1.0
    sin = 0.0
    if FORM != "none":
        ANGLES: tl.constexpr = DIM if FORM == "cosine" else DIM // 2
        n = tl.load(position + row * position_batch).to(tl.float32)
        turn = tl.load(theta + h * theta_head + r % ANGLES).to(tl.float32)
        cos, sin = _cos_sin(n, turn)  # pyright: ignore[reportGeneralTypeIssues]
    qr = _operand(q + row * q_batch + h * q_head, r, cos, sin, DIM, ROWS, FEATURE, FORM)
    kr = _operand(k + row * k_batch + h * k_head, r, cos, sin, DIM, ROWS, FEATURE, FORM)
    if log_decay is not None:
        values = values * tl.exp2(tl.load(log_decay + h) * LOG2E)
    values += kr[:, None] * column[None, :]
    tl.store(held, values, mask=mask)
    if mask is not None:
        values = tl.where(mask, values, 0.0)  # nothing was loaded there
    o = tl.sum(qr[:, None] * values, 0) * scale
    tl.store(out + index.to(tl.int64) * COLUMNS + z, o.to(out.dtype.element_ty), mask=z < COLUMNS)
