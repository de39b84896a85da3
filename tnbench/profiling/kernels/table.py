"""Tables of kernels: on the terminal, and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tnbench.profiling.kernels.panels import FAILED, Panel, panels, seconds, words
from tnbench.profiling.kernels.published import published
from tnbench.profiling.kernels.rows import SIZES, shape_cells, shape_words
from tnbench.profiling.kernels.store import Records
from tnbench.profiling.texts import markdown_table, number, place
from tnbench.report.formats import escape_markdown
from tnbench.report.results import Frame
from tnbench.report.words import NOTHING, short

MARKS = {"faster": "+", "slower": "−", "undecided": "?"}
MOST_LISTED = 24
"""Slower points that table.md names one by one."""
LEGEND = (
    "Times in ms: medians, CUDA graphs where they were timed (short lengths), else eager; "
    "with a cold L2 on a GPU, warm caches on a CPU. "
    "× best peer: how many times faster than the fastest correct implementation that is not ours "
    "(+ faster, − slower, ? undecided: 95 % t interval over interleaved rounds). both: forward and backward. "
    "Share of roofline: smallest possible traffic at the highest copy rate of the session, over the time."
)


def _time(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["status"] == "ok":
        return number(1e3 * seconds(row))
    return FAILED.get(row["status"], str(row["status"]))


def lines(panel: Panel) -> Iterator[tuple[str, list[str], set[int]]]:
    """A panel's lines: name, one text per value of the axis, and which of them are fastest in their column.

    After the times of the first of ours follow its speed-up and its share of the roofline.
    """
    fastest = {}
    for name in panel.implementations:
        for where, row in panel.cells(name).items():
            if row["status"] == "ok" and row["source"] != "copy":
                fastest[where] = min(fastest.get(where, math.inf), seconds(row))
    told = False
    for name in panel.implementations:
        cells = panel.cells(name)
        texts = [_time(cells.get(where)) for where in panel.places]
        best = {
            index
            for index, where in enumerate(panel.places)
            if where in cells and seconds(cells[where]) == fastest.get(where)
        }
        yield name, texts, best
        found = [cells.get(where) for where in panel.places]
        if told or all(row is None or row["source"] != "ours" for row in found):
            continue
        told = True
        if any(row is not None and isinstance(row["verdict"], str) for row in found):
            yield "  × best peer", [_speedup(row) for row in found], set()
        if any(row is not None and pd.notna(row["roofline_share"]) for row in found):
            yield "  share of roofline", [_share(row) for row in found], set()


def _speedup(row: Mapping[str, Any] | None) -> str:
    if row is None or not isinstance(row["verdict"], str):
        return ""
    return f"{row['speedup']:.2f}{MARKS[row['verdict']]}"


def _share(row: Mapping[str, Any] | None) -> str:
    if row is None or pd.isna(row["roofline_share"]):
        return ""
    return f"{100 * row['roofline_share']:.0f} %"


def terminal(panel: Panel) -> Group:
    """A panel for the terminal, the fastest of each column in bold."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(f"ms, by {panel.axis}", no_wrap=True)
    for where in panel.places:
        table.add_column(place(where), justify="right", no_wrap=True)
    for name, texts, best in lines(panel):
        style = "dim" if name.startswith("  ") else ""
        cells = [Text(text, style="bold" if index in best else style) for index, text in enumerate(texts)]
        table.add_row(Text(name, style=style), *cells)
    return Group(Text(panel.title, style="bold"), table)


def markdown(frame: Frame, summary: Frame, break_even: Frame, records: Records) -> str:
    """table.md: summary, break-even lengths, a table per panel, what has no time and why, the machine."""
    parts = [f"# Kernels on {_machine(records)}", LEGEND]
    if len(summary):
        parts += ["## Ours against the others", summary_table(summary)]
    if len(break_even):
        parts += ["## Break-even length with softmax attention", break_even_table(break_even)]
    for panel in panels(frame):
        parts += [f"## {escape_markdown(panel.title)}", _grid(panel)]
    parts += ["## What has no time", _missing(frame)] if (frame["status"] != "ok").any() else []
    if elsewhere := _published(frame):
        parts += ["## Published elsewhere", *elsewhere]
    parts += ["## How it was measured", *_sessions(frame, records), *map(escape_markdown, records.problems)]
    return "\n\n".join(parts) + "\n"


def _machine(records: Records) -> str:
    return escape_markdown(str(next(iter(records.sessions.values()), {}).get("device", "an unknown machine")))


def _grid(panel: Panel) -> str:
    heads = [f"ms, by {panel.axis}", *map(place, panel.places)]
    rows = []
    for name, texts, best in lines(panel):
        cells = [
            f"**{text}**" if index in best else escape_markdown(text) for index, text in enumerate(texts)
        ]
        rows.append([escape_markdown(name), *cells])
    return markdown_table(heads, rows)


def summary_lines(summary: Frame) -> Iterator[str]:
    """The summary for the terminal, a line each: `linear_attention forward: triton 2.1× best peer …`."""
    for row in summary.to_dict("records"):
        counts = ", ".join(f"{row[name]} {name}" for name in ("faster", "slower", "undecided") if row[name])
        if row["left_out"]:
            counts += (
                f"{', ' if counts else ''}{row['left_out']} left out: one of the two did not run correctly"
            )
        ratio = f"{number(row['speedup'])}×" if row["compared"] else "not compared with"
        head = f"{row['operator']} {row['mode']} {row['dtype']}: {row['implementation']}"
        yield f"{head} {ratio} {row['kind']}, geometric mean of {row['compared']} points ({counts})"


def summary_table(summary: Frame) -> str:
    """The summary in Markdown, with the points at which ours is slower in words."""
    heads = ["operator", "mode", "dtype", "ours", "against", "geometric mean", "smallest", "largest"]
    heads += ["faster", "slower", "undecided", "left out"]
    rows, slower = [], []
    for row in summary.to_dict("records"):
        texts = [words(row["operator"]), row["mode"], row["dtype"], row["implementation"], row["kind"]]
        numbers = [
            number(row[name]) + "×" if pd.notna(row[name]) else NOTHING
            for name in ("speedup", "smallest", "largest")
        ]
        counts = [str(row[name]) for name in ("faster", "slower", "undecided", "left_out")]
        rows.append([*map(escape_markdown, texts), *numbers, *counts])
        if row["slower_points"]:
            said = f"{words(row['operator'])}, {row['mode']}, {row['implementation']}"
            points = row["slower_points"] if row["slower"] <= MOST_LISTED else f"{row['slower']} points"
            slower.append(f"Slower than the {row['kind']} ({said}): {points} (summary.csv lists them all).")
    table = markdown_table(heads, rows, left=5)
    return "\n\n".join([table, *map(escape_markdown, slower)])


def break_even_table(break_even: Frame) -> str:
    """One row per shape, one column per implementation."""
    names = list(dict.fromkeys(break_even["implementation"]))
    keys = ["mode", "dtype", "batch", "heads", "key_dim"]
    rows = []
    for key, group in break_even.groupby(keys, sort=False):
        shown = dict(zip(group["implementation"], group["shown"], strict=True))
        rows.append([*map(str, key), *(escape_markdown(shown.get(name, NOTHING)) for name in names)])
    return markdown_table(["mode", "dtype", "B", "H", "D", *names], rows, left=2)


def _missing(frame: Frame) -> str:
    """Rows without a time, those with the same cause together."""
    bad = frame[frame["status"] != "ok"]
    rows = []
    keys = ["operator", "mode", "dtype", "implementation", "status"]
    for key, group in bad.groupby(keys, sort=False):
        reasons = list(dict.fromkeys(str(text) for text in group["reason"].dropna()))
        reason = reasons[0] if reasons else ""
        reason += f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        where = "; ".join(_where(row) for row in group.to_dict("records")[:4])
        where += f"; {len(group) - 4} more" if len(group) > 4 else ""
        rows.append(
            [escape_markdown(text) for text in (words(key[0]), *map(str, key[1:]), where, reason[:300])]
        )
    return markdown_table(
        ["operator", "mode", "dtype", "implementation", "status", "points", "why"], rows, left=7
    )


def _published(frame: Frame) -> list[str]:
    """Published times in the dtype and modes of this report, beside ours at the same shape; else nothing."""
    known = frame[(frame["source"] == "ours") & (frame["status"] == "ok")].to_dict("records")
    ours = {_identity(row): row for row in reversed(known)}
    modes = {(row["operator"], row["mode"], row["dtype"]) for row in known}
    lines = [line for line in published() if (line.case.operator, line.case.mode, line.case.dtype) in modes]
    if not lines:
        return []
    rows = []
    for line in lines:
        mine = ours.get(_identity(shape_cells(line.case.to_dict())))
        here = number(1e3 * seconds(mine)) if mine else NOTHING
        words = [
            line.case.mode,
            shape_words(line.case.to_dict()),
            line.implementation,
            number(1e3 * line.seconds),
        ]
        rows.append([*map(escape_markdown, words), here])
    text = f"Not measured here: {lines[0].device}; {lines[0].source}."
    heads = ["mode", "shape", "implementation", "published ms", "ours here, ms"]
    return [escape_markdown(text), markdown_table(heads, rows, left=3)]


def _identity(row: Mapping[str, Any]) -> tuple:
    sizes = (int(row[name]) if pd.notna(row[name]) else None for name in SIZES)
    return (row["operator"], row["mode"], row["dtype"], *sizes, row["options"])


def _where(row: Mapping[str, Any]) -> str:
    letters = {"batch": "B", "heads": "H", "key_dim": "D", "length": "n", "rows": "rows ", "width": "width "}
    return " ".join(
        f"{letters[name]}{int(row[name])}" for name in SIZES if name in letters and pd.notna(row[name])
    )


def _sessions(frame: Frame, records: Records) -> Iterator[str]:
    """A paragraph per session whose rows are shown: when, with what, at which copy rate."""
    for name in dict.fromkeys(frame["session"]):
        session = records.sessions.get(name, {})
        versions = ", ".join(f"{key} {text}" for key, text in (session.get("versions") or {}).items())
        commit = str((session.get("provenance") or {}).get("commit") or "unknown")[:12]
        copy = short(records.copy_rate(name))
        yield escape_markdown(
            f"Session {name}, {session.get('started', '')}: {session.get('command', '')}. {versions}; "
            f"commit {commit}; copy {copy}B/s; {(frame['session'] == name).sum()} rows."
        )
