"""What a suite's CSV files hold: every run, one row per variant, every comparison, every tuning run."""

from __future__ import annotations

import math

import pandas as pd

from tnbench.report import words
from tnbench.report.results import (
    OUTCOMES,
    RUN_COLUMNS,
    TUNING_COLUMNS,
    Frame,
    SuiteResults,
    VariantSummary,
)
from tnbench.statistics import Comparison, bca_coverage

COUNTS = (
    *("seed", "stopped_step", "steps", "tokens", "attempts", "peak_memory_bytes", "state_size"),
    *("parameters", "non_embedding_parameters", "difference_pairs", "trials", "seeds_needed"),
)
"""Columns of whole numbers, which a missing value would turn into floats."""

COMPARISON_COLUMNS = (
    *("variant", "base", "metric", "unit", "n", "difference", "low", "high", "p", "p_holm", "comparisons"),
    *("alpha", "margin", "equivalence_p", "within_margin", "verdict", "seeds_needed"),
    *("detectable_difference", "sign_flip_p", "bca_low", "bca_high", "bca_coverage"),
    *("probability_of_improvement", "correlation", "pairing_gain", "repeat", "outliers", "planned"),
    *OUTCOMES,
)
"""Columns of comparisons.csv."""


def runs(results: SuiteResults) -> pd.DataFrame:
    """Every planned run, sorted by variant, seed and run id: the content of `runs.csv`."""
    extra = [name for name in results.runs if name not in RUN_COLUMNS]
    frame = results.runs[[*RUN_COLUMNS, *extra]].sort_values(["variant", "seed", "run_id"], kind="stable")
    return _whole_numbers(frame)


def tuning(results: SuiteResults) -> pd.DataFrame:
    """Every tuning run, sorted by variant, point of the grid and seed: the content of `tuning.csv`."""
    frame = results.tuning[[*TUNING_COLUMNS, *results.grid]]
    return _whole_numbers(frame.sort_values(["variant", *results.grid, "seed", "run_id"], kind="stable"))


def summary(results: SuiteResults) -> pd.DataFrame:
    """One row per variant, the base first: the content of `summary.csv`.

    `mean`, `low`, `high`, the differences and the sensitivity are in `unit`; `difference_p` is the paired
    t-test's, `difference_p_holm` the same corrected over the table.
    """

    def row(one: VariantSummary) -> dict[str, object]:
        difference, comparison = one.difference, one.comparison
        choice, matching = one.choice, one.matching
        return {
            "variant": one.variant,
            "diff": words.change(one, one.variant in results.repeats),
            "metric": results.metric,
            "unit": results.measured.unit,
            "planned": one.planned,
            **{name: one.outcomes[name] for name in OUTCOMES},
            "n": one.metric.n,
            "mean": one.metric.mean,
            "low": one.metric.low,
            "high": one.metric.high,
            "alpha": results.alpha,
            "outliers": one.outliers,
            "difference": difference and difference.mean,
            "difference_low": difference and difference.low,
            "difference_high": difference and difference.high,
            "difference_pairs": difference and difference.n,
            "difference_p": difference and difference.p,
            "difference_p_holm": comparison and comparison.p_holm,
            "verdict": comparison and str(comparison.verdict),
            "chosen": choice and words.point(choice.point),
            "trials": choice and choice.trials,
            "edge": choice and choice.edge,
            "sensitivity": choice and choice.sensitivity,
            "matched_by": results.matched_by,
            "matching_residual": matching and matching.residual,
            "parameters": one.parameters,
            "non_embedding_parameters": one.non_embedding_parameters,
            "flops_per_token": one.flops_per_token,
            "state_size": one.state_size,
            "tokens_per_second": one.tokens_per_second,
            "speed_ratio": one.speed_ratio,
            "peak_memory_bytes": one.peak_memory_bytes,
        }

    return _whole_numbers(pd.DataFrame([row(one) for one in results.summaries]))


def comparisons(results: SuiteResults) -> pd.DataFrame:
    """One row per variant but the base, with all that was computed: the content of `comparisons.csv`.

    `difference` is variant minus base; it, both its intervals, `margin` and `detectable_difference` are in
    `unit`. The outcomes are those of the variant's own runs.
    """

    def row(one: VariantSummary, found: Comparison) -> dict[str, object]:
        difference, bca = found.difference, found.bca
        return {
            "variant": one.variant,
            "base": results.base,
            "metric": results.metric,
            "unit": results.measured.unit,
            "n": difference.n,
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
            "p_holm": found.p_holm,
            "comparisons": found.comparisons,
            "alpha": found.alpha,
            "margin": math.nan if found.margin is None else found.margin,
            "equivalence_p": found.equivalence_p,
            "within_margin": found.within_margin,
            "verdict": str(found.verdict),
            "seeds_needed": found.seeds_needed,
            "detectable_difference": found.detectable,
            "sign_flip_p": found.sign_flip_p,
            "bca_low": bca.low if bca else math.nan,
            "bca_high": bca.high if bca else math.nan,
            "bca_coverage": bca_coverage(difference.n) if bca else math.nan,
            "probability_of_improvement": found.improvement,
            "correlation": found.correlation,
            "pairing_gain": found.pairing_gain,
            "repeat": one.variant in results.repeats,
            "outliers": one.outliers,
            "planned": one.planned,
            **{name: one.outcomes[name] for name in OUTCOMES},
        }

    rows = [row(one, one.comparison) for one in results.summaries if one.comparison]
    return _whole_numbers(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)))


def _whole_numbers(frame: Frame) -> pd.DataFrame:
    numbers = {name: frame[name].astype(float) for name in COUNTS if name in frame}
    whole = {name: "Int64" for name, column in numbers.items() if (column.dropna() % 1 == 0).all()}
    return frame.assign(**{name: numbers[name] for name in whole}).astype(whole)
