"""The length from which linear attention is faster than softmax attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class BreakEven(NamedTuple):
    """Where two curves of time over length cross."""

    length: float
    """Interpolated; NaN where the lengths measured do not bracket it."""
    shown: str
    """`1,240`, `below 1,024`, `above 131,072`, or why there is none."""


def break_even(own: Mapping[int, float], other: Mapping[int, float]) -> BreakEven:
    """The length from which `own` stays below `other`, at all longer lengths that both have.

    Between the two lengths that bracket it, times are taken as powers of the length: the crossing is that of
    the straight lines through log time over log length.

    Args:
        own, other: seconds by length.

    >>> break_even({1024: 2.0, 4096: 4.0}, {1024: 1.0, 4096: 8.0}).shown
    '2,048'
    """
    both = sorted(length for length in own if length in other)
    if not both:
        return BreakEven(math.nan, "no length where both ran")
    gaps = [math.log(own[length] / other[length]) for length in both]
    if gaps[-1] >= 0:
        return BreakEven(math.nan, f"above {both[-1]:,}")
    last = max((place for place, gap in enumerate(gaps) if gap >= 0), default=None)
    if last is None:
        return BreakEven(math.nan, f"below {both[0]:,}")
    low, high = math.log(both[last]), math.log(both[last + 1])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    length = math.exp(low + share * (high - low))
    return BreakEven(length, f"{length:,.0f}")
