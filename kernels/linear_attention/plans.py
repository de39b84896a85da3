"""How one call is cut into segments and launched; made once for each combination of shapes and strides, and
kept."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import set_allocator

from tnbench.kernels import devices
from tnbench.kernels.devices import INTERPRETED, machine
from tnbench.kernels.layout import power
from tnbench.kernels.linear_attention import triton_gradients, triton_kernels, triton_walks
from tnbench.kernels.linear_attention.configurations import Configuration, Launch, Shape, lookup

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
STEP = 128  # segments are multiples of this many tokens
KEPT = 64  # tokens between the states that d log λ is computed from, at most
# Set by the tuner and the tests: a configuration that is used in place of the table's.
override: Configuration | None = None


def cdiv(a: int, b: int) -> int:
    return (a + b - 1) // b


class Plan:
    """Sizes of one call, its cut into segments, and the compiled kernels that it has used.

    Args:
        q, v: shapes (batch, time, heads, dim); sequences: how many are packed, or None.
        training: whether a backward follows, which works on the same segments.
    """

    def __init__(
        self, q: tuple, v: tuple, dtype: torch.dtype, device: int | None, sequences: int | None,
        precise: bool,
        training: bool,
    ):  # fmt: skip
        self.batch, self.time, self.heads, self.dk = q
        self.dv = v[-1]
        self.device = device
        self.packed = sequences is not None
        self.sequences = self.batch if sequences is None else sequences
        single = dtype == torch.float32 or precise
        self.dtype = tl.float32 if single or INTERPRETED else TYPES[dtype]
        # Three TF32 products give fp32 accuracy; one gives 11 bits, which fp32 inputs get where torch may.
        coarse = not precise and torch.get_float32_matmul_precision() != "highest"
        self.precision = "tf32" if coarse or not single else "tf32x3"
        capability, processors = machine(device)
        dim, rows = max(self.dk, self.dv), self.batch * self.heads
        shape = Shape(capability, processors, not single, dim, rows, self.time, training)
        self.config = config = override or lookup(shape)
        launch = config.gradients if training else config.outputs
        programs = rows * cdiv(self.dv, min(launch.tile, power(self.dv)))
        self.length = cdiv(cdiv(self.time, max(1, config.programs // programs)), STEP) * STEP
        self.segments, self.units = self.cut(self.length)
        spans = max(n for n in range(1, config.spans + 1) if self.length % (n * STEP) == 0)
        self.span = self.length // spans
        self.spans, self.span_units = self.cut(self.span)
        self.ready: dict[tuple, tuple] = {}

    def cut(self, size: int) -> tuple[int, int]:
        """(pieces of `size` tokens in a sequence, rows that a buffer over all pieces has)."""
        each = cdiv(self.time, size)
        return each, self.time // size + self.sequences if self.packed else self.batch * each

    @property
    def split(self) -> bool:
        return self.length < self.time

    def states(self, like: Tensor, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((rows, self.heads, self.dk, self.dv), dtype=dtype, device=like.device)

    def _launch(
        self, name: str, strided: tuple[Tensor, ...], others: tuple[Tensor | None, ...], scale: float,
        reverse: bool = False,
    ) -> None:  # fmt: skip
        """Launches by the compiled kernel's own entry, several times quicker than by Triton's, which looks
        at every argument again. Of what the kernel was compiled for, only pointers differ between the calls
        of a plan: here they must be multiples of 16."""
        pointers = [None if x is None else x.data_ptr() for x in (*strided, *others)]
        aligned = not any(x is not None and x & 15 for x in pointers)
        key = (name, reverse, scale, strided[-1].stride(), *(x is None for x in others))
        ready = self.ready.get(key) if aligned and devices.quick_launches else None
        if ready is None:
            function, grid, numbers, constants, launch = self._arguments(
                name, strided, scale, reverse, aligned
            )
            options: dict[str, Any] = {"num_warps": launch.warps, "num_stages": launch.stages}
            if launch.registers:
                options["maxnreg"] = launch.registers
            if constants.get("TMA"):
                set_allocator(_scratch)
            kernel = function[(grid,)](*strided, *others, *numbers, **constants, **options)
            if kernel is not None and aligned:
                self.ready[key] = (
                    constants.get("TMA"), kernel.run, grid, kernel.function, kernel.packed_metadata,
                    (*numbers, *constants.values()),
                )  # fmt: skip
            return
        descriptors, run, grid, function, metadata, tail = ready
        if descriptors:
            set_allocator(_scratch)  # each thread has its own, and the backward runs in another
        stream = torch._C._cuda_getCurrentRawStream(self.device or 0)
        run(grid, 1, 1, stream, function, metadata, None, None, None, *pointers, *tail)

    def _arguments(
        self, name: str, strided: tuple[Tensor, ...], scale: float, reverse: bool, aligned: bool
    ) -> tuple[Any, int, tuple, dict, Launch]:  # fmt: skip
        """Kernel, grid, numbers after the tensors, constants and launch options."""
        size = {"DK": self.dk, "DV": self.dv, "BK": power(self.dk)}
        launch = {"outputs": self.config.outputs, "gradients": self.config.gradients}.get(
            name, self.config.states
        )
        keys, values = min(launch.tile, power(self.dk)), min(launch.tile, power(self.dv))
        length, segments, programs = self.length, self.segments, self.heads * self.units
        if name == "outputs":
            function = triton_walks.outputs
            programs *= cdiv(self.dv, values)
            constants = size | {"TILE": values}
        elif name == "gradients":
            function = triton_walks.gradients
            programs *= 2 * cdiv(self.dk, keys) + cdiv(self.dv, values)
            constants = size | {"BV": power(self.dv), "TILE_K": keys, "TILE_V": values}
        else:
            function = triton_kernels.span_states if name == "spans" else triton_kernels.states
            if name == "spans":
                segments, programs = self.spans, self.heads * self.span_units
            programs *= cdiv(self.dv, values)
            constants = {"DB": self.dk, "DC": self.dv, "BB": power(self.dk), "TILE": values}
        constants["CHUNK"] = min(launch.chunk, KEPT) if name == "states" else launch.chunk
        if name in ("outputs", "gradients"):
            constants["SCALED"] = scale != 1.0
        else:
            constants["REVERSE"] = reverse
        if name != "states":
            width = strided[0].element_size()
            fits = all(s * width % 16 == 0 for x in strided for s in x.stride()[:-1])
            # A descriptor's rows are at least 16 bytes and end where the tensor's do.
            constants["TMA"] = launch.tma and aligned and fits
            constants["DEEP"] = launch.deep and constants["TMA"] and self.dtype != tl.float32
        constants |= {"DTYPE": self.dtype, "PRECISION": self.precision}
        steps = tuple(s for x in strided for s in x.stride()[:3])
        numbers = (*steps, self.sequences, self.time, self.heads, length, segments, self.span, scale)
        return function, programs, numbers, constants, launch

    def run_spans(
        self, b: Tensor, c: Tensor, log_decay: Tensor | None, cu: Tensor | None, scale: float = 1.0,
        reverse: bool = False, clean: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """End-states of spans, from zero; None when each sequence is one segment. `clean`: zeros in what
        nobody reads."""
        if not self.split:
            return None
        ends = self.states(b, self.span_units)
        if clean:
            ends.zero_()
        self._launch("spans", (b, c), (log_decay, ends, cu), scale, reverse)
        return ends

    def run_states(
        self, b: Tensor, c: Tensor, log_decay: Tensor | None, cu: Tensor | None, start: Tensor | None,
        ends: Tensor | None, final: Tensor | None, kept: Tensor | None, scale: float = 1.0,
        reverse: bool = False,
    ) -> None:  # fmt: skip
        self._launch("states", (b, c), (log_decay, start, ends, final, kept, cu), scale, reverse)

    def run_outputs(
        self, q: Tensor, k: Tensor, v: Tensor, o: Tensor, log_decay: Tensor | None, start: Tensor | None,
        ends: Tensor | None, final: Tensor | None, cu: Tensor | None, scale: float,
    ) -> None:  # fmt: skip
        self._launch("outputs", (q, k, v, o), (log_decay, start, ends, final, cu), scale)

    def run_gradients(
        self, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, do: Tensor,
        log_decay: Tensor | None, start: Tensor | None, before: Tensor | None, dend: Tensor | None,
        after: Tensor | None, dstart: Tensor | None, cu: Tensor | None, scale: float,
    ) -> None:  # fmt: skip
        others = (log_decay, start, before, dend, after, dstart, cu)
        self._launch("gradients", (q, k, v, dq, dk, dv, do), others, scale)

    def run_decay(
        self, q: Tensor, k: Tensor, v: Tensor, do: Tensor, log_decay: Tensor | None, start: Tensor | None,
        before: Tensor | None, dend: Tensor | None, after: Tensor | None, cu: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        """d log λ per head: both states at the border of each chunk, then a sum over chunks."""
        chunk = min(self.config.states.chunk, KEPT)
        each, rows = self.cut(chunk)
        s, g = self.states(q, rows, v.dtype), self.states(q, rows, v.dtype)
        self.run_states(k, v, log_decay, cu, start, before, None, s)
        self.run_states(q, do, log_decay, cu, dend, after, None, g, scale, reverse=True)
        parts = torch.empty((rows, self.heads), dtype=torch.float32, device=q.device)
        launch: Any = triton_gradients.decay_gradient[(self.heads * rows,)]
        launch(
            q, k, v, do, parts, log_decay, s, g, cu, *(n for x in (q, k, v, do) for n in x.stride()[:3]),
            self.sequences, self.time, self.heads, each, scale,
            DK=self.dk, DV=self.dv, BK=power(self.dk), TILE=min(32, power(self.dv)), CHUNK=chunk,
            DTYPE=self.dtype, PRECISION=self.precision, num_warps=4, num_stages=1,
        )  # fmt: skip
        return parts.sum(0)


def _scratch(size: int, alignment: int, stream: int | None) -> Any:
    """Where programs put the descriptors of their tensors."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@lru_cache(maxsize=4096)
def plan(
    q: tuple, v: tuple, strides: tuple, dtype: torch.dtype, device: int | None, sequences: int | None,
    precise: bool, training: bool, precision: str, override: Configuration | None,
) -> Plan:  # fmt: skip
    """The plan of a combination of shapes and strides; the last two arguments are part of the key alone."""
    return Plan(q, v, dtype, device, sequences, precise, training)
