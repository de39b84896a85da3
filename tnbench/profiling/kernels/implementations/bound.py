"""An implementation bound to the inputs of one case, and the call that is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.operators import OPERATORS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Inputs = dict[str, Tensor]
"""Tensors of a case by name, in the operator's own layout."""


class Unsupported(Exception):
    """The implementation cannot compute this case; the message says why."""


def unchanged(name: str, x: Tensor) -> Tensor:
    return x


@dataclass
class Bound:
    """One implementation with the inputs of one case, laid out as it wants them.

    call: the forward. outputs: names of what it returns. leaves: inputs that get a gradient. gradients: those
    of the outputs, by name. standard: takes a name (an output's, or `d` and a leaf's) and a tensor of the
    implementation's to the operator's layout. scale: constant factor of the implementation's outputs and
    gradients on the operator's. reset: undoes what a call did to its inputs in place. alone: the call is the
    same in every mode, and computes nothing.
    """

    call: Callable[[], tuple[Tensor, ...]]
    outputs: tuple[str, ...]
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    standard: Callable[[str, Tensor], Tensor] = unchanged
    scale: float = 1.0
    reset: Callable[[], None] | None = None
    alone: bool = False

    def step(self, mode: str) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed in this mode. For `backward`, the forward has run when this returns."""
        if mode in ("forward", "decode") or self.alone:
            return self._forward
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        if mode == "both":
            return self._both
        outputs = self._with_graph()
        return lambda: self._gradients(outputs, keep=True)

    def names(self, mode: str) -> tuple[str, ...]:
        """Of what the step of this mode returns."""
        gradients = tuple(f"d{leaf}" for leaf in self.leaves)
        if mode in ("forward", "decode") or self.alone:
            return self.outputs
        return gradients if mode == "backward" else (*self.outputs, *gradients)

    def _forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.call()

    def _with_graph(self) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return self.call()

    def _both(self) -> tuple[Tensor, ...]:
        outputs = self._with_graph()
        return (*(x.detach() for x in outputs), *self._gradients(outputs, keep=False))

    def _gradients(self, outputs: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, ...]:
        given = [self.gradients[name] for name in self.outputs]
        return torch.autograd.grad(outputs, list(self.leaves.values()), given, retain_graph=keep)


def normal(case: Case, device: str, **shapes: tuple[int, ...]) -> Inputs:
    """Standard normal tensors in the case's dtype, the same for every implementation and mode."""
    generator = torch.Generator(device).manual_seed(case.seed())
    dtype = DTYPES[case.dtype]
    return {
        name: torch.randn(shape, dtype=dtype, device=device, generator=generator)
        for name, shape in shapes.items()
    }


def copy(case: Case, given: Inputs) -> Bound:
    """A copy of half the operator's floor of bytes: as many are read and written as the operator must."""
    half = OPERATORS[case.operator].floor_bytes(case) // 2
    device = next(iter(given.values())).device
    source = torch.ones(half, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def call() -> tuple[Tensor, ...]:
        target.copy_(source)
        return ()

    return Bound(call, (), alone=True)
