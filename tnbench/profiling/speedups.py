"""Speed-ups with their intervals: which of two is faster, from interleaved rounds.

In each round each of them is timed once, in an order that turns, so that a slow moment of the machine meets
them alike. With a_r and b_r the medians of round r, the speed-up of a over b is the geometric mean of
b_r / a_r, and its interval Student's t on the logarithms of these ratios, n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tnbench.statistics import paired_difference

ALPHA = 0.05


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
