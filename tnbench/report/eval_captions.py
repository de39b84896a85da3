"""What stands under the tables of a suite's evaluations."""

from __future__ import annotations

import math

from tnbench.report import eval_tables, words
from tnbench.report.evaluations import SCORE
from tnbench.report.results import SuiteResults


def caption(results: SuiteResults) -> list[str]:
    """What the tables' numbers are, the rule of their verdicts and the family that they were corrected in."""
    if not eval_tables.shown(results):
        return []
    percent = results.coverage
    lines = [
        "Evaluations: mean ± standard error over seeds; n: evaluated runs of planned ones.",
        "Bits per byte: of the right answers, all bits over all bytes; lower is better.",
    ]
    if any(math.isfinite(one.chance) for one in results.task_summaries):
        lines.append(
            f"Chance: the score of guessing; {words.BELOW}: the {percent} interval of the score over "
            "questions reaches down to it, so that the score says nothing of the model."
        )
    every = {
        label: [one for one in results.task_summaries if (one.task, one.measure) == (task, SCORE) and one.n]
        for task, label in eval_tables.labels(results).items()
    }
    low = [label for label, mine in every.items() if mine and all(one.below_resolution for one in mine)]
    if low:
        lines.append(f"No variant is above guessing on {'; '.join(low)}.")
    if any(one.unresolved for one in results.task_summaries):
        lines.append("Two scores below resolution are not told apart, whatever their p.")
    families = {one.measure: one.comparison.comparisons for one in results.task_summaries if one.comparison}
    if families:
        variants = len(results.variants) - 1
        counts = [
            f"{words.counted(variants, 'variant')} × {words.counted(count // variants, 'task')} for the "
            f"{'scores' if measure == SCORE else 'bits per byte'}"
            for measure, count in families.items()
        ]
        lines.append(
            f"Differences are paired by seed, with the {percent} t interval; better or worse where the "
            f"paired t-test has p ≤ {results.alpha:g} after Holm's correction over "
            f"{' and over '.join(counts)}. They speak of training again with other seeds, asked these "
            "questions."
        )
    if results.evals and results.evals.asked:
        lines.append(f"{results.evals.asked}.")
    return lines
