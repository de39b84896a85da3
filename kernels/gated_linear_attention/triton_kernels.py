"""Feature maps on queries and keys where they lie: two slices of a fused projection, side by side.

Row i of the projection stands at i · outer, with `outer` divided by ALIGN: multiplied back in here, it tells
the compiler that 16-byte accesses are possible.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tnbench.kernels.normalisation.triton_kernels import _activated

NUMBERS = ["rows", "outer"]


@triton.jit
def _mapped(x, MAP: tl.constexpr):
    """φ(x) and φ'(x)."""
    if MAP == "swish" or MAP == "sigmoid":
        value, slope = _activated(x, MAP)  # pyright: ignore[reportGeneralTypeIssues]
    elif MAP == "relu":
        value = tl.maximum(x, 0.0)
        slope = tl.where(x > 0, 1.0, 0.0)
    elif MAP == "squared-relu":
        value = tl.maximum(x, 0.0)
        slope = 2 * value
        value = value * value
    else:  # elu, and 1 + elu
        below = tl.exp(tl.minimum(x, 0.0))
        value = tl.where(x > 0, x, below - 1)
        slope = below
        if MAP == "1+elu":
            value += 1
    return value, slope


@triton.jit
def _tile(rows, outer, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets of a tile in the projection and in (rows, WIDTH), and its mask."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (index < rows)[:, None]
    if WIDTH % BLOCK != 0:
        mask = mask & (columns < WIDTH)
    wide = index.to(tl.int64)[:, None]
    return wide * outer * ALIGN + columns, wide * WIDTH + columns, mask


@triton.jit(do_not_specialize=NUMBERS)
def map_forward(
    x, y, rows, outer,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """y (rows, WIDTH) = φ of the first WIDTH columns of x."""
    at, own, mask = _tile(rows, outer, WIDTH, BLOCK, ROWS, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    value, _ = _mapped(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), MAP)
    tl.store(y + own, value.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=NUMBERS)
def map_backward(
    x, dx, rows, outer,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """dx ← dx ⊙ φ'(x) in the first WIDTH columns of dx, which lies as x does."""
    at, _, mask = _tile(rows, outer, WIDTH, BLOCK, ROWS, ALIGN)  # pyright: ignore[reportGeneralTypeIssues]
    _, slope = _mapped(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), MAP)
    incoming = tl.load(dx + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + at, (incoming * slope).to(dx.dtype.element_ty), mask=mask)
