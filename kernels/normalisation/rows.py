"""Where the rows of tensors of one shape stand: two strides, so that most views are read without a copy."""

from __future__ import annotations

import math

from torch import Tensor


def _collapsed(x: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the leading dimensions, merged where rows follow each other evenly."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


class Rows:
    """Row i of each tensor is at i · outer, or if `grouped` at (i // groups) · outer + (i % groups) · inner.

    `numbers` is (groups, outer and inner of each tensor, 0 for those that are None); the strides are divided
    by `align`, their common power of two up to 16. Tensors that two strides do not reach are copied.
    """

    __slots__ = ("align", "count", "grouped", "numbers", "tensors", "width")

    def __init__(self, *tensors: Tensor | None) -> None:
        first = next(t for t in tensors if t is not None)
        self.width = first.shape[-1]
        self.count = first.numel() // self.width if self.width else 0
        self.tensors = tensors
        self.grouped = False
        for t in tensors:
            if t is not None and not t.is_contiguous():
                self._find(tensors)
                return
        self.align = math.gcd(self.width, 16)
        self.numbers = (1, *(self.width // self.align, 0) * len(tensors))

    def _find(self, tensors: tuple[Tensor | None, ...]) -> None:
        kept: list[Tensor | None] = []
        layouts: list[list[tuple[int, int]] | None] = []
        groups = 1
        for t in tensors:
            if t is None:
                kept.append(t)
                layouts.append(None)
                continue
            merged = _collapsed(t)
            apart = len(merged) == 2 and groups not in (1, merged[1][0])
            if t.stride(-1) != 1 or len(merged) > 2 or apart:
                t, merged = t.contiguous(), [(self.count, self.width)]
            if len(merged) == 2:
                groups = merged[1][0]
            kept.append(t)
            layouts.append(merged)
        strides: list[int] = []
        for layout in layouts:
            if layout is None:
                strides += [0, 0]
            elif len(layout) == 2:
                strides += [layout[0][1], layout[1][1]]
            else:
                stride = layout[0][1] if layout else 0
                strides += [stride * groups, stride]
        self.tensors = tuple(kept)
        self.grouped = groups > 1
        self.align = math.gcd(16, *strides)
        self.numbers = (groups, *(stride // self.align for stride in strides))
