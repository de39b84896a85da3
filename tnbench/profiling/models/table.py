"""Tables of models: on the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tnbench.profiling.models.store import Records
from tnbench.profiling.texts import markdown_table, number, place, signed_percent
from tnbench.report.formats import escape_markdown
from tnbench.report.results import Frame
from tnbench.report.words import NOTHING, counted, memory, short

MARKS = {"faster": "+", "slower": "−", "undecided": "?"}
LEGEND = (
    "tokens/s: median over all calls of all rounds. × base: tokens/s over those of the first variant, with "
    "its 95 % t interval over interleaved rounds (+ faster, − slower, ? undecided). MFU: FLOPs by formula, "
    "of the data sheet's dense bf16 peak / of the matmul rate measured in the session. floor: the least time "
    "that the bytes or, except in decoding, the products of a call take at the rates measured in the "
    "session, over the time. memory: at the peak, in brackets how far the prediction is off. J/token: idle "
    "power included."
)
HEADS = ("tokens/s", "× base", "latency", "MFU", "floor", "memory", "J/token")


def groups(frame: Frame) -> Iterator[tuple[str, Frame]]:
    """Title and rows of models.csv of each table: one for each mode, size, precision and suite."""
    for key, rows in frame.groupby(["suite", "mode", "size", "precision", "vocabulary"], sort=False):
        suite, mode, size, precision, vocabulary = key
        title = f"{mode}, {size}, {precision}, vocabulary {vocabulary:,}"
        yield title + (f", suite {suite}" if suite else ""), rows


def cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row under `HEADS`; what has no time has its status and reason in their place."""
    if pd.isna(row["tokens_per_second"]):
        return [str(row["status"]), *[""] * 4, _memory(row), ""]
    return [
        _rate(row["tokens_per_second"]),
        _ratio(row),
        latency(row["latency_seconds"]),
        _mfu(row),
        _percent(row["floor_share"]),
        _memory(row),
        number(_known(row["joules_per_token"])),
    ]


def _known(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else number(value)


def latency(seconds: float) -> str:
    """`12.3 ms`, `4.56 s`."""
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1e3 * seconds)} ms"


def _ratio(row: Mapping[str, Any]) -> str:
    if pd.isna(row["ratio"]):
        return "base" if pd.isna(row["base"]) and row["source"] == "ours" else NOTHING
    if pd.isna(row["ratio_low"]):
        return f"{row['ratio']:.2f} ({'one round' if row['interleaved'] else 'not paired'})"
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] {MARKS[row['verdict']]}"


def _percent(share: Any) -> str:
    return NOTHING if pd.isna(share) else f"{100 * share:.0f} %"


def _mfu(row: Mapping[str, Any]) -> str:
    measured = _percent(row["mfu_measured"])
    return f"{_percent(row['mfu'])} / {measured}" if pd.notna(row["mfu"]) else measured


def _memory(row: Mapping[str, Any]) -> str:
    if pd.isna(row["peak_memory_bytes"]):
        return ""
    text = memory(row["peak_memory_bytes"])
    return text if pd.isna(row["memory_error"]) else f"{text} ({signed_percent(row['memory_error'])})"


def terminal(title: str, rows: Frame) -> Group:
    """One table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for head in ("context", "batch"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    for head in HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    before = None
    for row in rows.to_dict("records"):
        where = (row["context"], row["batch"])
        shown = [place(int(row["context"])), str(row["batch"])] if where != before else ["", ""]
        before = where
        table.add_row(*map(Text, [*shown, str(row["variant"]), *cells(row)]))
    return Group(Text(title, style="bold"), table)


def largest_rows(frame: Frame) -> list[list[str]]:
    """Rows of largest.csv under `LARGEST_HEADS`."""
    rows = []
    for row in frame.to_dict("records"):
        axis = row["axis"]
        other = "batch" if axis == "context" else "context"
        held = f"{other} {place(int(row[other]))}"
        found = str(row["status"])
        if pd.notna(row["largest"]):
            found = place(int(row["largest"])) if row["largest"] else "nothing fits"
        predicted = place(int(row["predicted"])) if pd.notna(row["predicted"]) else NOTHING
        off = signed_percent(row["prediction_error"]) if pd.notna(row["prediction_error"]) else NOTHING
        words = (f"{row['mode']}, {row['size']}, {row['precision']}", row["variant"], f"{axis} at {held}")
        rows.append([*map(str, words), found, predicted, off, memory(row["memory_bytes"])])
    return rows


LARGEST_HEADS = ("mode, size", "variant", "largest", "found", "predicted", "error", "memory")


def largest_terminal(frame: Frame) -> Table:
    """The largest contexts and batches for the terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, head in enumerate(LARGEST_HEADS):
        table.add_column(head, justify="left" if index < 3 else "right", no_wrap=True)
    for row in largest_rows(frame):
        table.add_row(*map(Text, row))
    return table


def markdown(frame: Frame, found: Frame, records: Records) -> str:
    """table.md: a table for each mode and size, the largest that fits, FLOPs, what has no time and why."""
    parts = [f"# Models on {_machine(records)}", LEGEND]
    for title, rows in groups(frame):
        parts += [f"## {escape_markdown(title)}", _grid(rows)]
    if len(found):
        heads: list[str] = [*LARGEST_HEADS]
        lines = [[*map(escape_markdown, row)] for row in largest_rows(found)]
        parts += ["## The largest that fits", markdown_table(heads, lines, left=3)]
    if frame["flops_per_token"].notna().any():
        parts += ["## FLOPs per token", _flops(frame)]
    if (frame["status"] != "ok").any():
        parts += ["## What has no time", _missing(frame)]
    parts += ["## How it was measured", *_sessions(frame, found, records)]
    parts += map(escape_markdown, records.problems)
    return "\n\n".join(parts) + "\n"


def _machine(records: Records) -> str:
    return escape_markdown(str(next(iter(records.sessions.values()), {}).get("device", "an unknown machine")))


def _grid(rows: Frame) -> str:
    lines = []
    for row in rows.to_dict("records"):
        form = "" if pd.isna(row["form"]) else str(row["form"])
        where = (place(int(row["context"])), str(row["batch"]))
        lines.append([*map(escape_markdown, [str(row["variant"]), form, *where, *cells(row)])])
    return markdown_table(["variant", "form", "context", "batch", *HEADS], lines, left=2)


def _flops(frame: Frame) -> str:
    """By formula and by torch's counter, once for each model and context."""
    known = frame[frame["flops_per_token"].notna()]
    known = known.drop_duplicates(["mode", "size", "context", "suite", "variant"])
    lines = []
    for row in known.to_dict("records"):
        counted = NOTHING
        if pd.notna(row["counted_ratio"]):
            counted = f"{short(row['counted_flops_per_token'])} ({row['counted_ratio']:.3f} of the formula)"
        words = (row["mode"], row["size"], place(int(row["context"])), row["variant"])
        texts = (*map(str, words), short(row["flops_per_token"]), counted, f"{row['parameters']:,}")
        lines.append([*map(escape_markdown, texts)])
    heads = ["mode", "size", "context", "variant", "formula", "torch's counter", "parameters"]
    return markdown_table(heads, lines, left=4)


def _missing(frame: Frame) -> str:
    lines = []
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        where = f"{row['mode']} {row['size']}, context {place(int(row['context']))}, batch {row['batch']}"
        lines.append(
            [
                escape_markdown(str(text)[:300])
                for text in (where, row["variant"], row["status"], row["reason"])
            ]
        )
    return markdown_table(["point", "variant", "status", "why"], lines, left=4)


def _sessions(frame: Frame, found: Frame, records: Records) -> Iterator[str]:
    """A paragraph per session whose rows are shown: when, with what, at which rates."""
    for name in dict.fromkeys([*frame["session"], *found["session"]]):
        session = records.sessions.get(name, {})
        versions = ", ".join(f"{key} {text}" for key, text in (session.get("versions") or {}).items())
        commit = str((session.get("provenance") or {}).get("commit") or "unknown")[:12]
        rates = ""
        copy, matmul = (records.rate(name, f"{rate}_per_second") for rate in ("copy_bytes", "matmul_flops"))
        if copy and matmul:
            rates = f"; copy {short(copy)}B/s, matmul {short(matmul)}FLOP/s"
        yield escape_markdown(
            f"Session {name}, {session.get('started', '')}: {session.get('command', '')}. {versions}; "
            f"commit {commit}{rates}; {counted((frame['session'] == name).sum(), 'row')}."
        )
