"""The tidy table of a figure: one row per number and source, the paper's and ours under the same columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tnbench.paper_figures.shared.verdicts import Finding
from tnbench.report.results import Frame
from tnbench.statistics import Interval

COLUMNS = (
    *("subject", "against", "source", "setting", "at", "measure", "unit"),
    *("value", "low", "high", "n", "base_value"),
    *("difference", "difference_low", "difference_high"),
    *("relative", "relative_low", "relative_high"),
    *("p_holm", "margin", "verdict", "claim", "where", "runs", "command", "note"),
)
"""at: the length, width or size at which it was measured, where a figure has such an axis. value: of the
subject, in `unit`, as are base_value (of what it stands against) and the differences, subject less base.
relative: the difference over the base, a share. Ends are of 95 % intervals unless `note` says otherwise; n
counts runs, rounds or, for the paper, the one number printed. runs: ids of records, with spaces."""

WORDS = ("subject", "against", "source", "setting", "at", "measure")

NONE = Interval(math.nan, math.nan, math.nan, 0)


def printed(value: float) -> Interval:
    """A number of the paper: one run, no interval."""
    return Interval(float(value), math.nan, math.nan, 1)


@dataclass(frozen=True)
class Row:
    """One number of one source."""

    subject: str
    source: str
    """`paper v2`, `LA2`, `ours`."""
    measure: str
    unit: str
    against: str = ""
    setting: str = ""
    at: str = ""
    value: Interval = NONE
    base: Interval = NONE
    difference: Interval = NONE
    relative: Interval = NONE
    p_holm: float = math.nan
    margin: float = math.nan
    verdict: str = ""
    """What the comparison alone says, in the words of a suite's table."""
    claim: str = ""
    """The verdict on the paper's claim about it."""
    where: str = ""
    runs: Sequence[str] = ()
    command: str = ""
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether it was measured here, not printed elsewhere."""
        return self.source == OURS


OURS = "ours"


def of_paper(subject: str, source: str, measure: str, unit: str, value: float, **more: Any) -> Row:
    """A printed number; with `base`, its differences to that."""
    base = more.pop("base", None)
    if base is not None:
        more |= {
            "base": printed(base),
            "difference": printed(value - base),
            "relative": printed(value / base - 1),
        }
    return Row(subject, source, measure, unit, value=printed(value), **more)


def frame(rows: Sequence[Row]) -> Frame:
    """The rows under `COLUMNS`."""

    def cells(row: Row) -> Mapping[str, Any]:
        return {
            **{name: getattr(row, name) for name in WORDS},
            "unit": row.unit,
            "value": row.value.mean,
            "low": row.value.low,
            "high": row.value.high,
            "n": row.value.n,
            "base_value": row.base.mean,
            **_ends("difference", row.difference),
            **_ends("relative", row.relative),
            **{name: getattr(row, name) for name in ("p_holm", "margin", "verdict", "claim", "where")},
            "runs": " ".join(row.runs),
            "command": row.command,
            "note": row.note,
        }

    return pd.DataFrame([dict(cells(row)) for row in rows], columns=list(COLUMNS))


def _ends(name: str, interval: Interval) -> Mapping[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


@dataclass(frozen=True)
class Built:
    """What a module makes of the records."""

    figure: Figure
    rows: list[Row]
    findings: list[Finding]
    stamps: list[Stamp] = field(default_factory=list)
    """Which records it rests on, and which code made them."""
    notes: list[str] = field(default_factory=list)
    """What was wrong with the records, or is to be known of them."""

    @property
    def runs(self) -> list[str]:
        """Ids of all records behind it, each once."""
        return list(dict.fromkeys(run for row in self.rows for run in row.runs))

    @property
    def measured(self) -> bool:
        """Whether any number is ours."""
        return any(row.ours for row in self.rows)


@dataclass(frozen=True)
class Stamp:
    """Records of one kind, and the code behind them."""

    folder: str
    """Relative to the root of the records."""
    kind: str
    """`training`, `models`, or the operator of kernels."""
    code: str
    """Hash of the code that made them."""
    present: str
    """Hash of the same code as it is now."""
    command: str = ""
    """What made them."""

    @property
    def stale(self) -> bool:
        return self.code != self.present
