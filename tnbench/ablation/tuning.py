"""The search for each variant's hyperparameters: the same grid and the same number of trials for all.

A grid point of a variant has one run per tune seed; its score is their mean metric on the tune-validation
split. A point at which any run diverged, or ran out of memory, has the score infinity. When every variant has
every score, each takes its best point. Where the best point of any variant lies at an end of the grid, the
grid gets one more value beyond that end, at the ratio of the last two, *for every variant*, so that none is
tuned better than another; each end may be moved `widen` times. What then still lies at an end is flagged.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tnbench.report.results import Choice

Point = dict[str, float]
"""Dotted key → value."""
Grid = Mapping[str, Sequence[float]]
"""Dotted key → values, ascending."""


@dataclass(frozen=True)
class Search:
    """Where a search stands: all points that it needs so far, and once it has ended, what it chose."""

    points: list[Point]
    choices: dict[str, Choice] = field(default_factory=dict)


def search(
    variants: Sequence[str],
    grid: Grid,
    widen: int,
    score: Callable[[str, Point], float | None],
    *,
    seeds: int,
    ceiling: Callable[[str], float],
) -> Search:
    """The search as far as the known scores carry it: a function of the records, so that it can be resumed.

    Args:
        variants: their names.
        grid: the values to begin with.
        widen: how often each end of each key may be moved.
        score: the score of a variant at a point; None where it is not known yet.
        seeds: runs per point.
        ceiling: the metric of a uniform prediction, for the sensitivity.
    """
    values = {key: list(numbers) for key, numbers in grid.items()}
    moved = dict.fromkeys(itertools.product(values, ("down", "up")), 0)
    while True:
        points = _points(values)
        scores = {name: [score(name, point) for point in points] for name in variants}
        if any(one is None for row in scores.values() for one in row):
            return Search(points)
        known = {name: [one for one in row if one is not None] for name, row in scores.items()}
        best = {name: points[row.index(min(row))] for name, row in known.items()}
        ends = {end for point in best.values() for end in _ends(point, values)}
        wanted = [end for end in moved if end in ends and moved[end] < widen]
        if not wanted:
            break
        for key, direction in wanted:
            moved[key, direction] += 1
            _extend(values[key], direction)

    def choice(name: str) -> Choice:
        row, point = known[name], best[name]
        lowest, worst = min(row), ceiling(name)
        excess = statistics.fmean(min(one, worst) for one in row) - min(lowest, worst)
        at = [
            f"{key} at its {'smallest' if direction == 'down' else 'largest'}, {point[key]:g}"
            for key, direction in _ends(point, values)
        ]
        flag = "; ".join(at) if math.isfinite(lowest) else "no point of the grid has finished"
        return Choice(point, lowest, seeds * len(points), flag, excess)

    return Search(points, {name: choice(name) for name in variants})


def _points(values: Grid) -> list[Point]:
    combinations = itertools.product(*values.values())
    return [dict(zip(values, combination, strict=True)) for combination in combinations]


def _ends(point: Point, values: Grid) -> list[tuple[str, str]]:
    """At which ends of the grid a point lies."""
    ends = [(key, "down") for key in point if point[key] == values[key][0]]
    return ends + [(key, "up") for key in point if point[key] == values[key][-1]]


def _extend(numbers: list[float], direction: str) -> None:
    edge, next_to_it = (numbers[0], numbers[1]) if direction == "down" else (numbers[-1], numbers[-2])
    beyond = float(f"{edge * edge / next_to_it:.6g}")
    numbers.insert(0 if direction == "down" else len(numbers), beyond)
