"""Which of two implementations of an operator is faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tnbench.profiling.speedups import ALPHA, Speedup, speedup

RIVALS = ("peer", "torch")
"""Sources of implementations that compute the same operator and are not ours."""


def timed(row: Mapping[str, Any]) -> bool:
    """Whether a row has a time."""
    return row["status"] == "ok" and bool(row.get("eager"))


def reported_seconds(row: Mapping[str, Any]) -> float:
    """The time that stands for a row: that of CUDA graphs where there is one, else eager; NaN without."""
    if not timed(row):
        return math.nan
    return (row.get("graph") or row["eager"])["median"]


def compare(own: Mapping[str, Any], other: Mapping[str, Any], alpha: float = ALPHA) -> Speedup:
    """Two rows of one block, over the rounds of both: graph times where both have them, else eager times."""
    way = "graph" if own.get("graph") and other.get("graph") else "eager"
    mine, others = own[way]["rounds"], other[way]["rounds"]
    both = min(len(mine), len(others))
    return speedup(mine[:both], others[:both], alpha)


def fastest(rows: Sequence[Mapping[str, Any]], sources: Sequence[str], but: str = "") -> Mapping | None:
    """The fastest correct row of these sources, leaving out the implementation `but`; None without any.

    It is chosen on the very times that it is then compared by, which flatters it, never us.
    """
    known = [row for row in rows if row["source"] in sources and row["implementation"] != but and timed(row)]
    return min(known, key=reported_seconds, default=None)
