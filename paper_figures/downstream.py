"""The benchmark table: commonsense tasks, MMLU, CMMLU and C-Eval (v2 table 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import OURS, Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.statistics import Interval

ABOUT = About("downstream", "Downstream benchmarks", "downstream", Measure(evaluation=True))
CLAIM = Claim(
    "competitive",
    "Models of 385M, 1B and 7B are on a par with or better than others of their size on these benchmarks.",
    Expects.parity,
)
Z = 1.959964
"""Of a 95 % interval, from lm-eval's standard error over questions."""


def build(records: Records) -> Built:
    """The printed rows, and ours: models of this project that were asked the same tasks in the same way."""
    table = published.downstream()
    rows = [*_printed(table), *_ours(table, records)]
    measured = [row for row in rows if row.ours]
    because = "ours are not of the paper's sizes: they stand beside its rows, and no verdict follows"
    finding = Finding(CLAIM, Verdict.missing, command=ABOUT.measure.command)
    if measured:
        finding = Finding(
            CLAIM, Verdict.undecided, because, measured[0].setting, "evals", ABOUT.measure.command,
            tuple(dict.fromkeys(run for row in measured for run in row.runs)),
        )  # fmt: skip
    return Built(_figure(table, rows), rows, [finding])


def _printed(table) -> list[Row]:
    return [
        of_paper(
            name(line), line["source"], f"{head} ({metric})", table["unit"], value, at=f"{line['billions']}B",
            setting=f"{line['tokens'] or '?'}T tokens, {shots}-shot",
            where="TNL table 2" if line["source"] == "TNL" else f"v2 {table['where']['v2']}",
        )
        for line in table["rows"]
        for head, metric, shots, value in zip(
            table["heads"], table["metrics"], table["fewshot"], line["values"], strict=True
        )
        if value is not None
    ]  # fmt: skip


def name(line) -> str:
    """`OPT 0.35B`."""
    return f"{line['model']} {line['billions']}B"


def _ours(table, records: Records) -> list[Row]:
    """Results of the paper's tasks with its metric and number of examples, every question asked."""
    found = records.evaluations()
    if found is None:
        return []
    rows = []
    for head, task, metric, shots in zip(
        table["heads"], table["tasks"], table["metrics"], table["fewshot"], strict=True
    ):
        for one in found[(found["task"] == task) & (found["metric"] == metric)].to_dict("records"):
            if one["fewshot"] != shots or not _whole(one["limit"]):
                continue
            value, half = 100 * one["value"], 100 * Z * one["stderr"]
            rows.append(
                Row(
                    one["model"], OURS, f"{head} ({metric})", table["unit"], where="evals",
                    setting=f"{one['items']} questions, {shots}-shot", runs=(one["key"],),
                    value=Interval(value, value - half, value + half, int(one["items"])),
                    command=ABOUT.measure.command,
                    note="at chance" if str(one["at_chance"]) == "True" else "",
                )
            )  # fmt: skip
    return rows


def _whole(limit) -> bool:
    """Whether every question of a task was asked."""
    return limit is None or math.isnan(float(limit))


def _figure(table, rows: Sequence[Row]) -> Figure:
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(4.6 + 0.085 * len(drawing.id_lines(ids)))
    ours = list(dict.fromkeys(row.subject for row in rows if row.ours))
    with style():
        under = (
            "Accuracy (%) over parameters. Blue diamonds: TransNormerLLM; grey: others. Ours: "
            + (", ".join(ours) or "not measured yet")
            + "."
        )
        top = drawing.head(figure, ABOUT.title, under)
        bottom = drawing.foot(figure, ids) + 0.35
        total = figure.get_figheight()
        grid = figure.add_gridspec(
            2,
            5,
            top=1 - (top + 0.15) / total,
            bottom=bottom / total,
            left=0.05,
            right=0.985,
            wspace=0.28,
            hspace=0.32,
        )
        for place, (head, metric) in enumerate(zip(table["heads"], table["metrics"], strict=True)):
            axes = figure.add_subplot(grid[place // 5, place % 5])
            _panel(axes, table, place, [r for r in rows if r.ours and r.measure == f"{head} ({metric})"])
            axes.set_title(f"{head} ({metric}, {table['fewshot'][place]}-shot)", fontsize=6.5)
            if place >= 5:
                axes.set_xlabel("parameters (billions)")
    return figure


def _panel(axes: Axes, table, place: int, ours: Sequence[Row]) -> None:
    """Other models as dots, TransNormerLLM as a line with diamonds, ours as lines at their height."""
    points = [(line["billions"], line["values"][place], line["model"]) for line in table["rows"]]
    known = [point for point in points if point[1] is not None]
    others = [(x, y) for x, y, model in known if model not in ("TransNormerLLM", "TNL")]
    mine = sorted((x, y) for x, y, model in known if model in ("TransNormerLLM", "TNL"))
    axes.plot(
        *zip(*others, strict=True), "o", color=drawing.QUIET, markersize=2.5, alpha=0.7, linestyle="none"
    )
    axes.plot(*zip(*mine, strict=True), "D-", color=PALETTE[0], markersize=3, linewidth=0.8)
    for row in ours:
        axes.axhline(row.value.mean, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([0.4, 1, 7, 15], ["0.4", "1", "7", "15"])
    axes.minorticks_off()
