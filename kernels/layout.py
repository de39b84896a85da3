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


def missing(x: Tensor) -> int:
    """Columns by which the last dim must grow to fill whole steps."""
    return -x.shape[-1] % (STEP // x.element_size())


def widened(x: Tensor) -> Tensor:
    """x with zeros behind its last dim, up to whole steps."""
    more = missing(x)
    return F.pad(x, (0, more)) if more else x


def aligned(x: Tensor) -> Tensor:
    """x, or a copy of it where its last dim is not contiguous or its rows do not begin at whole steps."""
    step = STEP // x.element_size()
    if x.stride(-1) == 1 and x.data_ptr() % STEP == 0 and all(s % step == 0 for s in x.stride()[:-1]):
        return x
    return x.new_empty(x.shape).copy_(x)
