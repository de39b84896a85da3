"""Generated numbers in Markdown: each stands in a span that names its record and field.

    worse by <!-- record quickstart/comparisons.csv [variant = decay-only] difference +.3f interval -->+0.246
    [+0.189, +0.304]<!-- end --> bits per byte

A span names a CSV or JSON file under the records' folder, in brackets the rows (column = value, with
commas), and after that fields, each with Python's format for numbers; several fields are separated by
semicolons and are shown with commas between them, or in a table's row with bars.

| form | shows |
|---|---|
| `FIELD .2f` | the field of the one row that is left |
| `FIELD +.3f interval` | the same with its ends, from FIELD_low and FIELD_high, or else low and high |
| `FIELD .1%` | per cent, with a space before the sign |
| `min(FIELD) .2f`, `max`, `geomean`, `median`, `sum` | over the rows that are left |
| `count() d` | how many rows are left |
| `each(FIELD) .0%` | every row, in the order of the file |
| `FIELD s` | a text as it stands |

What is no measurement of ours, such as a limit or a setting, is marked with its reason and stays as it is:

    at most <!-- given limit of the command -->5 minutes<!-- end -->

In JSON, a field is a dotted path and there are no brackets. A span does not begin a line: for Markdown, a
line that begins with a comment ends the paragraph.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tnbench.report.words import MINUS

SPAN = re.compile(r"<!-- (?P<kind>record|given) (?P<what>[^>]*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)
OPEN = re.compile(r"<!-- (?:record|given)\b")
WHAT = re.compile(r"(?P<path>\S+)(?:\s+\[(?P<rows>.*)\])?\s+(?P<fields>[^\]]+)", re.DOTALL)
FIELD = re.compile(
    r"(?:(?P<over>\w+)\((?P<inner>[^)]*)\)|(?P<name>\S+))\s+(?P<form>\S+?)(?P<ends>\s+interval)?"
)

OVER: dict[str, Callable[[Any], float]] = {
    "min": np.min,
    "max": np.max,
    "median": np.median,
    "sum": np.sum,
    "geomean": lambda values: math.exp(float(np.mean(np.log(values)))),
}


@dataclass(frozen=True)
class Span:
    """One span of a page."""

    kind: str
    what: str
    text: str
    line: int


def spans(page: str) -> list[Span]:
    """All spans of a page, in their order."""
    return [
        Span(found["kind"], found["what"], found["text"], _line(page, found.start()))
        for found in SPAN.finditer(page)
    ]


def rendered(page: str, root: Path) -> tuple[str, list[str]]:
    """A page with its spans as the records give them, and what was wrong: `line 31: …`.

    Args:
        page: Markdown.
        root: the folder of the records.
    """
    problems = [
        f"line {_line(page, found.start())}: a span is not closed with <!-- end -->"
        for found in OPEN.finditer(page)
        if not SPAN.match(page, found.start())
    ]

    problems += [
        f"line {_line(page, found.start())}: a span may not begin a line: Markdown would end the paragraph"
        for found in SPAN.finditer(page)
        if not page[page.rfind("\n", 0, found.start()) + 1 : found.start()].strip()
    ]

    def again(found: re.Match[str]) -> str:
        if found["kind"] == "given":
            return found.group()
        start = page.rfind("\n", 0, found.start()) + 1
        row = page[start : found.start()].lstrip().startswith("|")
        try:
            text = shown(found["what"], root, " | " if row else ", ")
        except (ValueError, KeyError) as error:
            problems.append(f"line {_line(page, found.start())}: {error.args[0] if error.args else error}")
            return found.group()
        if " ".join(text.split()) == " ".join(found["text"].split()):
            return found.group()  # a line break in it may stay
        return f"<!-- record {found['what']} -->{text}<!-- end -->"

    return SPAN.sub(again, page), problems


def differences(page: str, root: Path) -> list[str]:
    """What a page says otherwise than its records: `line 31: says 1.60, the records say 1.68 (…)`."""
    now, problems = rendered(page, root)
    for there, fresh in zip(spans(page), spans(now), strict=True):
        if " ".join(there.text.split()) != " ".join(fresh.text.split()):
            what = " ".join(there.what.split())
            problems.append(
                f"line {there.line}: says {there.text!r}, the records say {fresh.text!r} ({what})"
            )
    return problems


def shown(what: str, root: Path, between: str) -> str:
    """The text that a span's words stand for.

    Raises:
        ValueError: no such file, row, field or form.
    """
    found = WHAT.fullmatch(" ".join(what.split()))
    if found is None:
        raise ValueError(f"{what!r} is no span: expected FILE [COLUMN = VALUE] FIELD FORM")
    path = root / found["path"]
    if not path.is_file():
        raise ValueError(f"the record {found['path']} is missing")
    rows = _rows(path, found["rows"])
    return between.join(_field(rows, part.strip(), what, between) for part in found["fields"].split(";"))


def _rows(path: Path, wanted: str | None) -> Sequence[Mapping[str, Any]]:
    """The rows of a file that a span asks for."""
    if path.suffix == ".json":
        return [_flat(json.loads(path.read_text(encoding="utf-8")))]
    frame: Any = pd.read_csv(path, dtype=str, keep_default_na=False)
    for condition in filter(None, re.split(r",\s*(?=[\w.]+ = )", wanted or "")):
        column, _, value = condition.partition(" = ")
        if column not in frame:
            raise ValueError(f"{path.name} has no column {column}")
        frame = frame[frame[column] == value]
    if frame.empty:
        raise ValueError(f"{path.name} has no row [{wanted}]")
    return frame.to_dict("records")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = [_flat(inner, f"{prefix}{key}.") for key, inner in value.items()]
        return {key: inner for part in parts for key, inner in part.items()}
    return {prefix.rstrip("."): value}


def _field(rows: Sequence[Mapping[str, Any]], part: str, what: str, between: str) -> str:
    found = FIELD.fullmatch(part)
    if found is None:
        raise ValueError(f"{part!r} is no field with its form, as in difference +.3f ({what})")
    over, inner, form = found["over"], found["inner"], found["form"]
    if over == "count":
        return formatted(len(rows), form)
    if over == "each":
        return between.join(formatted(_value(row, inner), form) for row in rows)
    if over is not None:
        if over not in OVER:
            raise ValueError(f"{over} is unknown; known: count, each, {', '.join(OVER)}")
        return formatted(OVER[over](np.array([float(_value(row, inner)) for row in rows])), form)
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows are left for {found['name']} ({what})")
    text = formatted(_value(rows[0], found["name"]), form)
    if found["ends"]:
        ends = [
            next((f"{name}" for name in (f"{found['name']}_{end}", end) if name in rows[0]), end)
            for end in ("low", "high")
        ]
        text += " [" + ", ".join(formatted(_value(rows[0], end), form) for end in ends) + "]"
    return text


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"there is no field {name}")
    if row[name] in ("", None):
        raise ValueError(f"the field {name} is empty")
    return row[name]


def formatted(value: Any, form: str) -> str:
    """A number by Python's format, with a true minus sign and a space before a per cent sign.

    >>> formatted("-0.0412", "+.1%"), formatted(0.5, ".2f"), formatted("undecided", "s")
    ('−4.1 %', '0.50', 'undecided')
    """
    if form == "s":
        return str(value)
    try:
        number = int(value) if form.endswith("d") else float(value)
        return f"{number:{form}}".replace("-", MINUS).replace("%", " %")
    except ValueError as error:
        raise ValueError(f"{value!r} cannot be shown as {form}") from error


UNITS = (
    r"%|×|per cent|ms|µs|ns|s|seconds?|min|minutes?|h|hours?|days?|bits?|nats?|bytes?|[KMGT]i?B(?:/s)?|"
    r"tokens/s|tokens per second|[TG]?FLOPs?(?:/s)?|joules?|J|W|watts?|times(?! as many seeds)|GHz|MHz"
)
NUMBER = re.compile(
    rf"(?<![\w.])[−+±~-]?\d[\d.,]*(?:\s*(?:to|and|–)\s*[−+]?\d[\d.,]*)?"
    rf"[*_]*(?:\s*\[[^\]]*\])?[\s-]?(?:{UNITS})(?!\w)"
)
NOT_MEASURED = re.compile(
    r"\b95 % (?:\w+ )?intervals?"  # the coverage, which is a convention
    r"|\b[AH]\d00[ -]\d+ ?GB(?: HBM\d\w?)?"  # names of devices
)
NOT_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|(?<=\])\([^)\s]*\)|<!--(?! (?:record|given) ).*?-->|https?://\S+", re.DOTALL
)


def outside(page: str) -> list[str]:
    """Numbers with a unit that stand in no span: `line 12: 1.68 times stands in no span`."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found.group())

    text = SPAN.sub(lambda found: "\n" * found.group().count("\n") + "…", page)
    for pattern in (NOT_PROSE, NOT_MEASURED):
        text = pattern.sub(blank, text)
    return [
        f"line {_line(text, found.start())}: {' '.join(found.group().split())} stands in no span"
        for found in NUMBER.finditer(text)
    ]


def _line(page: str, place: int) -> int:
    """The line of a place in a page, from 1."""
    return page.count("\n", 0, place) + 1
