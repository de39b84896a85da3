"""Norms in Triton: one read of the row and one write, statistics in fp32.

With x̂ = (x − m) r, r = 1 / sqrt(mean((x − m)²) + eps), n = x̂ ⊙ w + b and y = n ⊙ a(u):

    dn = dy ⊙ a(u)        du = dy ⊙ n ⊙ a'(u)        dw = Σ dn ⊙ x̂        db = Σ dn
    g  = dn ⊙ w           dx = r (g − mean(g) − x̂ mean(g ⊙ x̂)) + dr'

where m and mean(g) are there for LayerNorm only, and dr' for the residual form (r' = x + r, y = norm(r')).
The backward reads x anyway, so it recomputes r: nothing but the inputs is kept.

Row i of an input stands at i · outer, or if GROUPED at (i // groups) · outer + (i % groups) · inner, so that
slices of a fused projection, split into heads or not, are read where they are. Both strides come divided by
ALIGN: multiplied back in here, they tell the compiler that 16-byte accesses are possible. Outputs are
contiguous, but for du, which lies as u does if ALIKE: in a slice of the fused projection's gradient. Numbers
are not specialised, so that a compiled kernel is found by dtypes and constants alone (launching.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

FORWARD_NUMBERS = ["rows", "groups", "x_outer", "x_inner", "r_outer", "r_inner", "u_outer", "u_inner"]
BACKWARD_NUMBERS = [
    "rows", "groups", "dy_outer", "dy_inner", "dt_outer", "dt_inner",
    "x_outer", "x_inner", "u_outer", "u_inner",
]  # fmt: skip

HELD = tl.constexpr(8192)  # widest block whose weight stays in registers while a program walks its tiles


@triton.jit
def _offsets(index, groups, outer, inner, GROUPED: tl.constexpr, ALIGN: tl.constexpr):
    at = index.to(tl.int64) * outer * ALIGN
    if GROUPED:
        at = (index // groups).to(tl.int64) * outer * ALIGN + (index % groups).to(tl.int64) * inner * ALIGN
    return at


@triton.jit
def _read(x, index, columns, mask, groups, outer, inner, GROUPED: tl.constexpr, ALIGN: tl.constexpr):
    at = _offsets(index, groups, outer, inner, GROUPED, ALIGN)[:, None] + columns
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read_again(x, index, columns, mask, groups, outer, inner, GROUPED: tl.constexpr, ALIGN: tl.constexpr):
    """For what registers cannot keep. The other policy keeps the compiler from taking two reads for one."""
    at = _offsets(index, groups, outer, inner, GROUPED, ALIGN)[:, None] + columns
    return tl.load(x + at, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def _activated(u, ACTIVATION: tl.constexpr):
    """a(u) and a'(u)."""
    if ACTIVATION == "swish":
        s = tl.sigmoid(u)
        value = u * s
        slope = s * (1 + u * (1 - s))
    elif ACTIVATION == "sigmoid":
        value = tl.sigmoid(u)
        slope = value * (1 - value)
    else:
        value = u
        slope = tl.full(u.shape, 1.0, tl.float32)
    return value, slope


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit(do_not_specialize=FORWARD_NUMBERS)
def forward(
    x, residual, gate, weight, bias, total, y,
    rows, groups, x_outer, x_inner, r_outer, r_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y (and r') of a tile of ROWS whole rows."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (index < rows)[:, None] & (columns < WIDTH)
    own = index.to(tl.int64)[:, None] * WIDTH + columns
    values = _read(x, index, columns, mask, groups, x_outer, x_inner, GROUPED, ALIGN)
    if gate is not None:
        # Asked for before the sums, so that both reads are under way at once.
        u = _read(gate, index, columns, mask, groups, u_outer, u_inner, GROUPED, ALIGN)
    if residual is not None:
        values += _read(residual, index, columns, mask, groups, r_outer, r_inner, GROUPED, ALIGN)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + own, rounded, mask=mask)
        values = rounded.to(tl.float32)
    if CENTRED:
        values = tl.where(mask, values - (tl.sum(values, 1) / WIDTH)[:, None], 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)[:, None]
    if weight is not None:
        values *= tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if bias is not None:
        values += tl.load(bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if gate is not None:
        values *= _activated(u, ACTIVATION)[0]
    tl.store(y + own, values.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_tile(
    tile, dy, dtotal, x, gate, weight, w, bias, dx, dgate, rows, groups,
    dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """Writes dx and du; returns what the tile adds to dw and db, row by row. `w`: the weight, if held."""
    index = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (index < rows)[:, None] & (columns < WIDTH)
    own = index.to(tl.int64)[:, None] * WIDTH + columns
    values = _read(x, index, columns, mask, groups, x_outer, x_inner, GROUPED, ALIGN)
    dn = _read(dy, index, columns, mask, groups, dy_outer, dy_inner, GROUPED, ALIGN)
    if gate is not None:
        u = _read(gate, index, columns, mask, groups, u_outer, u_inner, GROUPED, ALIGN)
        activated, slope = _activated(u, ACTIVATION)
        incoming = dn * slope
        dn *= activated
    if dtotal is not None:
        passed = _read(dtotal, index, columns, mask, groups, dt_outer, dt_inner, GROUPED, ALIGN)
    if CENTRED:
        values = tl.where(mask, values - (tl.sum(values, 1) / WIDTH)[:, None], 0.0)
    g = dn
    if weight is not None:
        if w is None:
            w = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        g = dn * w
    # Both sums in one exchange between the warps.
    squares, along = tl.reduce((values * values, values * g), 1, _add_pairs)
    r = tl.rsqrt(squares / WIDTH + eps)
    normed = values * r[:, None]
    if CENTRED:
        level = (tl.sum(g, 1) / WIDTH)[:, None]
    if weight is not None and BLOCK > HELD:
        # Read again, as in `_read_again`.
        w = tl.load(weight + columns, mask=columns < WIDTH, other=0.0, eviction_policy="evict_last")
        w = w.to(tl.float32)
        g = dn * w
    result = g - normed * (along * r / WIDTH)[:, None]
    if CENTRED:
        result -= level
    result *= r[:, None]
    if dtotal is not None:
        result += passed
    tl.store(dx + own, result.to(dx.dtype.element_ty), mask=mask)
    if gate is not None:
        if ACTIVATION != "none" and BLOCK > HELD:
            u = _read_again(gate, index, columns, mask, groups, u_outer, u_inner, GROUPED, ALIGN)
            incoming = _read_again(dy, index, columns, mask, groups, dy_outer, dy_inner, GROUPED, ALIGN)
            incoming *= _activated(u, ACTIVATION)[1]
        n = normed
        if weight is not None:
            n *= w
        if bias is not None:
            n += tl.load(bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        to = own
        if ALIKE:
            to = _offsets(index, groups, u_outer, u_inner, GROUPED, ALIGN)[:, None] + columns
        tl.store(dgate + to, (incoming * n).to(dgate.dtype.element_ty), mask=mask)
    return dn * normed, dn


@triton.jit(do_not_specialize=BACKWARD_NUMBERS)
def backward(
    dy, dtotal, x, gate, dx, dgate,
    rows, groups, dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """dx and du of a tile of ROWS whole rows, without weight and bias."""
    _backward_tile(
        tl.program_id(0), dy, dtotal, x, gate, None, None, None, dx, dgate, rows, groups,
        dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
        WIDTH, BLOCK, ROWS, GROUPED, ALIGN, CENTRED, ACTIVATION, ALIKE,
    )  # fmt: skip


@triton.jit(do_not_specialize=BACKWARD_NUMBERS)
def summing_backward(
    dy, dtotal, x, gate, weight, bias, dx, dgate, dweight, dbias,
    rows, groups, dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUPED: tl.constexpr, ALIGN: tl.constexpr,
    CENTRED: tl.constexpr, ACTIVATION: tl.constexpr, ALIKE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx, du, and the parts of dw and db, (programs, WIDTH) fp32 each.

    Each program sums its own tiles in their order, and `column_sums` the programs: the same bits every time.
    """
    w = None
    if weight is not None and BLOCK <= HELD:
        # Before the loop, whose pipeline would set memory aside for it.
        columns = tl.arange(0, BLOCK)[None, :]
        w = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if dweight is not None:
        dw = tl.zeros((ROWS, BLOCK), tl.float32)
    if dbias is not None:
        db = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(  # pyright: ignore[reportGeneralTypeIssues]
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES
    ):
        to_weight, to_bias = _backward_tile(
            tile, dy, dtotal, x, gate, weight, w, bias, dx, dgate, rows, groups,
            dy_outer, dy_inner, dt_outer, dt_inner, x_outer, x_inner, u_outer, u_inner, eps,
            WIDTH, BLOCK, ROWS, GROUPED, ALIGN, CENTRED, ACTIVATION, ALIKE,
        )  # fmt: skip
        if dweight is not None:
            dw += to_weight
        if dbias is not None:
            db += to_bias
    columns = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * WIDTH + columns
    if dweight is not None:
        tl.store(dweight + at, tl.sum(dw, 0), mask=columns < WIDTH)
    if dbias is not None:
        tl.store(dbias + at, tl.sum(db, 0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def column_sums(parts, out, other, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """out (WIDTH,) = the columns of parts (rows, WIDTH) fp32, summed in a fixed order; axis 1: `other`."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    parts += tl.program_id(1).to(tl.int64) * rows * WIDTH
    for start in range(0, rows, ROWS):
        index = start + tl.arange(0, ROWS)[:, None]
        mask = (index < rows) & (columns < WIDTH)
        total += tl.load(parts + index.to(tl.int64) * WIDTH + columns, mask=mask, other=0.0)
    sums = tl.sum(total, 0)[None, :]
    if other is None:
        tl.store(out + columns, sums.to(out.dtype.element_ty), mask=columns < WIDTH)
    else:
        first = tl.program_id(1) == 0
        tl.store(out + columns, sums.to(out.dtype.element_ty), mask=(columns < WIDTH) & first)
        tl.store(other + columns, sums.to(other.dtype.element_ty), mask=(columns < WIDTH) & (first == 0))
