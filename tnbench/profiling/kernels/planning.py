"""From the words of a command to the points that it measures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from tnbench.errors import RequestError, nearest
from tnbench.profiling.kernels.against import LETTERS
from tnbench.profiling.kernels.campaign import Point
from tnbench.profiling.kernels.cases import ITEM_SIZES, MODES, Case
from tnbench.profiling.kernels.operators import OPERATORS, Implementation, Operator
from tnbench.profiling.kernels.store import kernel_hash
from tnbench.profiling.texts import names, numbers, one_number

PAIR = "batch_heads"
AXIS_OPTIONS = {
    "length": "--length",
    "batch": "--batch",
    "heads": "--heads",
    PAIR: "--shape",
    "head_dim": "--head-dim",
    "rows": "--rows",
    "width": "--width",
    "dtype": "--dtype",
    "mode": "--mode",
    "form": "--form",
}
"""Axes of grids that have an option, and it."""
NORMS = ("srmsnorm", "rmsnorm", "layernorm")
FORMS = {"norm": NORMS, "norm_gate": NORMS, "add_norm": NORMS, "lrpe": ("cosine", "rotation")}
"""Forms of the operators that have any."""
COMPARED = ("ours", "torch")
"""Sources whose code lies in kernels/, so that another revision has its own."""


@dataclass(frozen=True)
class Wanted:
    """What a command asks for, checked for itself."""

    operators: tuple[str, ...] = ()
    """All, if empty."""
    axes: Mapping[str, tuple] = field(default_factory=dict)
    """Values by axis, for the axes that were named."""
    implementations: tuple[str, ...] = ()
    """All that run here, if empty."""
    commit: str = ""
    """The revision to compare with, or empty."""


def pair(text: str) -> tuple[int, int]:
    """`4,16` of --shape as (batch, heads)."""
    found = text.split(",")
    if len(found) != 2:
        raise RequestError(f"--shape {text}: write batch and heads, as 4,16")
    batch, heads = (one_number("--shape", word) for word in found)
    return batch, heads


def axes(
    *,
    length: str | None = None,
    batch: str | None = None,
    heads: str | None = None,
    shape: Sequence[str] | None = None,
    head_dim: str | None = None,
    rows: str | None = None,
    width: str | None = None,
    dtype: str | None = None,
    mode: str | None = None,
    form: str | None = None,
) -> dict[str, tuple]:
    """The axes that were named, with their values.

    Raises:
        RequestError: a value that cannot be read.
    """
    if shape and (batch or heads):
        raise RequestError("--shape gives batch and heads together: leave out --batch and --heads")
    found = {
        "length": numbers("--length", length),
        "batch": numbers("--batch", batch),
        "heads": numbers("--heads", heads),
        PAIR: tuple(dict.fromkeys(map(pair, shape))) if shape else None,
        "head_dim": numbers("--head-dim", head_dim),
        "rows": numbers("--rows", rows),
        "width": numbers("--width", width),
        "dtype": names("--dtype", dtype, tuple(ITEM_SIZES)),
        "mode": names("--mode", mode, MODES),
        "form": names("--form", form, tuple(dict.fromkeys(chain.from_iterable(FORMS.values())))),
    }
    return {axis: values for axis, values in found.items() if values is not None}


def operators(chosen: Sequence[str]) -> list[Operator]:
    """By their names, all if there are none.

    Raises:
        RequestError: a name that is not known.
    """
    for name in chosen:
        if name not in OPERATORS:
            raise RequestError(f"no operator {name!r}, {nearest(name, OPERATORS)}")
    return [OPERATORS[name] for name in dict.fromkeys(chosen or OPERATORS)]


def points(wanted: Wanted, device: str, stack: Mapping[str, str | None], results: str) -> list[Point]:
    """All points of a command, in the order of operators and of their grids.

    Args:
        device: `cuda` or `cpu`.
        stack: versions of torch and triton.
        results: the folder that commands to reproduce a row write to.

    Raises:
        RequestError: names or axes that fit none of the operators, or implementations that cannot run here.
    """
    chosen = operators(wanted.operators)
    used: set[str] = set()
    found: list[Point] = []
    for operator in chosen:
        given, fits = _given(operator, wanted.axes, device)
        used |= fits
        for axis, known in _named_axes(operator).items():
            if axis in given:
                given[axis] = _fitting(operator, axis, given[axis], known, operator.name in wanted.operators)
        implementations = _implementations(operator, wanted, device)
        if not implementations or not all(given.values()):
            continue
        try:
            cases = operator.cases(operator.grid(device, **given))
        except ValueError as error:
            raise RequestError(str(error)) from None
        hashed = kernel_hash(operator.name)
        for case in cases:
            if PAIR in wanted.axes and (case.shape["batch"], case.shape["heads"]) not in wanted.axes[PAIR]:
                continue  # an operator with the two as axes of their own
            found.append(_point(operator, case, implementations, hashed, stack, device, results))
    _require_used(wanted, chosen, used)
    if not found:
        raise RequestError("nothing to measure: no operator has these modes and implementations")
    return found


def _named_axes(operator: Operator) -> dict[str, Sequence[str]]:
    """Axes whose values have names, with those that an operator knows."""
    return {"mode": operator.modes, "form": FORMS.get(operator.name, ())}


def _fitting(
    operator: Operator, axis: str, asked: Sequence[str], known: Sequence[str], named: bool
) -> list[str]:
    """Those values that an operator knows. None may do only where the operator was not asked for by name."""
    found = [value for value in asked if value in known]
    if not found and named:
        raise RequestError(f"{operator.name} has no {axis} {', '.join(asked)}: it has {', '.join(known)}")
    return found


def _point(
    operator: Operator,
    case: Case,
    implementations: dict[str, str],
    hashed: str,
    stack: Mapping[str, str | None],
    device: str,
    results: str,
) -> Point:
    how_compiled = {
        name: operator.implementation(name.partition("@")[0]).compiles for name in implementations
    }
    return Point(
        case=case.to_dict(),
        tokens=case.tokens,
        floor_bytes=operator.floor_bytes(case),
        flops=operator.flops(case),
        graph=device == "cuda" and operator.graphs(case),
        implementations=implementations,
        kernel_hash=hashed,
        stack=dict(stack),
        command=command_of(operator, case, device, results),
        compiles={name: how for name, how in how_compiled.items() if how != "never"},
    )


def _given(operator: Operator, axes: Mapping[str, tuple], device: str) -> tuple[dict[str, Any], set[str]]:
    """What the named axes are for an operator, and which of them it has; batch and heads may be one axis."""
    given = {axis: values for axis, values in axes.items() if axis in operator.axes}
    fits = set(given)
    if PAIR in operator.axes and {"batch", "heads"} & set(axes):
        defaults = operator.grids[device][PAIR]
        batches = axes.get("batch") or tuple(dict.fromkeys(batch for batch, _ in defaults))
        heads = axes.get("heads") or tuple(dict.fromkeys(count for _, count in defaults))
        given[PAIR] = tuple((batch, count) for batch in batches for count in heads)
        fits |= {"batch", "heads"} & set(axes)
    if PAIR in axes and {"batch", "heads"} <= set(operator.axes):
        given["batch"] = tuple(dict.fromkeys(batch for batch, _ in axes[PAIR]))
        given["heads"] = tuple(dict.fromkeys(count for _, count in axes[PAIR]))
        fits.add(PAIR)
    return given, fits


def _implementations(operator: Operator, wanted: Wanted, device: str) -> dict[str, str]:
    """Name → source of what is measured of an operator, other revisions included."""
    known = {entry.name: entry for entry in operator.implementations}
    if wanted.implementations:
        entries = [known[name] for name in known if name in wanted.implementations]
        for entry in entries:
            if obstacle := entry.obstacle(device):
                raise RequestError(f"--implementation {entry.name}: it {_because(obstacle)}")
    else:
        entries = [entry for entry in known.values() if entry.by_default(device)]
    if not wanted.commit:
        return {entry.name: entry.source for entry in entries}
    pairs = _compared(entries)
    twins = {f"{entry.name}@{wanted.commit[:LETTERS]}": "revision" for entry in pairs}
    return {entry.name: entry.source for entry in (entries if wanted.implementations else pairs)} | twins


def _compared(entries: Iterable[Implementation]) -> list[Implementation]:
    """Those that two revisions are compared by: ours, or plain torch where ours cannot run."""
    entries = list(entries)
    ours = [entry for entry in entries if entry.source == "ours"]
    return ours or [entry for entry in entries if entry.source in COMPARED]


def _because(obstacle: str) -> str:
    return obstacle if obstacle.startswith("needs") else f"cannot run here: {obstacle}"


def _require_used(wanted: Wanted, chosen: Sequence[Operator], used: set[str]) -> None:
    """Refuse options that say nothing to any of the operators."""
    said = ", ".join(operator.name for operator in chosen)
    for axis in wanted.axes:
        if axis not in used:
            raise RequestError(f"{AXIS_OPTIONS[axis]}: {said} has no such axis")
    for axis in ("mode", "form"):
        some = list(dict.fromkeys(value for operator in chosen for value in _named_axes(operator)[axis]))
        for value in wanted.axes.get(axis, ()):
            if value not in some:
                raise RequestError(f"{said} has no {axis} {value}: it has {', '.join(some)}")
    known = {entry.name for operator in chosen for entry in operator.implementations}
    for name in wanted.implementations:
        if name not in known:
            raise RequestError(f"--implementation {name}: {nearest(name, known)}")
    for operator in chosen if wanted.operators and wanted.implementations else ():
        own = [entry.name for entry in operator.implementations]
        if not set(own) & set(wanted.implementations):
            asked = ", ".join(wanted.implementations)
            raise RequestError(f"{operator.name} has no implementation {asked}: it has {', '.join(own)}")


def command_of(operator: Operator, case: Case, device: str, results: str) -> str:
    """The command that measures this case alone, into a folder of its own."""
    shape = case.shape
    words = ["tnbench", "profile-kernels", operator.name, "--mode", case.mode, "--dtype", case.dtype]
    if PAIR in operator.axes:
        words += ["--shape", f"{shape['batch']},{shape['heads']}"]
    for axis in operator.axes:
        if axis in ("mode", "dtype", PAIR) or axis not in AXIS_OPTIONS:
            continue
        value = shape.get(axis, shape.get("key_dim", shape.get("dim")) if axis == "head_dim" else None)
        if value is not None:
            words += [AXIS_OPTIONS[axis], str(value)]
    return shlex.join([*words, "--device", device, "--results", results])


def least_seconds(points: Sequence[Point], rounds: int, seconds: float, energy: float) -> float:
    """What the timed part of these points takes at least: rounds and energy windows."""
    rows = sum(len(point.implementations) for point in points)
    graphs = sum(len(point.implementations) for point in points if point.graph)
    return math.fsum([(rows + graphs) * rounds * seconds, rows * energy])
