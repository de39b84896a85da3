"""The operators that can be profiled, by name."""

from __future__ import annotations

from tnbench.errors import nearest
from tnbench.profiling.kernels.operators.base import Grid, Implementation, Operator
from tnbench.profiling.kernels.operators.decode_step import DecodeStep
from tnbench.profiling.kernels.operators.linear_attention import LinearAttention
from tnbench.profiling.kernels.operators.lrpe import LRPE
from tnbench.profiling.kernels.operators.norms import AddNorm, Norm, NormGate

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (LinearAttention(), DecodeStep(), Norm(), NormGate(), AddNorm(), LRPE())
}

__all__ = ["OPERATORS", "Grid", "Implementation", "Operator", "find"]


def find(name: str) -> Operator:
    """By its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in OPERATORS:
        raise ValueError(f"unknown operator {name!r}: {nearest(name, OPERATORS)}")
    return OPERATORS[name]
