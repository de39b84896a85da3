"""What is known of an operator without running it: its grids, floors, FLOPs and who implements it."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from tnbench.errors import nearest
from tnbench.profiling.kernels.cases import Case

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    source: `ours` (the Triton kernels), `torch` (plain torch of the same operator), `softmax` (softmax
    attention, not the same operator), `peer` (another project's kernels), `copy` (moves the same bytes,
    computes nothing).
    needs: importable modules; package: the distributions that bring them. gpu: it runs on an NVIDIA GPU only.
    slow_on_cpu: not among the defaults of a CPU, where it takes long to compile or to run. compiles: `never`;
    `once` for all lengths, batches and rows; `anew` for each of these.
    """

    name: str
    source: str
    summary: str
    needs: tuple[str, ...] = ()
    package: str = ""
    gpu: bool = False
    slow_on_cpu: bool = False
    compiles: str = "never"

    def obstacle(self, device: str) -> str | None:
        """Why it cannot run on this kind of device (`cuda` or `cpu`), or None if it can be tried."""
        if self.gpu and device != "cuda":
            return "needs an NVIDIA GPU"
        for module in self.needs:
            if not _installed(module):
                return f"{self.package or module} is not installed"
        return None

    def by_default(self, device: str) -> bool:
        """Whether a command that names no implementations takes it."""
        return self.obstacle(device) is None and not (device == "cpu" and self.slow_on_cpu)


def ours(name: str, summary: str) -> Implementation:
    """Of this package, in Triton."""
    return Implementation(name, "ours", summary, ("triton",), "triton", gpu=True, compiles="anew")


def peer(name: str, summary: str, module: str, package: str, compiles: str = "once") -> Implementation:
    """Of another project, in Triton."""
    return Implementation(name, "peer", summary, (module, "triton"), package, gpu=True, compiles=compiles)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


class Operator(ABC):
    """An operator that can be profiled. A grid gives the values of each axis; `cases` are their product."""

    name: ClassVar[str]
    summary: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]
    axes: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[str, ...]]
    grids: ClassVar[Mapping[str, Grid]]
    implementations: ClassVar[tuple[Implementation, ...]]

    def grid(self, device: str, **given: Sequence[Any]) -> dict[str, list[Any]]:
        """The default grid of a device (`cuda` or `cpu`), with `given` axes in place of its own.

        Raises:
            ValueError: an axis that the operator does not have.
        """
        for axis in given:
            if axis not in self.axes:
                raise ValueError(f"{self.name} has no axis {axis!r}: {nearest(axis, self.axes)}")
        return {axis: list({**self.grids[device], **given}[axis]) for axis in self.axes}

    def cases(self, grid: Grid) -> list[Case]:
        """All cases of a grid, the last axis fastest.

        Raises:
            ValueError: axes that do not fit, a mode that the operator does not have.
        """
        if set(grid) != set(self.axes):
            raise ValueError(f"{self.name} has the axes {', '.join(self.axes)}, got {', '.join(grid)}")
        for mode in grid["mode"]:
            if mode not in self.modes:
                raise ValueError(f"{self.name} has no mode {mode!r}: it has {', '.join(self.modes)}")
        return [
            self.case(dict(zip(self.axes, values, strict=True))) for values in product(*self._values(grid))
        ]

    def _values(self, grid: Grid) -> Iterable[Sequence[Any]]:
        return (grid[axis] for axis in self.axes)

    def case(self, point: Mapping[str, Any]) -> Case:
        """One point of a grid: `batch_heads` is a pair, `head_dim` both dims."""
        shape: dict[str, Any] = {}
        for axis, value in point.items():
            if axis == "batch_heads":
                shape["batch"], shape["heads"] = value
            elif axis == "head_dim":
                shape.update(dict.fromkeys([size for size in self.sizes if size.endswith("_dim")], value))
            elif axis not in ("mode", "dtype"):
                shape[axis] = value
        return Case(self.name, point["mode"], point["dtype"], shape)

    def implementation(self, name: str) -> Implementation:
        """By its name.

        Raises:
            ValueError: there is none of that name.
        """
        known = {entry.name: entry for entry in self.implementations}
        if name not in known:
            raise ValueError(f"{self.name} has no implementation {name!r}: {nearest(name, known)}")
        return known[name]

    def graphs(self, case: Case) -> bool:
        """Whether the case is timed in a CUDA graph too, by default: where launches may cost much of it."""
        return self.floor_bytes(case) < 1 << 29

    @abstractmethod
    def floor_bytes(self, case: Case) -> int:
        """Bytes that any implementation must move: each input read once, each output written once."""

    @abstractmethod
    def flops(self, case: Case) -> int:
        """Useful floating-point operations, the same for every implementation of the operator."""

    @abstractmethod
    def predicted_memory(self, case: Case, implementation: str) -> int | None:
        """Bytes at the peak beyond the live inputs, with outputs and gradients; None: there is no theory."""
