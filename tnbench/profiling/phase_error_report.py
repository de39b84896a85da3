"""Records of LRPE's phase errors, and the table that is made of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError
from tnbench.profiling.inference_error_report import markdown, number
from tnbench.records import PACKAGE, write_atomic

FOLDER = Path("models") / "phase-error"
"""Where a results folder has the records."""
RECORDS = "records.jsonl"
"""The study on the first line, then the errors of a form in a dtype on each."""
FORMS = ("positions", "both", "theta", "ours")
CASES = (("fp32", "ours"), *((dtype, form) for dtype in ("bf16", "fp16") for form in FORMS))
"""Dtype and form of every series; in fp32, the official code rounds as ours does."""
DISTANCES = (1, 16, 256)
MARKS = (256, 2048, 16384, 131072)
"""Positions that the table speaks of."""
SOURCES = (
    *("profiling/phase_error.py", "interop/official_position.py"),
    *("model/positions.py", "kernels/lrpe/reference.py"),
)
"""Files whose change makes the records old."""


def code_hash() -> str:
    """Hash of the source behind the numbers."""
    total = hashlib.sha256()
    for name in SOURCES:
        total.update(name.encode() + b"\0" + (PACKAGE / name).read_bytes() + b"\0")
    return total.hexdigest()[:12]


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write a record, whose `series` are the lines after the first."""
    head = {name: value for name, value in record.items() if name != "series"}
    lines = [json.dumps(part, ensure_ascii=False) for part in (head, *record["series"])]
    write_atomic(folder / RECORDS, "\n".join(lines) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The record of a folder.

    Raises:
        RequestError: there is none, or it is not one of these records.
    """
    path = folder / RECORDS
    try:
        record, *series = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if record["schema"] != 1 or record["study"] != "phase-error":
            raise ValueError
        if [(one["dtype"], one["form"]) for one in series] != list(CASES):
            raise ValueError
        _ = [record[name] for name in ("heads", "head_dim", "length", "measured", "code")]
        _ = [one["first_lost"] for one in series]
        count = len(record["begins"])
        rows = [row for one in series for row in (one["phase"], *(one["score"][str(d)] for d in DISTANCES))]
        if not count or any(len(row) != count for row in rows):
            raise ValueError
    except FileNotFoundError:
        raise RequestError(f"no records in {folder}; measure first, without --report") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RequestError(
            f"{path} is damaged, or no record of tnbench.profiling.phase_error; measure again into another "
            "folder with --results"
        ) from error
    return {**record, "series": series}


def largest(record: dict[str, Any], errors: Sequence[float | None], before: int, least: int = 0) -> float:
    """The largest error of the bins from position `least` to before another; infinite where one is lost."""
    pairs = zip(record["begins"], errors, strict=True)
    return max((math.inf if x is None else x for begin, x in pairs if least <= begin < before), default=0.0)


def table(record: dict[str, Any]) -> str:
    """Phase errors before some positions, and errors of scores at the last, in Markdown."""
    marks = [mark for mark in MARKS if mark in {*record["begins"], record["length"]}]
    header = [f"before {mark:,} (rad)" for mark in marks]
    header += [f"score at distance {distance}" for distance in DISTANCES]
    rows = []
    for one in record["series"]:
        cells: list[float | None] = [largest(record, one["phase"], mark) for mark in marks]
        cells += [one["score"][str(distance)][-1] for distance in DISTANCES]
        rows.append([one["dtype"], one["form"], *map(_cell, cells)])
    return markdown(["dtype", "form", *header], rows)


def _cell(error: float | None) -> str:
    return "not finite" if error is None or math.isinf(error) else number(error)
