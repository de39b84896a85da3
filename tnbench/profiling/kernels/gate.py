"""Right first: what an implementation computes is compared with float64 before it is timed.

Errors are those of `exact`, on the first and the last row of the batch. Linear attention up to 4,096 tokens
may be off by 1.5 times what the quadratic form is in the same dtype, for each of o, dq, dk, dv; beyond, and
for the other operators, by a fixed share. All rows must be finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.profiling.kernels import exact
from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations import module
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs
from tnbench.profiling.kernels.operators import OPERATORS

TIMES_QUADRATIC = 1.5

ROUNDING = 4e-6
"""Up to this share of its norm, a result in fp32 differs by the order of its sums."""

LONGEST_QUADRATIC = 4096

FIXED = {"bfloat16": 5e-3, "float16": 1e-3, "float32": 1e-5}
"""Largest relative error by dtype, where the quadratic form does not set it."""

SOFTMAX = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-4}
"""The same for softmax attention, whose implementations round the weights to the dtype."""


class Verdict:
    """errors and limits by name of output or gradient; reason: what is wrong, or None."""

    def __init__(self, errors: dict[str, float], limits: dict[str, float], reason: str | None):
        self.errors, self.limits, self.reason = errors, limits, reason


def check(
    case: Case, implementation: str, bound: Bound, results: dict[str, Tensor], given: Inputs
) -> Verdict:
    """Judge the results of one call, in the implementation's layout and scale, by name."""
    if bound.alone:
        return Verdict({}, {}, None)
    found = {name: bound.standard(name, x) for name, x in results.items()}
    for name, x in found.items():
        if not _finite(x):
            return Verdict({}, {}, f"{name} has values that are not finite")
    errors, limits = _errors(case, implementation, found, given, bound.scale)
    for name, error in errors.items():
        if not error <= limits[name]:
            return Verdict(
                errors, limits, f"{name} is off by {error:.2e} of its norm, the limit is {limits[name]:.2e}"
            )
    return Verdict(errors, limits, None)


def _finite(x: Tensor) -> bool:
    """In parts of about 2^27 values: the marks of a whole tensor take memory too."""
    return all(bool(torch.isfinite(part).all()) for part in x.split(max(1, x.shape[0] * 2**27 // x.numel())))


def _errors(
    case: Case, implementation: str, found: Inputs, given: Inputs, scale: float
) -> tuple[dict[str, float], dict[str, float]]:
    if case.operator != "linear_attention":
        errors = module(case.operator).errors(case, found, given)
        return errors, dict.fromkeys(errors, _fixed(case))
    from tnbench.profiling.kernels.implementations.linear_attention import log_decay

    first, last = slice(0, 1), slice(-1, None)
    rows = (first,) if case.shape["batch"] == 1 else (first, last)
    found = {name: torch.cat([x[row] for row in rows]) for name, x in found.items()}
    if scale != 1.0:
        found = {name: x.float() / scale for name, x in found.items()}
    given = {name: torch.cat([x.detach()[row] for row in rows]) for name, x in given.items()}
    if OPERATORS[case.operator].implementation(implementation).source == "softmax":
        errors = exact.softmax_errors(found, given)
        return errors, dict.fromkeys(errors, SOFTMAX[case.dtype])
    decay = log_decay(case, given["q"].device.type)
    errors = exact.linear_attention_errors(found, given, decay)
    if case.shape["length"] > LONGEST_QUADRATIC:
        return errors, dict.fromkeys(errors, FIXED[case.dtype])
    return errors, _limits(case, tuple(errors), given, decay)


def _fixed(case: Case) -> float:
    """LRPE may also be off by the rounding of its phases, position times angle, to fp32."""
    return FIXED[case.dtype] + (case.shape["length"] * 2.0**-24 if case.operator == "lrpe" else 0.0)


_known: dict[str, dict[str, float]] = {}


def _limits(case: Case, names: tuple[str, ...], given: Inputs, decay: Tensor | None) -> dict[str, float]:
    """1.5 times the quadratic form's errors on the same inputs, computed once for a case."""
    if case.key() not in _known:
        _known[case.key()] = exact.linear_attention_errors(_quadratic(given, decay, names), given, decay)
    return {name: max(TIMES_QUADRATIC * error, ROUNDING) for name, error in _known[case.key()].items()}


def _quadratic(given: Inputs, decay: Tensor | None, names: tuple[str, ...]) -> Inputs:
    """o, dq, dk, dv of the quadratic form, row by row."""
    from tnbench.kernels.linear_attention import quadratic

    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in range(given["q"].shape[0]):
        q, k, v = (
            given[name][row : row + 1].clone().requires_grad_("do" in given) for name in ("q", "k", "v")
        )
        with torch.set_grad_enabled("do" in given):
            out = quadratic(q, k, v, decay)[0]
        values = {"o": out.detach()}
        if "do" in given:
            gradients = torch.autograd.grad(out, (q, k, v), given["do"][row : row + 1])
            values.update(zip(("dq", "dk", "dv"), gradients, strict=True))
        for name in names:
            parts[name].append(values[name])
    return {name: torch.cat(values) for name, values in parts.items()}
