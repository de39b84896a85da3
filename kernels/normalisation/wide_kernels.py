"""Norms of rows too wide for the registers: the same equations as triton_kernels.py, in several passes.

One row a program; the later passes find most of the row in the L2 cache. The weight's gradient is a launch
of its own, over columns, from the row statistics that the backward leaves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tnbench.kernels.normalisation.triton_kernels import (
    BACKWARD_NUMBERS,
    FORWARD_NUMBERS,
    _activated,
    _offsets,
)


@triton.jit
def _summed(x, residual, total, at, mask):
    """x, or x + r rounded as it is stored, in fp32."""
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        values += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        values = values.to(total.dtype.element_ty).to(tl.float32)
    return values


@triton.jit(do_not_specialize=FORWARD_NUMBERS[1:])
def forward_wide(
    x, residual, gate, weight, bias, total, y,
    groups, x_outer, x_inner, r_outer, r_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y (and r') of one row a program."""
    row = tl.program_id(0)
    own = row.to(tl.int64) * WIDTH
    x += _offsets(row, groups, x_outer, x_inner, GROUPED, ALIGN)
    if residual is not None:
        residual += _offsets(row, groups, r_outer, r_inner, GROUPED, ALIGN)
    if gate is not None:
        gate += _offsets(row, groups, u_outer, u_inner, GROUPED, ALIGN)
    mean = 0.0
    if CENTRED:
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            sums += _summed(x, residual, total, columns, columns < WIDTH)
        mean = tl.sum(sums, 0) / WIDTH
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < WIDTH
        values = tl.where(mask, _summed(x, residual, total, columns, mask) - mean, 0.0)
        squares += values * values
    r = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < WIDTH
        values = _summed(x, residual, total, columns, mask)
        if residual is not None:
            tl.store(total + own + columns, values.to(total.dtype.element_ty), mask=mask)
        values = (values - mean) * r
        if weight is not None:
            values *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            values += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
        if gate is not None:
            u = tl.load(gate + columns, mask=mask, other=0.0).to(tl.float32)
            values *= _activated(u, ACTIVATION)[0]
        tl.store(y + own + columns, values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _incoming(dy, gate, weight, at, mask, ACTIVATION: tl.constexpr):
    """dn ⊙ w and dy ⊙ a'(u), 0 outside the row."""
    g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    to_gate = g
    if gate is not None:
        u = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
        activated, slope = _activated(u, ACTIVATION)  # pyright: ignore[reportGeneralTypeIssues]
        to_gate = g * slope
        g *= activated
    if weight is not None:
        g *= tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    return g, to_gate


@triton.jit(do_not_specialize=BACKWARD_NUMBERS[1:])
def backward_wide(
    dy, dtotal, x, gate, weight, bias, dx, dgate, means, scales,
    groups, dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """dx and du of one row a program, and the row's m and r for `weight_gradient` if there is a weight."""
    row = tl.program_id(0)
    own = row.to(tl.int64) * WIDTH
    x += _offsets(row, groups, x_outer, x_inner, GROUPED, ALIGN)
    dy += _offsets(row, groups, dy_outer, dy_inner, GROUPED, ALIGN)
    if dtotal is not None:
        dtotal += _offsets(row, groups, dt_outer, dt_inner, GROUPED, ALIGN)
    if gate is not None:
        gate += _offsets(row, groups, u_outer, u_inner, GROUPED, ALIGN)
    mean = 0.0
    if CENTRED:
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            sums += tl.load(x + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        mean = tl.sum(sums, 0) / WIDTH
    squares = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((BLOCK,), tl.float32)
    level = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < WIDTH
        values = tl.where(mask, tl.load(x + columns, mask=mask, other=0.0).to(tl.float32) - mean, 0.0)
        g = _incoming(dy, gate, weight, columns, mask, ACTIVATION)[0]
        squares += values * values
        along += values * g
        level += g
    r = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
    share = tl.sum(along, 0) * r / WIDTH
    average = 0.0
    if CENTRED:
        average = tl.sum(level, 0) / WIDTH
    if scales is not None:
        tl.store(means + row, mean)
        tl.store(scales + row, r)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < WIDTH
        normed = (tl.load(x + columns, mask=mask, other=0.0).to(tl.float32) - mean) * r
        g, to_gate = _incoming(dy, gate, weight, columns, mask, ACTIVATION)
        result = (g - normed * share - average) * r
        if dtotal is not None:
            result += tl.load(dtotal + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + own + columns, result.to(dx.dtype.element_ty), mask=mask)
        if gate is not None:
            n = normed
            if weight is not None:
                n *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
            if bias is not None:
                n += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
            tl.store(dgate + own + columns, (to_gate * n).to(dgate.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[n for n in BACKWARD_NUMBERS if not n.startswith("dt_")])
def weight_gradient(
    dy, x, gate, means, scales, dweight, dbias,
    rows, groups, dy_outer, dy_inner, x_outer, x_inner, u_outer, u_inner,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Parts of dw and db, (shares, WIDTH) fp32: a block of columns (axis 0), a share of rows (axis 1)."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    db = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        index = tile * ROWS + tl.arange(0, ROWS)
        mask = (index < rows)[:, None] & (columns < WIDTH)
        at = _offsets(index, groups, dy_outer, dy_inner, GROUPED, ALIGN)[:, None] + columns
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        if gate is not None:
            at = _offsets(index, groups, u_outer, u_inner, GROUPED, ALIGN)[:, None] + columns
            g *= _activated(tl.load(gate + at, mask=mask, other=0.0).to(tl.float32), ACTIVATION)[0]
        at = _offsets(index, groups, x_outer, x_inner, GROUPED, ALIGN)[:, None] + columns
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(means + index, mask=index < rows, other=0.0)
        r = tl.load(scales + index, mask=index < rows, other=0.0)
        dw += g * (values - mean[:, None]) * r[:, None]
        db += g
    at = tl.program_id(1).to(tl.int64) * WIDTH + columns
    if dweight is not None:
        tl.store(dweight + at, tl.sum(dw, 0)[None, :], mask=columns < WIDTH)
    if dbias is not None:
        tl.store(dbias + at, tl.sum(db, 0)[None, :], mask=columns < WIDTH)
