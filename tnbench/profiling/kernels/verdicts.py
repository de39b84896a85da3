"""Speed-ups with their intervals: which of two implementations is faster, from interleaved rounds.

In each round every implementation is timed once, in an order that turns, so that a slow moment of the machine
meets them alike. With a_r and b_r the medians of round r, the speed-up of a over b is the geometric mean of
b_r / a_r, and its interval Student's t on the logarithms of these ratios, n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tnbench.statistics import paired_difference

ALPHA = 0.05
RIVALS = ("peer", "torch")
"""Sources of implementations that compute the same operator and are not ours."""


@dataclass(frozen=True)
class Speedup:
    """How many times faster one implementation is than another: 2 is half the time."""

    ratio: float
    low: float
    high: float
    """Ends of the interval, NaN with fewer than two rounds."""
    rounds: int

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the interval lies on one side of 1, else `undecided`."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "undecided"


def speedup(own: Sequence[float], other: Sequence[float], alpha: float = ALPHA) -> Speedup:
    """Of `own` over `other`: medians of the same rounds, seconds.

    >>> found = speedup([1.0, 1.0, 1.0], [2.0, 2.1, 1.9])
    >>> round(found.ratio, 3), round(found.low, 2), round(found.high, 2), found.verdict
    (1.998, 1.76, 2.26, 'faster')
    """
    found = paired_difference([math.log(x) for x in other], [math.log(x) for x in own], alpha)
    return Speedup(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


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
