"""Launches with little host time: what calls of the same shapes share is prepared once and kept.

Triton finds a compiled kernel by the type and value of each argument, which takes longer than a small norm
runs. A `Launch` belongs to shapes, strides and dtypes, so that only addresses differ between its calls: off
16 bytes, they go Triton's way, and so does the interpreter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tnbench.kernels.devices import INTERPRETED
from tnbench.kernels.normalisation.triton_kernels import column_sums

_PLAIN = (Tensor, Parameter, type(None))
KEPT = 4096
"""Launches that a `Launches` keeps at most."""


class Launch:
    """kernel[grid](*tensors, *values, *numbers, *constants), for tensors of the same dtypes in every call."""

    __slots__ = ("_compiled", "constants", "grid", "kernel", "numbers", "warps")

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        warps: int,
    ) -> None:
        self.kernel, self.grid, self.numbers, self.constants, self.warps = (
            kernel,
            grid,
            numbers,
            constants,
            warps,
        )
        self._compiled: Any = None

    def __call__(self, device: torch.device, *tensors: Tensor | None, values: tuple[int, ...] = ()) -> None:
        """On `device`, where the tensors are; `values` are 32-bit numbers that may change."""
        if INTERPRETED:
            self.kernel[self.grid](*tensors, *values, *self.numbers, *self.constants, num_warps=self.warps)
            return
        if device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(device, *tensors, values=values)
            return
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        bits = 0
        for address in addresses:
            bits |= address or 0
        if bits % 16 == 0 and self._compiled is not None:
            stream = torch._C._cuda_getCurrentRawStream(device.index)  # Triton asks for it in a longer way
            self._compiled[self.grid](*addresses, *values, *self.numbers, *self.constants, stream=stream)
            return
        options = {"num_warps": self.warps}
        found = self.kernel[self.grid](*tensors, *values, *self.numbers, *self.constants, **options)
        if bits % 16 == 0:
            self._compiled = found


class Launches(dict[tuple[Any, ...], Launch]):
    """The launches of the shapes seen so far."""

    def keep(self, key: tuple[Any, ...], launch: Launch) -> None:
        if len(self) >= KEPT:
            self.clear()
        self[key] = launch


def look(t: Tensor | None) -> Any:
    """What a launch depends on."""
    return None if t is None else (t.shape, t.stride(), t.dtype)


def direct(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd looks on: no compiler, no dispatch mode, no transform, no tensor subclass.

    Then the kernel is called without torch's dispatcher, which takes longer than all the rest.
    """
    return (
        all(type(t) in _PLAIN for t in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


@lru_cache(KEPT)
def _sums(device: torch.device, count: int, rows: int, width: int, *dtypes: torch.dtype) -> Launch:
    """The device and the dtypes are keys alone: a compiled kernel is loaded on one device."""
    grid = (-(-width // 16), count, 1)
    return Launch(column_sums, grid, (rows,), (width, 16, 512), 8)


def sum_of_columns(parts: Tensor, *dtypes: torch.dtype) -> list[Tensor]:
    """(1 or 2, n, width) fp32, contiguous, to one or two vectors (width,): the same bits every time."""
    count, rows, width = parts.shape
    out = [torch.empty(width, dtype=dtype, device=parts.device) for dtype in dtypes]
    _sums(parts.device, count, rows, width, *dtypes)(
        parts.device, parts, out[0], out[1] if count == 2 else None
    )
    return out
