"""The rows of `kernels.csv`: one schema for every operator, from the records alone.

Seconds, bytes and joules are per call. A cell is empty where it does not apply or was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tnbench.profiling.kernels.breakeven import break_even
from tnbench.profiling.kernels.store import Block, Line, Records
from tnbench.profiling.kernels.verdicts import RIVALS, compare, fastest, reported_seconds, timed
from tnbench.profiling.speedups import Speedup
from tnbench.report.results import Frame

ERRORS = (
    "o",
    "y",
    "dq",
    "dk",
    "dv",
    "dx",
    "du",
    "dresidual",
    "dweight",
    "dtheta",
    "ddecay",
    "state",
    "residual",
)
"""Results and gradients whose worst-head error has a column; others go into `error_other`."""

COLUMNS = (
    *("operator", "mode", "dtype", "length", "batch", "heads", "key_dim", "value_dim", "rows", "width"),
    *("options", "implementation", "source", "status", "reason"),
    *(
        "latency_seconds",
        "latency_p10",
        "latency_p90",
        "graph_seconds",
        "graph_p10",
        "graph_p90",
        "launch_share",
    ),
    *("tflops", "gigabytes_per_second", "roofline_share", "floor_seconds"),
    *("peak_memory_bytes", "predicted_memory_bytes", "joules_per_call", "joules_per_token", "watts"),
    *(f"error_{name}" for name in ERRORS),
    *("error_other", "error_limit"),
    *("registers", "spills", "shared_bytes", "instruction", "first_call_seconds"),
    *("best_peer", "speedup", "speedup_low", "speedup_high", "verdict"),
    *("rounds", "device", "versions", "kernel_hash", "session", "measured", "reproduce"),
)
"""Columns of kernels.csv. `floor_seconds` is what the smallest possible traffic takes at the highest copy
rate of the session, and `roofline_share` is that over the time: of CUDA graphs where there is one, as in
`tflops`."""

SIZES = ("length", "batch", "heads", "key_dim", "value_dim", "rows", "width")
WHOLE = (
    *SIZES,
    "peak_memory_bytes",
    "predicted_memory_bytes",
    "registers",
    "spills",
    "shared_bytes",
    "rounds",
)

KINDS = {"best peer": RIVALS, "best softmax": ("softmax",), "copy": ("copy",)}
"""Whom ours is compared with: the fastest correct implementation of these sources."""

COMPARISONS = (
    *("operator", "mode", "dtype", *SIZES, "options"),
    *("implementation", "against", "kind", "speedup", "low", "high", "verdict", "rounds"),
)
"""Columns of comparisons.csv. kind: those of `KINDS`, and `revision COMMIT`."""

SUMMARY = (
    *("operator", "mode", "dtype", "implementation", "kind"),
    *("points", "compared", "left_out", "speedup", "smallest", "largest", "faster", "slower", "undecided"),
    "slower_points",
)
"""Columns of summary.csv: `speedup` is the geometric mean over the compared points."""

BREAK_EVENS = (
    *("operator", "mode", "dtype", "batch", "heads", "key_dim", "value_dim", "options"),
    *("implementation", "length", "shown"),
)
"""Columns of break_even.csv."""


def shape_cells(case: Mapping[str, Any]) -> dict[str, Any]:
    """operator, mode, dtype, the sizes, and `options` for the rest of the shape (`decay = geometric`)."""
    shape = case["shape"]
    other = ", ".join(f"{name} = {shape[name]}" for name in sorted(shape) if name not in SIZES)
    cells = {name: case[name] for name in ("operator", "mode", "dtype")}
    return {**cells, **{name: shape.get(name) for name in SIZES}, "options": other}


def kernels(records: Records) -> Frame:
    """Every row of the blocks that are shown: the content of kernels.csv."""
    return _frame([_row(records, block, row) for block in records.shown() for row in block.rows], COLUMNS)


def _row(records: Records, block: Block, row: Line) -> dict[str, Any]:
    line, session = block.line, records.sessions.get(block.line["session"], {})
    eager, graph = row.get("eager") or {}, row.get("graph") or {}
    seconds = reported_seconds(row)
    floor = line["floor_bytes"] / records.copy_rate(line["session"])
    energy = block.energy.get(row["implementation"], {})
    joules = energy.get("joules_per_call")
    errors, limits = row.get("errors") or {}, row.get("limits") or {}
    others = [float(value) for name, value in errors.items() if name not in ERRORS and value is not None]
    found = {
        **shape_cells(block.case),
        **{name: row.get(name) for name in ("implementation", "source", "status", "reason")},
        "latency_seconds": eager.get("median"),
        "latency_p10": eager.get("p10"),
        "latency_p90": eager.get("p90"),
        "graph_seconds": graph.get("median"),
        "graph_p10": graph.get("p10"),
        "graph_p90": graph.get("p90"),
        "launch_share": 1 - graph["median"] / eager["median"] if graph and eager else None,
        "tflops": line["flops"] / seconds / 1e12,
        "gigabytes_per_second": line["floor_bytes"] / seconds / 1e9,
        "roofline_share": floor / seconds,
        "floor_seconds": floor,
        **{name: row.get(name) for name in ("peak_memory_bytes", "predicted_memory_bytes")},
        "joules_per_call": joules,
        "joules_per_token": joules / line["tokens"] if joules is not None else None,
        "watts": energy.get("watts"),
        **{f"error_{name}": _number(errors.get(name)) for name in ERRORS},
        "error_other": max(others, default=None),
        "error_limit": _limit(errors, limits),
        **_compiled(row.get("compiled") or []),
        "first_call_seconds": row.get("first_call_seconds"),
        "rounds": len(eager["rounds"]) if eager else None,
        "device": session.get("device"),
        "versions": " ".join(f"{name}={text}" for name, text in (session.get("versions") or {}).items()),
        "kernel_hash": line["kernel_hash"],
        "session": line["session"],
        "measured": line["time"],
        "reproduce": f"{line['command']} {_which(row['implementation'])} "
        f"--rounds {line['measurement']['rounds']}",
    }
    if row["source"] in ("ours", *RIVALS) and timed(row):
        peer = fastest(block.rows, RIVALS, but=row["implementation"])
        if peer is not None:
            found["best_peer"] = peer["implementation"]
            pair = compare(row, peer)
            found.update(
                speedup=pair.ratio, speedup_low=pair.low, speedup_high=pair.high, verdict=pair.verdict
            )
    return found


def _which(implementation: str) -> str:
    """The options that measure an implementation; `NAME@COMMIT` is compared with NAME as it is now."""
    name, _, commit = implementation.partition("@")
    return f"--implementation {name}" + (f" --against {commit}" if commit else "")


def _number(value: Any) -> float | None:
    """A recorded number; those that JSON does not know are recorded by their names."""
    return None if value is None else float(value)


def _limit(errors: Mapping[str, Any], limits: Mapping[str, Any]) -> float | None:
    """The limit that the errors come nearest to, or exceed most."""
    both = [name for name in errors if limits.get(name) and errors[name] is not None]
    nearest = max(both, key=lambda name: float(errors[name]) / float(limits[name]), default=None)
    return None if nearest is None else _number(limits[nearest])


def _compiled(compiled: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of an implementation's kernels: most registers, all spills, most shared memory, kinds of products."""

    def known(name: str) -> list[Any]:
        return [kernel[name] for kernel in compiled if kernel.get(name) is not None]

    return {
        "registers": max(known("registers"), default=None),
        "spills": sum(known("spills")) if known("spills") else None,
        "shared_bytes": max(known("shared_bytes"), default=None),
        "instruction": "+".join(sorted(set(known("instruction")))) or None,
    }


def comparisons(records: Records) -> Frame:
    """Ours against the fastest correct peer, the fastest softmax and other revisions, at every point that has
    such a pair: the content of comparisons.csv."""
    rows = [
        {
            **shape_cells(block.case),
            "implementation": row["implementation"],
            "against": other["implementation"],
            "kind": kind,
            **_pair(compare(row, other)),
        }
        for block, row, kind, other in _pairings(records)
        if other is not None and timed(row)
    ]
    return _frame(rows, COMPARISONS)


def _pairings(records: Records) -> Iterator[tuple[Block, Line, str, Line | None]]:
    """Block, row of ours, kind of rival, and the rival; None where nobody of that kind ran correctly.

    Rivals come from the blocks that are shown, revisions from the blocks in which they were compared: both
    sides of a pair are of one block.
    """
    for block in records.shown():
        for row in block.rows:
            for kind, other in rivals(block, row).items():
                yield block, row, kind, other
    for block, commit in records.compared():
        by_name = {row["implementation"]: row for row in block.rows}
        for name, row in by_name.items():
            twin = by_name.get(f"{name}@{commit}")
            if twin is not None:
                yield block, row, f"revision {commit}", twin if timed(twin) else None


def _pair(pair: Speedup) -> dict[str, Any]:
    return {
        "speedup": pair.ratio,
        "low": pair.low,
        "high": pair.high,
        "verdict": pair.verdict,
        "rounds": pair.rounds,
    }


def rivals(block: Block, row: Line) -> dict[str, Line | None]:
    """Whom a row is compared with, by kind; None where nobody ran correctly."""
    found: dict[str, Any] = {}
    if row["source"] == "ours":
        for kind, sources in KINDS.items():
            if any(other["source"] in sources for other in block.rows):
                found[kind] = fastest(block.rows, sources)
    return found


def summary(records: Records) -> Frame:
    """One row per operator, mode, dtype, implementation of ours and kind of rival: summary.csv.

    Points where ours or no rival ran correctly are left out of the mean and counted.
    """
    groups: dict[tuple, list[tuple[Block, Speedup | None]]] = {}
    for block, row, kind, other in _pairings(records):
        case = block.case
        key = (case["operator"], case["mode"], case["dtype"], row["implementation"], kind)
        pair = compare(row, other) if other is not None and timed(row) else None
        groups.setdefault(key, []).append((block, pair))
    rows = []
    for key, found in groups.items():
        pairs = [(block, pair) for block, pair in found if pair is not None]
        ratios = [pair.ratio for _, pair in pairs]
        verdicts = [pair.verdict for _, pair in pairs]
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else None
        slower = [shape_words(block.case) for block, pair in pairs if pair.verdict == "slower"]
        rows.append(
            {
                **dict(zip(SUMMARY[:5], key, strict=True)),
                "points": len(found),
                "compared": len(pairs),
                "left_out": len(found) - len(pairs),
                "speedup": mean,
                "smallest": min(ratios, default=None),
                "largest": max(ratios, default=None),
                **{verdict: verdicts.count(verdict) for verdict in ("faster", "slower", "undecided")},
                "slower_points": "; ".join(slower),
            }
        )
    return _frame(rows, SUMMARY)


def shape_words(case: Mapping[str, Any], but: Sequence[str] = ()) -> str:
    """A shape in few letters: `B4 H16 D128 n2048`.

    >>> shape_words({"shape": {"batch": 4, "heads": 16, "key_dim": 64, "value_dim": 64, "length": 2048}})
    'B4 H16 D64 n2048'
    """
    shape = {name: value for name, value in case["shape"].items() if name not in but}
    letters = {"batch": "B", "heads": "H", "key_dim": "D", "value_dim": "E", "dim": "D", "length": "n"}
    if shape.get("value_dim") == shape.get("key_dim"):
        shape.pop("value_dim", None)
    known = [f"{letter}{shape.pop(name)}" for name, letter in letters.items() if name in shape]
    rest = [f"{name} {value}" for name, value in sorted(shape.items()) if value not in ("geometric", None)]
    return " ".join([*known, *rest])


def break_evens(records: Records) -> Frame:
    """The length from which each implementation beats the fastest softmax attention, per batch, heads, dims
    and mode: break_even.csv."""
    groups: dict[tuple, list[Block]] = {}
    for block in records.shown():
        if any(row["source"] == "softmax" for row in block.rows):
            cells = shape_cells(block.case)
            groups.setdefault(tuple(cells[name] for name in BREAK_EVENS[:8]), []).append(block)
    rows = []
    for key, blocks in groups.items():
        lines: dict[str, dict[int, float]] = {}
        softmax: dict[int, float] = {}
        for block in blocks:
            length = block.case["shape"]["length"]
            best = fastest(block.rows, ("softmax",))
            if best is not None:
                softmax[length] = reported_seconds(best)
            for row in block.rows:
                if timed(row) and row["source"] != "softmax":
                    lines.setdefault(row["implementation"], {})[length] = reported_seconds(row)
        for name, times in lines.items():
            found = break_even(times, softmax)
            cells = dict(zip(BREAK_EVENS[:8], key, strict=True))
            rows.append({**cells, "implementation": name, "length": found.length, "shown": found.shown})
    return _frame(rows, BREAK_EVENS)


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Frame:
    """Rows under a fixed schema; sizes and counts stay whole numbers beside empty cells."""
    frame: Frame = pd.DataFrame([dict(row) for row in rows], columns=list(columns))
    crossing = {"length"} if "shown" in frame else set()  # there it is interpolated
    return frame.astype({name: "Int64" for name in WHOLE if name in frame and name not in crossing})
