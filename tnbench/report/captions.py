"""What stands under a suite's table: what its numbers are, the rule of its verdicts, what they hold for."""

from __future__ import annotations

import math

from tnbench.report import words
from tnbench.report.results import SuiteResults

MATCHED = {"parameters": "parameters", "flops": "FLOPs per token", "state": "recurrent state"}
"""What variants may be matched by, as it is printed."""


def caption(results: SuiteResults) -> str:
    """All that a reader needs who sees nothing but the table."""
    return " ".join(
        [*_numbers(results), *verdicts(results), *_rows(results), *_costs(results), *holds(results)]
    )


def brief(results: SuiteResults) -> str:
    """The caption for the terminal, where the columns of costs are few."""
    return " ".join([*_numbers(results), *verdicts(results), *_rows(results), *holds(results)])


def _numbers(results: SuiteResults) -> list[str]:
    metric, coverage = results.measured, results.coverage
    lines = [
        f"{metric.label.capitalize()} in {metric.unit}, lower is better: mean ± half width of the "
        f"{coverage} t interval over finished runs; n: finished runs of planned ones."
    ]
    if len(results.variants) > 1:
        name = f" {results.base}" if results.base != "base" else ""
        lines += [f"Difference to the base{name}: paired by seed, with its {coverage} t interval."]
    return lines


def verdicts(results: SuiteResults) -> list[str]:
    """The rule of the verdicts, and what pairing bought."""
    found = [one.comparison for one in results.summaries if one.comparison]
    if not found:
        return []
    unit, alpha, count = results.measured.unit, f"{results.alpha:g}", len(found)
    over = f", Holm-corrected for {count} comparisons," if count > 1 else ","
    rule = f"Verdict: better or worse where the paired t-test has p ≤ {alpha}{over}"
    if results.margin is not None:
        rule += (
            f" else equivalent where two one-sided t-tests at {alpha} put the difference within "
            f"±{results.margin:g} {unit},"
        )
    rule += " else undecided, with the seeds that a power of 80 % takes."
    lines = [rule]
    if results.margin is None:
        lines.append("No margin is set, so equivalence is not tested.")
    if count > 1:
        lines.append("Intervals are not widened for the number of comparisons.")
    gains = sorted(one.pairing_gain for one in found if math.isfinite(one.pairing_gain))
    if gains:
        low, high = (f"{float(f'{gain:.2g}'):g}" for gain in (gains[0], gains[-1]))
        times = low if low == high else f"{low} to {high}"
        lines.append(f"Without pairing the same precision would take {times} times the seeds.")
    return lines


def _rows(results: SuiteResults) -> list[str]:
    """What is special about single rows."""
    outliers = [f"{one.variant} {one.outliers}" for one in results.summaries if one.outliers]
    lines = [f"Outliers, counted and kept: {', '.join(outliers)}."] if outliers else []
    if any(one.metric.n < one.planned for one in results.summaries) and len(results.variants) > 1:
        lines.append("A seed that did not finish on both sides is in n, but in no difference and no verdict.")
    repeats = [name for name in results.variants if name in results.repeats]
    if repeats:
        lines.append(
            f"A/A: {', '.join(repeats)} differ{'' if len(repeats) > 1 else 's'} in nothing but the "
            "initialisation seeds."
        )
    return [*lines, *tuned(results)]


def tuned(results: SuiteResults) -> list[str]:
    """Whether and how each variant was tuned."""
    keys = list(map(words.key, results.grid)) if results.tuned else []
    lines = [] if "learning rate" in keys else ["Learning rate not tuned per variant."]
    if not keys:
        return lines
    if not results.choices:
        return [*lines, f"Tuning of the {' and '.join(keys)} has not ended."]
    seeds = ", ".join(f"{seed:g}" for seed in sorted(set(results.tuning["seed"])))
    lines.append(
        f"{' and '.join(keys).capitalize()} tuned per variant on the same grid, with seeds {seeds} and on "
        "the tune split, neither of which is reported; trials: runs spent on it."
    )
    if any(choice.edge for choice in results.choices.values()):
        lines.append("(edge): the best point lies at an end of the grid, so a better one may lie beyond.")
    return lines


def _costs(results: SuiteResults) -> list[str]:
    unit, lines = results.measured.unit, []
    if results.choices:
        lines.append(
            f"Sensitivity: mean excess over the grid against the chosen point, in {unit}, a diverged point "
            "counted as a uniform prediction."
        )
    lines.append("Parameters: without embeddings.")
    if results.matched_by:
        lines.append(
            f"Widths were matched by {MATCHED[results.matched_by]}; residual: the difference that is left, "
            "relative to the base."
        )
    lines.append(
        "Speed and memory: medians over finished runs, the memory at its peak; in brackets, times the base's "
        "speed."
    )
    return lines


def holds(results: SuiteResults) -> list[str]:
    """The conditions that the numbers hold for."""
    shown = ("corpus", "context", "tokens per run", "device")
    facts = "; ".join(f"{name}: {results.facts[name]}" for name in shown if results.facts.get(name))
    lines = [facts[0].upper() + facts[1:] + "."] if facts else []
    return lines + ([f"Holds only for: {results.fixed.rstrip('.')}."] if results.fixed else [])
