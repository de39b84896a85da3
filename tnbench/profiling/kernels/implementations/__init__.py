"""Implementations bound to the inputs of a case; what they need is imported when they are."""

from __future__ import annotations

import importlib
from types import ModuleType

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs, Unsupported
from tnbench.profiling.kernels.operators import OPERATORS

MODULES = {
    "linear_attention": ("linear_attention", "softmax", "peers"),
    "decode_step": ("decode_step",),
    "norm": ("norms",),
    "norm_gate": ("norms",),
    "add_norm": ("norms",),
    "lrpe": ("lrpe",),
}
"""Modules of this package that hold the inputs (the first) and the binders of an operator."""

__all__ = ["MODULES", "Bound", "Inputs", "Unsupported", "bind", "inputs", "module"]


def inputs(case: Case, device: str) -> Inputs:
    """The inputs of a case: standard normal, seeded by its shape and dtype."""
    return module(case.operator).inputs(case, device)


def module(operator: str) -> ModuleType:
    """The module with an operator's inputs and, but for linear attention, its errors against float64."""
    return _module(MODULES[operator][0])


def bind(case: Case, implementation: str, given: Inputs) -> Bound:
    """An implementation with the inputs of a case.

    Raises:
        Unsupported: it cannot compute the case.
        ValueError: the operator has none of that name.
    """
    entry = OPERATORS[case.operator].implementation(implementation)
    device = next(iter(given.values())).device.type
    if reason := entry.obstacle(device):
        raise Unsupported(reason)
    for name in MODULES[case.operator]:
        binders = _module(name).BINDERS
        binders = binders.get(case.operator, binders)  # the norms have one table for each operator
        if implementation in binders:
            return binders[implementation](case, given)
    raise AssertionError(f"{implementation} of {case.operator} has no binder")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tnbench.profiling.kernels.implementations.{name}")
