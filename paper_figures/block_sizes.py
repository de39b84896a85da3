"""Block sizes of Lightning Attention, too small and too large. The paper prints no number on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.kernels import MODES
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import Pair, judge
from tnbench.paper_figures.shared.tables import NONE, OURS, Built, Row, Stamp
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.profiling.block_sizes_records import FILE, Store, shown
from tnbench.profiling.kernels.store import kernel_hash
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.report.words import counted
from tnbench.statistics import Interval

OPERATOR = "linear_attention"
ABOUT = About(
    "block-sizes",
    "Block sizes of Lightning Attention, too small and too large",
    "",
    Measure(
        program="tnbench.profiling.block_sizes",
        takes="under a minute on a CPU; some minutes on a GPU, which it tells more exactly before it begins",
    ),
)
SMALLEST = Claim(
    "smallest", "Not in the paper: the best block against the smallest that was tried.", Expects.open
)
LARGEST = Claim(
    "largest", "Not in the paper: the best block against the largest that was tried.", Expects.open
)
TAKEN = Claim("taken", "Not in the paper: the best block against the one that the code takes.", Expects.open)
NAMES = {"triton": "Triton", "chunked": "chunked torch"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
COLORS = (PALETTE[2], PALETTE[0], INK, PALETTE[1], PALETTE[3])
PANEL, GAP = 1.75, 0.8
"""Inches of a row of panels, and of what stands between the axes of two rows."""

Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """One implementation on one machine, in one shape: its points by mode and length."""

    where: str
    implementation: str
    setting: str
    points: Sequence[Mapping[str, Any]]

    def arms(self, point: Mapping[str, Any]) -> list[Arm]:
        """Of this implementation, from the smallest block."""
        mine = (arm for arm in point["arms"] if arm["implementation"] == self.implementation)
        return sorted(mine, key=lambda arm: arm["block"])


def build(records: Records) -> Built:
    """Time over the block size for each length, on every machine that has records."""
    found, stamps = _studies(records)
    rows: list[Row] = []
    findings: list[Finding] = []
    for study in found:
        rows += _measured(study)
        for claim, pick in CLAIMS:
            finding, more = _against(study, claim, pick)
            rows, findings = rows + more, [*findings, finding]
    if not findings:
        findings = [Finding(one, Verdict.missing, command=ABOUT.measure.command) for one, _ in CLAIMS]
    return Built(_figure(found), rows, findings, stamps)


def _studies(records: Records) -> tuple[list[Study], list[Stamp]]:
    studies, stamps = [], []
    present = kernel_hash(OPERATOR)
    for path in sorted(records.root.glob(f"kernels/*/{FILE}")):
        where = path.parent.relative_to(records.root).as_posix()
        lines, problems = Store(path.parent).read()
        records.problems.extend(f"{where}: {problem}" for problem in problems)
        points = shown(lines)
        for hashed in dict.fromkeys(point["kernel_hash"] for point in points):
            stamps.append(Stamp(where, OPERATOR, hashed, present, ABOUT.measure.command))
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for point in points:
            for name in dict.fromkeys(arm["implementation"] for arm in point["arms"]):
                groups.setdefault((name, _setting(point)), []).append(point)
        for (name, setting), mine in sorted(groups.items(), key=lambda one: list(NAMES).index(one[0][0])):
            device = mine[0]["device"]
            studies.append(Study(where, name, f"{device}, {NAMES[name]}, {setting}", mine))
    return studies, stamps


def _setting(point: Mapping[str, Any]) -> str:
    shape, threads = point["case"]["shape"], point["threads"]
    text = (
        f"batch {shape['batch']}, {shape['heads']} heads of {shape['key_dim']}, "
        f"{DTYPES[point['case']['dtype']]}"
    )
    return f"{text}, {counted(threads, 'thread')}" if threads else text


def _measured(study: Study) -> Iterator[Row]:
    """Time and peak memory of each block size, and what was refused."""
    for point in study.points:
        mode, length = MODES[point["case"]["mode"]], point["case"]["shape"]["length"]
        shared: dict[str, Any] = {
            "setting": study.setting, "at": str(length), "where": study.where,
            "runs": (point["id"],), "command": point["command"],
        }  # fmt: skip
        for arm in study.arms(point):
            subject = f"{NAMES[study.implementation]}, block {arm['block']}"
            if arm["status"] != "ok":
                yield Row(
                    subject, OURS, f"time, {mode}", "ms", value=NONE, verdict=arm["status"],
                    note=f"refused, not timed: {arm['reason']}", **shared,
                )  # fmt: skip
                continue
            worst = max(float(error) for error in arm["errors"].values())
            note = f"largest error {worst:.1e} of the norm, against float64"
            note += "; the block that the code takes" if arm["taken"] else ""
            seconds = arm["seconds"]
            yield Row(
                subject, OURS, f"time, {mode}", "ms", note=note,
                value=_single(1e3 * seconds["median"], len(seconds["rounds"])), **shared,
            )  # fmt: skip
            if arm["peak_memory_bytes"] is not None:
                peak = _single(arm["peak_memory_bytes"] / 1e6)
                yield Row(subject, OURS, f"peak memory, {mode}", "MB", value=peak, **shared)


def _single(value: float, n: int = 1) -> Interval:
    return Interval(value, math.nan, math.nan, n)


def _against(
    study: Study, claim: Claim, pick: Callable[[Sequence[Arm]], Arm | None]
) -> tuple[Finding, list[Row]]:
    """How many times as fast the best block of each point is as another; where it is the best, nothing.

    The best is chosen by the first half of the rounds, and compared on the others, so that the choice does
    not flatter it.
    """
    pairs, same = [], 0
    for point in study.points:
        arms = [arm for arm in study.arms(point) if arm["status"] == "ok"]
        other = pick(arms)
        if other is None:
            continue
        half = len(other["seconds"]["rounds"]) // 2
        best = min(arms, key=lambda arm: statistics.median(arm["seconds"]["rounds"][:half]))
        if best is other:
            same += 1
            continue
        name = NAMES[study.implementation]
        pairs.append(
            Pair(
                str(point["case"]["shape"]["length"]),
                best["seconds"]["rounds"][half:],
                other["seconds"]["rounds"][half:],
                f"{name}, block {best['block']}",
                f"{name}, block {other['block']}",
                study.where,
                study.setting,
                (point["id"],),
                point["command"],
                MODES[point["case"]["mode"]],
            )
        )
    if not pairs:
        return _alike(study, claim, same), []
    finding, rows = judge(claim, pairs, command=ABOUT.measure.command)
    if same:
        finding = _with(finding, f"{finding.because}; itself the best at {counted(same, 'point')} more")
    return finding, rows


def _alike(study: Study, claim: Claim, same: int) -> Finding:
    """The verdict where the best block is the other one at every point, or nothing was right."""
    if not same:
        return Finding(claim, Verdict.missing, command=ABOUT.measure.command)
    runs = tuple(point["id"] for point in study.points)
    because = f"itself the best at all of {counted(same, 'point')}"
    return Finding(claim, "the same", because, study.setting, study.where, ABOUT.measure.command, runs)


def _with(finding: Finding, because: str) -> Finding:
    return Finding(
        finding.claim,
        finding.verdict,
        because,
        finding.setting,
        finding.records,
        finding.command,
        finding.runs,
    )


def _first(arms: Sequence[Arm]) -> Arm | None:
    return arms[0] if arms else None


def _last(arms: Sequence[Arm]) -> Arm | None:
    return arms[-1] if arms else None


def _taken(arms: Sequence[Arm]) -> Arm | None:
    return next((arm for arm in arms if arm["taken"]), None)


CLAIMS: tuple[tuple[Claim, Callable[[Sequence[Arm]], Arm | None]], ...] = (
    (SMALLEST, _first),
    (LARGEST, _last),
    (TAKEN, _taken),
)


def _figure(studies: Sequence[Study]) -> Figure:
    ids = list(dict.fromkeys(point["id"] for study in studies for point in study.points))
    figure = drawing.canvas(1.15 + 0.085 * len(drawing.id_lines(ids)) + PANEL * max(1, len(studies)))
    under = (
        "Time of a call over the tokens of a block, a line for each length. Ring: the block that the code "
        "takes. ×: refused, because it was wrong or could not be run."
    )
    with style():
        top = drawing.head(figure, ABOUT.title, under) + 0.36
        bottom = drawing.foot(figure, ids) + 0.4
        height = figure.get_figheight() - top - bottom
        each = (height + GAP) / max(1, len(studies))
        for number, study in enumerate(studies or [None]):
            above, below = top + each * number, bottom + height - each * (number + 1) + GAP
            axes = drawing.band(figure, above, below, [1, 1], left=0.06, right=0.87, wspace=0.45)
            for panel, mode in zip(axes, ("forward", "both"), strict=True):
                _panel(panel, study, mode)
            if study is not None:
                y = 1 - (above - 0.23) / figure.get_figheight()
                figure.text(0.06, y, study.setting, fontsize=7, fontweight="bold")
        figure.draw_without_rendering()
        for panel in figure.axes:
            drawing.spread(panel)
    return figure


def _panel(axes: Axes, study: Study | None, mode: str) -> None:
    axes.set_title(f"{MODES[mode]} (ms)", fontsize=6.5)
    axes.set_xlabel("tokens of a block")
    points = [point for point in study.points if point["case"]["mode"] == mode] if study else []
    if study is None or not points:
        drawing.unmeasured(axes)
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    blocks: set[int] = set()
    for color, point in zip(COLORS * len(points), points, strict=False):
        arms = study.arms(point)
        blocks |= {arm["block"] for arm in arms}
        right = [arm for arm in arms if arm["status"] == "ok"]
        if right:
            xs, ys = [arm["block"] for arm in right], [1e3 * arm["seconds"]["median"] for arm in right]
            name = f"{drawing.thousands(point['case']['shape']['length'])} tokens"
            drawing.curve(axes, xs, ys, name, color=color, marker="o")
        for arm in arms:
            if arm["status"] == "ok" and arm["taken"]:
                at = arm["block"], 1e3 * arm["seconds"]["median"]
                axes.plot(*at, "o", markersize=7.5, markerfacecolor="none", color=color)
    _refused(axes, study, points)
    axes.margins(x=0.12, y=0.14)
    drawing.powers(axes.xaxis, sorted(blocks))
    drawing.plain_ticks(axes.yaxis)


def _refused(axes: Axes, study: Study, points: Sequence[Mapping[str, Any]]) -> None:
    """Crosses at the top for blocks that were refused, with the lengths and why."""
    told: dict[int, list[str]] = {}
    for point in points:
        for arm in study.arms(point):
            if arm["status"] != "ok":
                length = drawing.thousands(point["case"]["shape"]["length"])
                told.setdefault(arm["block"], []).append(f"{length} {arm['status']}")
    for block, words in told.items():
        kinds = {word.split()[1] for word in words}
        if len(words) == len(points) and len(kinds) == 1:
            words = [*kinds]
        axes.text(
            block, 0.98, "\n".join(["×", *words]), transform=axes.get_xaxis_transform(), ha="center",
            va="top", fontsize=5.5, color=drawing.COLORS[Verdict.contradicted],
        )  # fmt: skip
