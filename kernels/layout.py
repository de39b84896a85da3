"""How tensors must lie in memory for the kernels that multiply tiles.

Rows are read in steps of 16 bytes. Rows that begin elsewhere, or end inside such a step, would be read value
by value into registers; products of tiles read in this way came out wrong on sm_90 (Triton 3.6), which
tests/test_kernels_on_gpu.py watches.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

STEP = 16
"""Bytes."""

WIDEST = 256
"""The largest head dim that the kernels take."""


def power(dim: int) -> int:
    """Columns of the tile that holds a head dim: a power of two, at least 16 for the tensor cores."""
    return max(16, 1 << (dim - 1).bit_length())


def missing(x: Tensor) -> int:
    """Columns by which the last dim must grow to fill whole steps."""
    return -x.shape[-1] % (STEP // x.element_size())


def widened(x: Tensor) -> Tensor:
    """x with zeros behind its last dim, up to whole steps."""
    more = missing(x)
    return F.pad(x, (0, more)) if more else x


def aligned(x: Tensor) -> Tensor:
    """x (batch, time, heads, dim), or a copy of it where its last dim is not contiguous, where its rows do
    not begin at whole steps, or where one row stands for all tokens (descriptors want rows apart)."""
    step = STEP // x.element_size()
    batch, time, heads, column = x.stride()
    apart = time != 0 or x.shape[1] == 1
    whole = batch % step == time % step == heads % step == x.data_ptr() % STEP == 0
    if column == 1 and apart and whole:
        return x
    return x.new_empty(x.shape).copy_(x)
