"""What is kept of many timed calls: medians and quantiles, overall and by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def summary(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median and quantiles over all calls, and the median of each round, in seconds."""
    every = sorted(value for values in rounds for value in values)
    return {
        "median": statistics.median(every),
        "p10": quantile(every, 0.1),
        "p90": quantile(every, 0.9),
        "calls": len(every),
        "rounds": [statistics.median(values) for values in rounds],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values, interpolated linearly.

    >>> quantile([1.0, 2.0, 3.0], 0.75)
    2.5
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
