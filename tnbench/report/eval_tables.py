"""The tables of a suite's evaluations, format apart."""

from __future__ import annotations

import math
from collections import Counter

from tnbench.report import words
from tnbench.report.evaluations import BITS, EVAL_OUTCOMES, SCORE, TaskSummary
from tnbench.report.results import SuiteResults
from tnbench.report.tables import Cell, Column, Grid, costs, quality

JOINED = 2
"""Tasks that find room beside the costs of a variant; with more, they have a table of their own only."""


def shown(results: SuiteResults) -> bool:
    """Whether the suite asks its runs the questions of tasks."""
    return bool(results.evals and results.evals.tasks)


def parts(results: SuiteResults) -> list[Grid]:
    """The printed table in parts that share their first column: quality, evaluations if few, costs."""
    few = joined(results)
    return [quality(results), *([few] if few else []), costs(results)]


def joined(results: SuiteResults) -> Grid | None:
    """The tasks as columns beside the variants; None where there are none, or too many."""
    if not shown(results) or len(labels(results)) > JOINED:
        return None
    places = list(dict.fromkeys((one.task, one.measure) for one in results.task_summaries))
    found = {(one.variant, one.task, one.measure): one for one in results.task_summaries}
    columns = [Column("variant", numeric=False)]
    for task, measure in places:
        one = found[results.base, task, measure]
        named = f"{labels(results)[task]} {_arrow(one)}"
        columns.append(Column(named, _metric(results, task) if measure == SCORE else "bits per byte"))

    def cell(one: TaskSummary) -> Cell:
        text = mean(one)
        if one.comparison and one.n:
            text += f" ({one.comparison.verdict})"
        return Cell(text, one.mean)

    rows = [
        [Cell.word(variant), *(cell(found[variant, *place]) for place in places)]
        for variant in results.variants
    ]
    return Grid(columns, rows)


def scores(results: SuiteResults) -> Grid:
    """Every task and variant: the score, guessing, the difference to the base and the verdict."""
    columns = [
        Column("task", numeric=False, wraps=True),
        Column("variant", numeric=False),
        Column("n", numeric=False, wraps=True),
        Column("score"),
        Column("chance", numeric=False, wraps=True),
        *_differences(results),
    ]
    rows = [
        [
            Cell.word(f"{labels(results)[one.task]}, {one.metric or 'score'} {_arrow(one)}"),
            Cell.word(one.variant),
            Cell(lost(one), one.n),
            Cell(mean(one), one.mean),
            Cell(chance(one), one.chance),
            *_against(results, one),
        ]
        for one in results.task_summaries
        if one.measure == SCORE
    ]
    return Grid(columns, rows)


def bits(results: SuiteResults) -> Grid:
    """Every task and variant: bits per byte of the right answers, the difference and the verdict."""
    columns = [
        Column("task", numeric=False, wraps=True),
        Column("variant", numeric=False),
        Column("right answers ↓", "bits per byte"),
        *_differences(results),
    ]
    rows = [
        [
            Cell.word(labels(results)[one.task]),
            Cell.word(one.variant),
            Cell(mean(one), one.mean),
            *_against(results, one),
        ]
        for one in results.task_summaries
        if one.measure == BITS
    ]
    return Grid(columns, rows)


def evaluations(results: SuiteResults) -> list[Grid]:
    """The tables of scores and, where there are such, of right answers."""
    return [grid for grid in (scores(results), bits(results)) if grid.rows]


def full(results: SuiteResults) -> Grid:
    """Every comparison: what is behind its verdict, and the same difference over questions."""
    columns = [
        Column("task", numeric=False),
        Column("variant", numeric=False),
        Column("of", numeric=False),
        Column("pairs"),
        Column("p", "paired t"),
        Column("p", "Holm"),
        Column("detectable"),
        Column("seeds needed"),
        Column("questions"),
        Column("interval", "over questions"),
    ]
    rows = []
    for one in results.task_summaries:
        if one.comparison is None:
            continue
        found, other, needed = one.comparison, one.over_questions, one.comparison.seeds_needed
        rows.append(
            [
                Cell.word(labels(results)[one.task]),
                Cell.word(one.variant),
                Cell.word(one.metric if one.measure == SCORE else "bits per byte"),
                Cell(str(found.difference.n), found.difference.n),
                Cell(words.p(found.difference.p, results.alpha), found.difference.p),
                Cell(words.p(found.p_holm, results.alpha), found.p_holm),
                Cell(words.plain(found.detectable), found.detectable),
                Cell(words.seeds(needed) if needed else words.NOTHING, needed or math.nan),
                Cell(f"{one.questions:,.0f}" if one.questions > 0 else words.NOTHING, one.questions),
                Cell(
                    words.ends(other) if other and other.exists else words.NOTHING,
                    other.mean if other else math.nan,
                ),
            ]
        )
    return Grid(columns, rows)


def mean(one: TaskSummary) -> str:
    """`0.231 ± 0.004`: the mean over seeds and its standard error."""
    if one.n == 0:
        return words.NOTHING
    if one.n == 1:
        return f"{words.number(one.mean, 3)} (n = 1)"
    places = words.decimals(one.stderr)
    return f"{words.number(one.mean, places)} ± {words.number(one.stderr, places)}"


def chance(one: TaskSummary) -> str:
    """`0.250; below resolution at this size`."""
    if not math.isfinite(one.chance):
        return words.NOTHING
    return f"{one.chance:.3f}" + (f"; {words.BELOW}" if one.below_resolution else "")


def lost(one: TaskSummary) -> str:
    """`2/3, 1 out of memory`: evaluated runs of planned ones, and what became of the others."""
    return _counted(one.outcomes)


def _counted(outcomes: Counter[str]) -> str:
    others = [f"{outcomes[name]} {word}" for name, word in EVAL_OUTCOMES.items() if outcomes[name]]
    return ", ".join([f"{outcomes['evaluated']}/{outcomes.total()}", *others[bool(outcomes["evaluated"]) :]])


def _differences(results: SuiteResults) -> list[Column]:
    return [
        Column("difference to base"),
        Column("verdict", numeric=False, wraps=True),
        Column("p (Holm)"),
    ]


def _against(results: SuiteResults, one: TaskSummary) -> list[Cell]:
    found = one.comparison
    if found is None:
        return [Cell(words.NOTHING, 0.0), Cell.word(words.NOTHING), Cell(words.NOTHING, math.nan)]
    return [
        Cell(words.difference(found.difference, one.n), found.difference.mean),
        Cell.word("undecided (below resolution)" if one.unresolved else words.verdict(found)),
        Cell(words.p(found.p_holm, results.alpha), found.p_holm),
    ]


def labels(results: SuiteResults) -> dict[str, str]:
    """Task → how it is printed."""
    return dict(results.evals.tasks) if results.evals else {}


def _arrow(one: TaskSummary) -> str:
    return "↑" if one.higher_is_better else "↓"


def _metric(results: SuiteResults, task: str) -> str:
    """The metric of a task, and the score of guessing."""
    mine = [one for one in results.task_summaries if (one.task, one.measure) == (task, SCORE)]
    metric = next((one.metric for one in mine if one.metric), SCORE)
    guessing = next((one.chance for one in mine if math.isfinite(one.chance)), math.nan)
    return f"{metric}, chance {guessing:.3f}" if math.isfinite(guessing) else metric
