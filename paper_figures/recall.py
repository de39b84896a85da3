"""Can linear attention with a fixed decay look up what it was told? Left open by the paper (paper.md 7.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.ablation import of_suites
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records, SuiteRecords
from tnbench.paper_figures.shared.several_suites import drawn, finding, of_suite, outcomes, scale
from tnbench.paper_figures.shared.tables import NONE, OURS, Built, Row
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.report.drawing import FONT, INK, PALETTE, style
from tnbench.report.recall_plot import COLUMNS
from tnbench.report.results import Frame
from tnbench.statistics import Interval


@dataclass(frozen=True)
class Task:
    """One task, and the suite that asks it."""

    suite: str
    title: str
    heads: str = ""
    """What the names of the variants end with that are compared: as many heads for all models."""

    def line(self, variant: str) -> str:
        """How a variant is called in the table: `needle, no decay`, `MQAR, no decay, 16 heads`."""
        family = next(one for one in FAMILIES if variant.startswith(one))
        heads = variant.removeprefix(family).removeprefix("-")
        return f"{self.title}, {FAMILIES[family][0]}" + (f", {heads} heads" if heads else "")

    def variant(self, family: str) -> str:
        """The variant of a family that is compared."""
        return family + self.heads


FAMILIES: dict[str, tuple[str, str]] = {
    "transnormerllm": ("TransNormerLLM", INK),
    "no-decay": ("no decay", PALETTE[0]),
    "retnet": ("RetNet's decay", PALETTE[2]),
    "transformer": ("Transformer", PALETTE[1]),
}
"""What the names of variants begin with → name and colour."""
COMPARED = ("no-decay", "transformer")
"""Families that findings speak of, against TransNormerLLM."""
MQAR, LARGE = Task("recall-mqar", "MQAR", "-4"), Task("recall-mqar-large", "MQAR, large", "-4")
TASKS = (
    MQAR,
    LARGE,
    Task("recall-needle", "needle"),
    Task("recall-copying", "copying"),
    Task("recall-in-context", "in context"),
)
ABOUT = About(
    "recall",
    "Recall: can a fixed decay look up what it was told?",
    "",
    Measure(suites=tuple(task.suite for task in TASKS)),
)
ASKED = {
    "no-decay": "is more looked up without decay (LRPE in every layer)?",
    "transformer": "does softmax attention look up more?",
}


def claims() -> dict[tuple[str, str], Claim]:
    """Suite and family → the open question."""
    return {
        (task.suite, family): Claim(
            f"{task.suite}-{family}",
            f"Open, {task.title}: {ASKED[family]} Wrong answers against TransNormerLLM.",
            Expects.open,
            task.variant(family),
            task.line(task.variant(family)),
        )
        for task in TASKS
        for family in COMPARED
    }


def build(records: Records) -> Built:
    """Accuracy over the size of the state and over the difficulty of each task, and a verdict per task."""
    rows, findings, stamps, notes = [], [], [], []
    shown: dict[str, tuple[SuiteRecords, Frame]] = {}
    for task in TASKS:
        found = records.suites(task.suite)
        for one in found:
            lines = {variant: task.line(variant) for variant in _ordered(one)}
            table = drawn(one, "recall.csv", COLUMNS)
            shown.setdefault(task.suite, (one, table))
            rows += [replace(row, relative=NONE) for row in of_suites([one], lines)]
            rows += _levels(one, table, lines)
            stamps += one.stamps
            notes += outcomes(one, lines)
        findings += _findings(task, found)
    return Built(_figure(shown, rows, findings), rows, findings, stamps, notes)


def _ordered(one: SuiteRecords) -> list[str]:
    """The variants by family, the base first."""
    names = [name for family in FAMILIES for name in one.variants if name.startswith(family)]
    return sorted(names, key=lambda name: name != one.base)


def _findings(task: Task, found: Sequence[SuiteRecords]) -> list[Finding]:
    asked = {task.variant(family): claims()[task.suite, family] for family in COMPARED}
    measured = [
        finding(claim, one, variant)
        for variant, claim in asked.items()
        for one in found
        if variant in one.comparisons
    ]
    known = {one.claim for one in measured}
    command = of_suite(task.suite)
    missing = [
        Finding(claim, Verdict.missing, command=command) for claim in asked.values() if claim not in known
    ]
    return measured + missing


def _levels(one: SuiteRecords, table: Frame, lines: dict[str, str]) -> list[Row]:
    """Accuracy of every variant at every level."""
    means = table[table["kind"] == "mean"].set_index(["variant", "level"])
    return [
        Row(
            lines[variant], OURS, "accuracy", "share", setting=one.setting, at=str(level),
            value=Interval(mean["accuracy"], mean["low"], mean["high"], int(mean["n"])),
            where=one.where, runs=one.ids(variant), command=one.command,
            note=f"{mean['state_size']:,.0f} values of state",
        )
        for variant in lines
        for level in dict.fromkeys(table["level"])
        if (variant, level) in means.index
        for mean in [means.loc[(variant, level)]]
    ]  # fmt: skip


def _figure(
    shown: dict[str, tuple[SuiteRecords, Frame]], rows: Sequence[Row], findings: Sequence[Finding]
) -> Figure:
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(4.0 + 0.085 * len(drawing.id_lines(ids)))
    total = figure.get_figheight()
    with style():
        under = (
            "Accuracy over the values of recurrent state, and over the difficulty of each task. Large "
            "dots: means with 95 % t intervals, cut off at 0 and 1; small: seeds. The paper has no such test."
        )
        top = drawing.head(figure, ABOUT.title, under) + 0.22
        bottom = drawing.foot(figure, ids, _settings(shown)) + 0.42
        grid = figure.add_gridspec(
            2,
            4,
            left=0.055,
            right=0.985,
            top=1 - top / total,
            bottom=bottom / total,
            wspace=0.14,
            hspace=0.68,
        )
        panels = [figure.add_subplot(grid[place // 4, place % 4]) for place in range(8)]
        for axes, task in zip(panels[::2], (MQAR, LARGE), strict=False):
            _by_state(axes, task, shown.get(task.suite))
        for axes, task in zip([*panels[1:4:2], *panels[4:7]], TASKS, strict=True):
            _by_level(axes, task, shown.get(task.suite), findings)
        for place, axes in enumerate(panels[:7]):
            axes.set_ylim(-0.04, 1.04)
            if axes.get_yticks().size:
                axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if place % 4 == 0 else [""] * 3)
        _key(panels[7], shown)
    return figure


def _settings(shown: dict[str, tuple[SuiteRecords, Frame]]) -> str:
    """The scale of each task."""
    titles = {task.suite: task.title for task in TASKS}
    return "; ".join(f"{titles[suite]}: {scale(one)}" for suite, (one, _) in shown.items())


def _by_state(axes: Axes, task: Task, found: tuple[SuiteRecords, Frame] | None) -> None:
    """Accuracy at the hardest level over the values of state, a line per family."""
    table = found[1] if found else None
    if table is None or table.empty:
        axes.set_title(f"{task.title}: state", fontsize=FONT - 0.5)
        drawing.unmeasured(axes)
        return
    hardest = list(dict.fromkeys(table["level"]))[-1]
    axes.set_title(f"{task.title}: state, {hardest}", fontsize=FONT - 0.5)
    axes.set_xlabel("values of state", fontsize=FONT - 1)
    axes.set_xscale("log", base=2)
    here = table[table["level"] == hardest]
    for family in FAMILIES:
        mine = here[here["variant"].str.startswith(family)]
        _points(axes, family, mine, "state_size")
    least, most = (math.log2(end) for end in (here["state_size"].min(), here["state_size"].max()))
    drawing.powers(axes.xaxis, [2**power for power in range(math.ceil(least), math.floor(most) + 1)])
    axes.margins(x=0.12)


def _by_level(
    axes: Axes, task: Task, found: tuple[SuiteRecords, Frame] | None, findings: Sequence[Finding]
) -> None:
    """Accuracy over the levels of difficulty, a line per family, and the verdicts."""
    table = found[1] if found else None
    if table is None or table.empty:
        axes.set_title(task.title, fontsize=FONT - 0.5)
        drawing.unmeasured(axes)
        return
    levels = list(dict.fromkeys(table["level"]))
    what, _, _ = str(levels[0]).partition("=")
    axes.set_title(f"{task.title}: {what}", fontsize=FONT - 0.5)
    verdicts = {family: _verdict(task, family, findings) for family in COMPARED}
    told = "\n".join(f"{FAMILIES[family][0]}: {verdict}" for family, verdict in verdicts.items() if verdict)
    axes.set_xlabel(told, fontsize=FONT - 1.5, color=drawing.QUIET)
    table = table.assign(place=[levels.index(level) for level in table["level"]])
    for number, family in enumerate(FAMILIES):
        mine = table[table["variant"] == task.variant(family)]
        _points(axes, family, mine.assign(place=mine["place"] + 0.06 * (number - 1.5)), "place")
    axes.set_xticks(range(len(levels)), [str(level).partition("=")[2] for level in levels])
    axes.set_xlim(-0.4, len(levels) - 0.6)


def _verdict(task: Task, family: str, findings: Sequence[Finding]) -> str:
    """What the first records of a task say of a family; empty where they do not speak of it."""
    claim = claims()[task.suite, family]
    mine = [one for one in findings if one.claim == claim and one.verdict != Verdict.missing]
    return str(mine[0].verdict) if mine else ""


def _points(axes: Axes, family: str, table: Frame, along: str) -> None:
    """Seeds, means and their intervals of one family."""
    color = FAMILIES[family][1]
    seeds, means = table[table["kind"] == "seed"], table[table["kind"] == "mean"].sort_values(along)
    small: dict[str, Any] = {"markersize": 3.4, "alpha": 0.5, "markeredgewidth": 0}
    axes.plot(seeds[along], seeds["accuracy"], ".", color=color, **small)
    axes.plot(means[along], means["accuracy"], "o-", color=color, markersize=3.6, linewidth=1)
    low, high = means["low"].clip(0, 1), means["high"].clip(0, 1)
    axes.vlines(means[along], low, high, color=color, linewidth=0.9, alpha=0.6)


def _key(axes: Axes, shown: dict[str, tuple[SuiteRecords, Frame]]) -> None:
    """Which colour is which model, of those that are there."""
    axes.axis("off")
    names = [name for _, table in shown.values() for name in table["variant"]]
    there = [look for family, look in FAMILIES.items() if any(name.startswith(family) for name in names)]
    if there:
        axes.text(0.1, 1.02, "verdicts: wrong answers\nagainst TransNormerLLM", transform=axes.transAxes)
    for place, (name, color) in enumerate(there):
        axes.text(0.1, 0.75 - 0.2 * place, f"●  {name}", color=color, transform=axes.transAxes)
