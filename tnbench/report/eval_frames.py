"""What the CSV files of a suite's evaluations hold: every run, and one row per task, measure and variant."""

from __future__ import annotations

import pandas as pd

from tnbench.report.evaluations import EVAL_COLUMNS, EVAL_OUTCOMES, SCORE, TaskSummary
from tnbench.report.results import SuiteResults

SUMMARY_COLUMNS = (
    *("task", "variant", "measure", "metric", "higher_is_better", "planned", *EVAL_OUTCOMES),
    *("n", "mean", "stderr", "questions", "chance", "below_resolution"),
    *("difference", "low", "high", "pairs", "p", "p_holm", "comparisons", "alpha", "verdict"),
    *("seeds_needed", "detectable_difference"),
    *("over_questions_low", "over_questions_high", "over_questions_p"),
)
"""Columns of eval_summary.csv."""


def values(results: SuiteResults) -> pd.DataFrame:
    """Every reported run, task and measure: the content of `evals.csv`."""
    assert results.evals
    frame = results.evals.values[list(EVAL_COLUMNS)]
    order = {task: place for place, task in enumerate(results.evals.tasks)}
    frame = frame.assign(place=frame["task"].map(order), score=frame["measure"] == SCORE)
    by = ["place", "variant", "seed", "score"]
    frame = frame.sort_values(by, ascending=[True, True, True, False], kind="stable")[list(EVAL_COLUMNS)]
    return frame.astype({"questions": "Int64"})


def summary(results: SuiteResults) -> pd.DataFrame:
    """One row per task, measure and variant: the content of `eval_summary.csv`.

    `difference` is variant minus base, paired by seed, with its t interval; `p_holm` is corrected over
    `comparisons`. `over_questions_…` are of the same difference over questions.
    """

    def row(one: TaskSummary) -> dict[str, object]:
        found, other = one.comparison, one.over_questions
        return {
            "task": one.task,
            "variant": one.variant,
            "measure": one.measure,
            "metric": one.metric,
            "higher_is_better": one.higher_is_better,
            "planned": one.planned,
            **{name: one.outcomes[name] for name in EVAL_OUTCOMES},
            "n": one.n,
            "mean": one.mean,
            "stderr": one.stderr,
            "questions": one.questions,
            "chance": one.chance,
            "below_resolution": one.below_resolution,
            "difference": found and found.difference.mean,
            "low": found and found.difference.low,
            "high": found and found.difference.high,
            "pairs": found and found.difference.n,
            "p": found and found.difference.p,
            "p_holm": found and found.p_holm,
            "comparisons": found and found.comparisons,
            "alpha": results.alpha,
            "verdict": found and str(found.verdict),
            "seeds_needed": found and found.seeds_needed,
            "detectable_difference": found and found.detectable,
            "over_questions_low": other and other.low,
            "over_questions_high": other and other.high,
            "over_questions_p": other and other.p,
        }

    frame = pd.DataFrame([row(one) for one in results.task_summaries], columns=pd.Index(SUMMARY_COLUMNS))
    whole = ("questions", "pairs", "comparisons", "seeds_needed")
    return frame.astype(dict.fromkeys(whole, "Int64"))
