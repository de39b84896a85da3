"""A suite's evaluations on the terminal, 80 columns wide: a table for each task."""

from __future__ import annotations

import math

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tnbench.report import eval_captions, eval_tables, words
from tnbench.report.evaluations import BITS, SCORE, TaskSummary
from tnbench.report.results import SuiteResults

MOST = 4
"""Tasks that are shown; more would push the table of the suite off the screen."""
LONGEST = 19
"""Letters of a variant's name in a line."""


def terminal_evaluations(results: SuiteResults) -> list[RenderableType]:
    """A table for each task, and the caption below; of many tasks only where they are."""
    if not eval_tables.shown(results):
        return []
    labels = eval_tables.labels(results)
    if len(labels) > MOST:
        return [f"Evaluations on {len(labels)} tasks: eval_summary.csv, table.md, and the report."]
    found = {(one.task, one.variant, one.measure): one for one in results.task_summaries}
    made: list[RenderableType] = []
    for task, label in labels.items():
        rows = [
            (found[task, variant, SCORE], found.get((task, variant, BITS))) for variant in results.variants
        ]
        metric = next((one.metric for one, _ in rows if one.metric), SCORE)
        arrow = "↑" if rows[0][0].higher_is_better else "↓"
        table = Table(title=Text(label, style="bold"), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        table.title_justify = "left"
        table.add_column("variant", max_width=LONGEST, overflow="fold")
        table.add_column("n", max_width=9)
        table.add_column(f"{metric} {arrow}", justify="right", max_width=11)
        table.add_column("against base", max_width=16)
        table.add_column("bits per byte ↓", justify="right", max_width=8)
        table.add_column("against base", max_width=16)
        for one, other in rows:
            cells = [one.variant, eval_tables.lost(one), _score(one), _against(results, one)]
            cells += [_mean(other), _against(results, other)]
            table.add_row(*map(Text, cells))
        made.append(table)
    return [*made, Text(" ".join(eval_captions.caption(results)))]


def _score(one: TaskSummary) -> str:
    if not math.isfinite(one.chance):
        return _mean(one)
    return f"{_mean(one)}\nchance {one.chance:.2f}" + ("\nbelow\nresolution" if one.below_resolution else "")


def _mean(one: TaskSummary | None) -> str:
    text = eval_tables.mean(one) if one else words.NOTHING
    return text.replace(" ±", "\n±").replace(" (", "\n(")


def _against(results: SuiteResults, one: TaskSummary | None) -> str:
    found = one.comparison if one else None
    if one is None or found is None or one.n == 0:
        return words.NOTHING
    lines = [words.difference(found.difference, one.n).replace(" [", "\n[").replace(" (", "\n(")]
    lines.append(str(found.verdict))
    if math.isfinite(found.p_holm):
        lines.append(words.p_is(found.p_holm, results.alpha))
    return "\n".join(lines)
