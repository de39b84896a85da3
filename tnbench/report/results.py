"""What a report is made from: the runs of one suite, as they were recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tnbench.errors import RequestError, nearest
from tnbench.report.evaluations import Evaluated, TaskSummary, summarise
from tnbench.statistics import Comparison, Difference, Interval, check_alpha, compare, mean_interval, outliers

Frame = Any
"""A pandas DataFrame; pandas' own annotations make of each selection a union of all that it might be."""

RUN_COLUMNS = (
    *("variant", "seed", "run_id", "outcome", "reason", "stopped_step"),
    *("val_bits_per_byte", "val_loss_nats", "val_loss_bits", "train_loss_nats"),
    *("parameters", "non_embedding_parameters", "flops_per_token", "state_size", "steps", "tokens", "epochs"),
    *("tokens_per_second", "peak_memory_bytes", "train_seconds", "started", "ended", "attempts", "host"),
)
"""Columns of `SuiteResults.runs`; others may follow."""

CURVE_COLUMNS = ("variant", "seed", "run_id", "name", "split", "unit", "step", "tokens", "value")
"""Columns of `SuiteResults.curves`: one row per recorded value."""

TUNING_COLUMNS = ("variant", "seed", "run_id", "outcome", "reason", "stopped_step", "value")
"""First columns of `SuiteResults.tuning`; one per key of the grid follows, named by its dotted key."""

OUTCOMES = {
    "finished": "finished",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "failed": "failed",
    "interrupted": "interrupted",
    "missing": "missing",
    "unmeasured": "without a value",
}
"""How a run may have ended, and the words for it; a finished run without a finite value is unmeasured."""


@dataclass(frozen=True)
class Metric:
    """A column of `runs` that variants are compared by; lower is better."""

    label: str
    unit: str
    curve: str
    """Name of the recorded values that show it during training."""
    split: str = "tune"
    """Split of those values."""


METRICS = {
    "val_bits_per_byte": Metric("validation loss", "bits per byte", "val_bits_per_byte"),
    "val_loss_nats": Metric("validation loss", "nats per token", "val_loss"),
    "val_loss_bits": Metric("validation loss", "bits per token", "val_loss_bits"),
    "train_loss_nats": Metric("training loss", "nats per token", "train_loss", split="train"),
    "val_answer_error": Metric("wrong answers", "share", "val_answer_error"),
    "val_answer_bits": Metric("loss of the answers", "bits per token", "val_answer_bits"),
    "val_class_error": Metric("wrong classes", "share", "val_class_error"),
    "val_class_bits": Metric("loss of the class", "bits per class", "val_class_bits"),
    "val_pixel_error": Metric("wrong pixels", "share", "val_pixel_error"),
    "val_pixel_bits": Metric("loss of the pixels", "bits per pixel", "val_pixel_bits"),
    "val_sample_error": Metric("wrong samples", "share", "val_sample_error"),
    "val_sample_bits": Metric("loss of the samples", "bits per sample", "val_sample_bits"),
}
"""The last eight are those of examples, by the parts that are scored (`tnbench.data.examples`)."""


@dataclass(frozen=True)
class Matching:
    """How a variant was brought to the size of the base."""

    changed: Mapping[str, int]
    """Dotted key of each width that was solved for → its value."""
    residual: float
    """(value - base) / base of what was matched: 0.004 is 0.4 % more than the base."""


@dataclass(frozen=True)
class Choice:
    """What tuning chose for a variant, on the tune seeds and the tune split."""

    point: Mapping[str, float]
    """Dotted key of the grid → chosen value."""
    value: float
    """Metric at that point, averaged over the tune seeds."""
    trials: int
    """Tuning runs spent on the variant."""
    edge: str = ""
    """Where the choice lies on the edge of the grid: `training.learning_rate at its largest, 0.004`."""
    sensitivity: float = np.nan
    """Mean excess of the metric over the grid relative to the chosen point, in the metric's unit; a diverged
    point counts as a uniform prediction."""


@dataclass(frozen=True)
class SuiteResults:
    """The records of one ablation suite.

    Raises:
        RequestError: the metric is unknown, or alpha is not between 0 and 1.
    """

    name: str
    """Name of the suite, and of its results folder."""
    title: str
    base: str
    """Name of the base variant, whose diff is empty."""
    diffs: Mapping[str, Mapping[str, Any]]
    """Variant → dotted key → value, in the order of the suite."""
    runs: Frame
    """One row per planned run, whatever became of it, with `RUN_COLUMNS`; what is not known is NaN."""
    curves: Frame = field(default_factory=lambda: pd.DataFrame(columns=list(CURVE_COLUMNS)))
    """Values recorded during training, with `CURVE_COLUMNS`."""
    metric: str = "val_bits_per_byte"
    alpha: float = 0.05
    """One minus the coverage of intervals."""
    fixed: str = ""
    """What was not varied: "holds only for: …"."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Printed as they are, so with units: `corpus`, `tokenizer`, `context`, `tokens per run`, `device`,
    `versions`, `commit`, `command`, ….  The first three and the device also stand under the table."""
    notes: list[str] = field(default_factory=list)
    """What was wrong with the records."""
    margin: float | None = None
    """Differences up to this size count as equivalent, in the metric's unit; None: not tested."""
    matched_by: str = ""
    """What variants have in common with the base: `parameters`, `flops` or `state`; empty: not matched."""
    matching: Mapping[str, Matching] = field(default_factory=dict)
    """Variant → how it was matched."""
    tuning: Frame = field(default_factory=lambda: pd.DataFrame(columns=list(TUNING_COLUMNS)))
    """One row per tuning run, with `TUNING_COLUMNS` and one column per key of the grid; `value` is the metric
    on the tune split, NaN unless the run finished."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """Variant → what tuning chose; empty: not tuned."""
    repeats: frozenset[str] = frozenset()
    """Variants that are the base once more, with other initialisation seeds (A/A rows)."""
    evals: Evaluated | None = None
    """What the reported runs were asked after their training; None: nothing."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise RequestError(f"analysis.metric = {self.metric}: {nearest(self.metric, METRICS)}")
        check_alpha(self.alpha)
        assert self.base in self.diffs, f"the base {self.base} is no variant"
        assert set(RUN_COLUMNS) <= set(self.runs), set(RUN_COLUMNS) - set(self.runs)
        assert set(CURVE_COLUMNS) <= set(self.curves), set(CURVE_COLUMNS) - set(self.curves)
        assert set(self.runs["variant"]) <= set(self.diffs), "runs of a variant without a diff"
        assert set(self.runs["outcome"]) <= set(OUTCOMES), set(self.runs["outcome"]) - set(OUTCOMES)
        assert not self.runs.duplicated(["variant", "seed"]).any(), "two runs of one variant and seed"
        assert set(TUNING_COLUMNS) <= set(self.tuning), set(TUNING_COLUMNS) - set(self.tuning)
        named = {*self.matching, *self.choices, *self.repeats, *self.tuning["variant"]}
        assert named <= set(self.diffs), f"no variants: {named - set(self.diffs)}"

    @property
    def variants(self) -> list[str]:
        """All variants, the base first, then in the order of the suite."""
        return [self.base, *(name for name in self.diffs if name != self.base)]

    @property
    def measured(self) -> Metric:
        """The metric's label and units."""
        return METRICS[self.metric]

    @property
    def grid(self) -> list[str]:
        """Dotted keys that were tuned; empty: none."""
        return [name for name in self.tuning if name not in TUNING_COLUMNS]

    @property
    def tuned(self) -> bool:
        """Whether there are tuning runs."""
        return len(self.tuning) > 0

    @property
    def coverage(self) -> str:
        """Coverage of the intervals: `95 %`."""
        return f"{100 * (1 - self.alpha):.4g} %"

    def of(self, variant: str) -> Frame:
        """All planned runs of a variant, by seed."""
        return self.runs[self.runs["variant"] == variant].sort_values("seed")

    def finished(self, variant: str) -> Frame:
        """The finished runs of a variant that have a finite value, by seed."""
        runs = self.of(variant)
        return runs[(runs["outcome"] == "finished") & np.isfinite(runs[self.metric].astype(float))]

    def values(self, variant: str) -> Any:
        """A Series: the metric of the finished runs of a variant, indexed by seed."""
        return self.finished(variant).set_index("seed")[self.metric].astype(float)

    @cached_property
    def summaries(self) -> list[VariantSummary]:
        """One summary per variant, the base first."""
        return _summarise(self)

    @cached_property
    def task_summaries(self) -> list[TaskSummary]:
        """One summary per task, measure and variant, the base first; empty without evaluations."""
        return summarise(self.evals, self.variants, self.alpha) if self.evals else []


@dataclass(frozen=True)
class VariantSummary:
    """What the runs of one variant say."""

    variant: str
    diff: Mapping[str, Any]
    outcomes: Counter[str]
    """Runs by outcome."""
    metric: Interval
    """Over finished runs."""
    comparison: Comparison | None
    """Variant against base over the seeds that both have finished; None for the base."""
    outliers: int
    """Values far from the others of the variant; they are counted and stay in every number."""
    parameters: float
    non_embedding_parameters: float
    flops_per_token: float
    state_size: float
    tokens_per_second: float
    """Median over finished runs, as is the peak memory."""
    speed_ratio: float
    """Tokens per second over those of the base."""
    peak_memory_bytes: float
    choice: Choice | None
    """What tuning chose; None: not tuned."""
    matching: Matching | None
    """How the variant was matched; None: it was not."""

    @property
    def difference(self) -> Difference | None:
        """Variant minus base; None for the base."""
        return self.comparison and self.comparison.difference

    @property
    def planned(self) -> int:
        """Number of planned runs."""
        return self.outcomes.total()


def _summarise(results: SuiteResults) -> list[VariantSummary]:
    base_speed = _median(results.finished(results.base)["tokens_per_second"])
    comparisons = _compared(results)

    def summary(variant: str) -> VariantSummary:
        runs, finished, values = results.of(variant), results.finished(variant), results.values(variant)
        outcomes = Counter(runs["outcome"])
        outcomes["unmeasured"] += outcomes["finished"] - len(values)
        outcomes["finished"] = len(values)
        speed = _median(finished["tokens_per_second"])
        return VariantSummary(
            variant=variant,
            diff=results.diffs[variant],
            outcomes=outcomes,
            metric=mean_interval(values.to_numpy(), results.alpha),
            comparison=comparisons.get(variant),
            outliers=outliers(values.to_numpy()),
            parameters=_first(runs["parameters"]),
            non_embedding_parameters=_first(runs["non_embedding_parameters"]),
            flops_per_token=_first(runs["flops_per_token"]),
            state_size=_first(runs["state_size"]),
            tokens_per_second=speed,
            speed_ratio=speed / base_speed,
            peak_memory_bytes=_median(finished["peak_memory_bytes"]),
            choice=results.choices.get(variant),
            matching=results.matching.get(variant),
        )

    return [summary(variant) for variant in results.variants]


def _compared(results: SuiteResults) -> dict[str, Comparison]:
    """Every variant but the base against it: one family, whose p-values are corrected together."""
    base, others = results.values(results.base), results.variants[1:]
    pairs = []
    for values in map(results.values, others):
        shared = base.index.intersection(values.index)
        pairs.append((values[shared].to_numpy(), base[shared].to_numpy()))
    found = compare(pairs, alpha=results.alpha, margin=results.margin)
    return dict(zip(others, found, strict=True))


def _first(column: Any) -> float:
    """The value that all runs of a variant share, from the first run that knows it."""
    known = column.dropna()
    return float(known.iloc[0]) if len(known) else np.nan


def _median(column: Any) -> float:
    known = column.dropna()
    return float(known.astype(float).median()) if len(known) else np.nan
