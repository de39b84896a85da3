"""What evaluations say of a suite's variants: per task, the mean over seeds and the difference to the base.

The unit is the run, as everywhere in a suite: a run's score on a task is one value, and the base's and the
variant's are paired by seed. That is the difference of paired questions with each seed as a cluster of them
(`statistics.items`): where all seeds answer the same questions, both give the same standard error. Beside it
stands, for information, what the choice of the questions does: each question's mean over the seeds, compared
question by question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from tnbench.statistics import Comparison, Difference, Verdict, compare, compare_items, mean_interval

Frame = Any
"""A pandas DataFrame."""

SCORE, BITS = "score", "bits"
"""What is measured: a task's own metric, and the bits per byte of its right answers."""
BITS_METRIC = "gold_bits_per_byte"

EVAL_COLUMNS = (
    *("variant", "seed", "run_id", "task", "measure", "metric", "higher_is_better"),
    *("value", "stderr", "questions", "chance", "outcome", "reason"),
)
"""Columns of `Evaluated.values`."""

POSITION_COLUMNS = (
    *("variant", "seed", "run_id", "trained_context", "begin", "end"),
    *("bits_per_token", "bytes_per_token", "stderr", "windows"),
)
"""Columns of `Evaluated.positions`; the standard error is over windows, in bits per token."""

EVAL_OUTCOMES = {
    "evaluated": "evaluated",
    "out_of_memory": "out of memory",
    "failed": "failed",
    "no_weights": "without weights",
    "not_finished": "not finished",
    "missing": "missing",
}
"""What became of the evaluation of a run, and the words for it."""

Place = tuple[str, int, str, str]
"""Variant, seed, task, measure."""


@dataclass(frozen=True)
class Evaluated:
    """The evaluations of a suite's reported runs."""

    tasks: Mapping[str, str]
    """Task → how it is printed, `hellaswag, 5-shot, first 100`, in the order of the suite."""
    values: Frame
    """One row for each reported run, task and measure, whatever became of it, with `EVAL_COLUMNS`."""
    answers: Mapping[Place, Any] = field(default_factory=dict, repr=False)
    """Each question's share in a value: a Series by question whose mean is the value."""
    positions: Frame = field(default_factory=lambda: pd.DataFrame(columns=list(POSITION_COLUMNS)))
    """Losses by position: one row for each reported run and bin, with `POSITION_COLUMNS`."""
    asked: str = ""
    """How the models were asked, in words: precision, device, tokens at a time."""

    def __post_init__(self) -> None:
        assert set(EVAL_COLUMNS) <= set(self.values), set(EVAL_COLUMNS) - set(self.values)
        assert set(POSITION_COLUMNS) <= set(self.positions)
        assert set(self.values["task"]) <= set(self.tasks), "values of a task that was not asked"
        assert set(self.values["outcome"]) <= set(EVAL_OUTCOMES), set(self.values["outcome"])
        assert not self.values.duplicated(["variant", "seed", "task", "measure"]).any()

    def of(self, variant: str, task: str, measure: str) -> Frame:
        """The rows of a variant, by seed."""
        frame = self.values
        same = (frame["variant"] == variant) & (frame["task"] == task) & (frame["measure"] == measure)
        return frame[same].sort_values("seed")


@dataclass(frozen=True)
class TaskSummary:
    """What the runs of one variant say on one task."""

    task: str
    variant: str
    measure: str
    """`score` or `bits`."""
    metric: str
    """The task's metric; empty where no run was evaluated."""
    higher_is_better: bool
    outcomes: Counter[str]
    """Evaluations by outcome."""
    n: int
    """Runs with a value."""
    mean: float
    stderr: float
    """Of the mean over seeds; NaN with fewer than two."""
    questions: float
    """Questions of the task."""
    chance: float
    """The score of guessing; NaN where there is none."""
    below_resolution: bool
    """Whether guessing lies within the interval of the score over questions, or above it."""
    comparison: Comparison | None
    """Against the base, paired by seed; None for the base."""
    over_questions: Difference | None
    """The same difference over questions, for information; None for the base and where answers are lost."""
    unresolved: bool = False
    """Whether variant and base are both below resolution, so that there is no verdict but *undecided*."""

    @property
    def planned(self) -> int:
        """Reported runs of the variant."""
        return self.outcomes.total()


def summarise(found: Evaluated, variants: Sequence[str], alpha: float) -> list[TaskSummary]:
    """One summary for each task, measure and variant, in this order; the first variant is the base.

    Holm's correction takes the variants and tasks of a measure together: (variants − 1) × tasks comparisons.
    A measure that no run has on a task is left out there, and is no comparison. Two scores that are not above
    guessing are not told apart, whatever their p: their comparison counts in the family and stays undecided.
    """
    made: list[TaskSummary] = []
    for measure in (SCORE, BITS):
        tasks = [task for task in found.tasks if _known(found, task, measure)]
        comparisons = _compared(found, tasks, variants, measure, alpha)
        made += [
            _summary(found, variant, variants[0], task, measure, alpha, comparisons.get((task, variant)))
            for task in tasks
            for variant in variants
        ]
    low = {(one.task, one.variant) for one in made if one.below_resolution}
    order = list(found.tasks)
    return sorted(
        (
            _unresolved(one) if low >= {(one.task, one.variant), (one.task, variants[0])} else one
            for one in made
        ),
        key=lambda one: order.index(one.task),
    )


def _unresolved(one: TaskSummary) -> TaskSummary:
    """A comparison of two scores of which neither is above guessing, without a verdict."""
    if one.measure != SCORE or one.comparison is None:
        return one
    comparison = replace(one.comparison, verdict=Verdict.undecided, seeds_needed=None)
    return replace(one, comparison=comparison, unresolved=True)


def _known(found: Evaluated, task: str, measure: str) -> bool:
    frame = found.values
    return bool(((frame["task"] == task) & (frame["measure"] == measure)).any())


def _values(found: Evaluated, variant: str, task: str, measure: str) -> Any:
    """A Series: the values of a variant by seed, where there are any."""
    rows = found.of(variant, task, measure).set_index("seed")["value"].astype(float)
    return rows[np.isfinite(rows)]


def _higher(found: Evaluated, task: str, measure: str) -> bool:
    frame = found.values
    rows = frame[(frame["task"] == task) & (frame["measure"] == measure)]
    return bool(rows["higher_is_better"].dropna().any())


def _compared(
    found: Evaluated, tasks: Sequence[str], variants: Sequence[str], measure: str, alpha: float
) -> dict[tuple[str, str], Comparison]:
    """Every variant but the base against it on every task: one family."""
    pairs, places = [], []
    for task in tasks:
        base = _values(found, variants[0], task, measure)
        sign = -1 if _higher(found, task, measure) else 1
        for variant in variants[1:]:
            values = _values(found, variant, task, measure)
            shared = base.index.intersection(values.index)
            pairs.append((sign * values[shared].to_numpy(), sign * base[shared].to_numpy()))
            places.append((task, variant, sign))
    made = compare(pairs, alpha=alpha)
    return {
        (task, variant): one if sign > 0 else _turned(one)
        for (task, variant, sign), one in zip(places, made, strict=True)
    }


def _turned(one: Comparison) -> Comparison:
    """A comparison of negated values, as one of the values themselves."""
    had = one.difference
    difference = replace(had, mean=-had.mean, low=-had.high, high=-had.low)
    bca = one.bca and replace(one.bca, mean=-one.bca.mean, low=-one.bca.high, high=-one.bca.low)
    return replace(one, difference=difference, bca=bca)


def _summary(
    found: Evaluated,
    variant: str,
    base: str,
    task: str,
    measure: str,
    alpha: float,
    comparison: Comparison | None,
) -> TaskSummary:
    rows, values = found.of(variant, task, measure), _values(found, variant, task, measure)
    n = len(values)
    metrics = [metric for metric in rows["metric"] if isinstance(metric, str) and metric]
    chance = _first(rows["chance"])
    return TaskSummary(
        task=task,
        variant=variant,
        measure=measure,
        metric=metrics[0] if metrics else "",
        higher_is_better=_higher(found, task, measure),
        outcomes=Counter(rows["outcome"]),
        n=n,
        mean=float(values.mean()) if n else math.nan,
        stderr=float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        questions=_first(rows["questions"]),
        chance=chance,
        below_resolution=measure == SCORE and _reaches(found, rows, task, variant, chance, alpha),
        comparison=comparison,
        over_questions=_over_questions(found, variant, base, task, measure, alpha) if comparison else None,
    )


def _first(column: Any) -> float:
    known = column.dropna()
    return float(known.iloc[0]) if len(known) else math.nan


def _reaches(found: Evaluated, rows: Frame, task: str, variant: str, chance: float, alpha: float) -> bool:
    """Whether the interval of the mean score over questions reaches down to guessing."""
    if not math.isfinite(chance):
        return False
    seeds = [int(seed) for seed in rows["seed"]]
    each = _each_question(found, variant, task, SCORE, seeds)
    if each is not None:
        interval = mean_interval(each.to_numpy(), alpha)
        return interval.exists and interval.low <= chance
    known = rows[["value", "stderr"]].astype(float).dropna()  # the questions are lost, their spread is not
    return bool(len(known)) and bool(known["value"].mean() - 1.96 * known["stderr"].mean() <= chance)


def _each_question(found: Evaluated, variant: str, task: str, measure: str, seeds: Sequence[int]) -> Any:
    """A Series: the mean over seeds of each question that all of them answered; None where there is none."""
    columns = [found.answers[place] for s in seeds if (place := (variant, s, task, measure)) in found.answers]
    if not columns:
        return None
    table = pd.concat(columns, axis=1, join="inner")
    return table.mean(axis=1) if len(table) else None


def _over_questions(
    found: Evaluated, variant: str, base: str, task: str, measure: str, alpha: float
) -> Difference | None:
    """The difference over the questions that both answered with the seeds that both have."""
    shared = [
        seed
        for seed in sorted({place[1] for place in found.answers})
        if all((one, seed, task, measure) in found.answers for one in (variant, base))
    ]
    sides = [_each_question(found, one, task, measure, shared) for one in (variant, base)]
    if any(side is None for side in sides):
        return None
    both = sides[0].index.intersection(sides[1].index)
    return compare_items(sides[0][both].to_numpy(), sides[1][both].to_numpy(), alpha=alpha)
