"""What the figures of the paper share: a forest of differences, panels of curves, the line with the run ids.

Colours, fonts and sizes are those of the reports (`tnbench.report.drawing`). The paper's numbers are
diamonds, ours circles with intervals; a verdict has a colour and a sign of its own and stands in words.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tnbench.paper_figures.shared.tables import Row
from tnbench.paper_figures.shared.verdicts import Finding, Verdict
from tnbench.report.drawing import FONT, INK, PALETTE, WIDTH, style
from tnbench.report.words import MINUS

QUIET = "#6b7077"
COLORS = {
    Verdict.confirmed: "#0072b2",
    Verdict.contradicted: "#d55e00",
    Verdict.undecided: INK,
    Verdict.missing: QUIET,
}
SIGNS = {
    Verdict.confirmed: "✓",
    Verdict.contradicted: "✗",
    Verdict.undecided: "?",
    Verdict.missing: "–",
}
MARKS: dict[str, dict[str, Any]] = {
    "paper v1": {"marker": "D", "markerfacecolor": "white"},
    "paper v2": {"marker": "D"},
}
SMALL = FONT - 1.5
KEY = 0.62
"""Inches between axes and foot: ticks, label, legend."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""For folders of one suite: at another size, on another corpus."""
ID_LETTERS = 184
"""Of run ids on a line of a figure."""
MOST_ID_LINES = 12


def minus(number: float) -> str:
    """A tick label with a true minus sign.

    >>> minus(-0.5), minus(1000.0)
    ('−0.5', '1000')
    """
    return f"{number:g}".replace("-", MINUS)


def plain_ticks(axis: Any) -> None:
    """Numbers on an axis as they are read, with true minus signs."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: minus(round(value, 10))))
    axis.set_minor_formatter(NullFormatter())


def canvas(height: float) -> Figure:
    """An empty figure over both columns, with room at its foot for the run ids."""
    with style():
        return Figure(figsize=(WIDTH, height))


def id_lines(ids: Sequence[str]) -> list[str]:
    """The run ids behind a figure, in lines; where there are too many, the table that has all is named."""
    if not ids:
        return ["no records yet"]
    lines = textwrap.wrap(f"records ({len(ids)}): " + " ".join(ids), ID_LETTERS)
    if len(lines) > MOST_ID_LINES:
        lines = [*lines[: MOST_ID_LINES - 1], "… all ids stand in the CSV file of the same name"]
    return lines


def foot(figure: Figure, ids: Sequence[str], note: str = "") -> float:
    """Write the ids, and a note above them, at the foot; the height that they take, in inches."""
    lines = [*textwrap.wrap(note, 165), *id_lines(ids)]
    height = 0.085 * len(lines)
    notes = len(lines) - len(id_lines(ids))
    total = figure.get_figheight()
    for number, line in enumerate(lines):
        size = SMALL if number < notes else 4.2
        y = (height - 0.085 * number) / total
        figure.text(0.008, y, line, fontsize=size, color=QUIET, va="top")
    return height + 0.04


def head(figure: Figure, title: str, under: str = "") -> float:
    """The title, and a line under it; the height that they take, in inches."""
    total = figure.get_figheight()
    figure.text(0.008, 1 - 0.06 / total, title, fontsize=FONT + 1.5, fontweight="bold", va="top")
    lines = textwrap.wrap(under, 132)
    figure.text(0.008, 1 - 0.235 / total, "\n".join(lines), fontsize=FONT - 0.5, color=QUIET, va="top")
    return 0.26 + 0.12 * len(lines)


def band(figure: Figure, top: float, bottom: float, columns: Any, **grid: Any) -> list[Axes]:
    """Axes side by side between head and foot; heights in inches."""
    total = figure.get_figheight()
    specification = figure.add_gridspec(
        1, len(columns), width_ratios=columns, top=1 - top / total, bottom=bottom / total, **grid
    )
    return [figure.add_subplot(specification[0, place]) for place in range(len(columns))]


def label_of(finding: Finding | None) -> str:
    """`✓ confirmed`, or for an open question `open: worse`."""
    if finding is None:
        return ""
    if isinstance(finding.verdict, Verdict):
        return f"{SIGNS[finding.verdict]} {finding.verdict.value.replace(' at this scale', '')}"
    return f"open question: {finding.verdict}"


def color_of(finding: Finding | None) -> str:
    """The verdict's colour."""
    known = finding is not None and isinstance(finding.verdict, Verdict)
    return COLORS[Verdict(finding.verdict)] if known and finding is not None else INK


def forest(
    title: str, under: str, subjects: Sequence[str], built_rows: Sequence[Row], findings: Sequence[Finding]
) -> Figure:
    """Differences to a base, a line per subject: the paper's and ours in their own units, then both relative.

    Args:
        subjects: the lines, from the top.
        built_rows: those of the table; rows without a difference are left out.
        findings: verdicts, which name their line by the claim's row or variant.
    """
    rows = [row for row in built_rows if math.isfinite(row.difference.mean)]
    ours = [row for row in rows if row.ours]
    settings = {row.where: row.setting for row in ours}
    folders = list(settings)
    lanes = ["paper v1", "paper v2", *folders]
    ids = list(dict.fromkeys(run for row in built_rows for run in row.runs))
    heights = 0.16 * len(id_lines(ids)) + 0.1
    step = 0.11 * max(3, len(lanes)) + 0.1
    figure = canvas(1.5 + heights + step * len(subjects))
    with style():
        top = head(figure, title, under) + 0.18
        bottom = foot(figure, ids, _settings_note(settings)) + KEY
        left, middle, right = band(figure, top, bottom, [1, 1, 1.15], left=0.155, right=0.795, wspace=0.12)
        for axes in (left, middle, right):
            _empty(axes, subjects, first=axes is left)
        for row in rows:
            y = subjects.index(row.subject)
            lane = lanes.index(row.where if row.ours else row.source)
            y = y + (lane - (len(lanes) - 1) / 2) * 0.72 / max(len(lanes), 2)
            _mark(middle if row.ours else left, row, y, row.difference, 1.0, folders)
            _mark(right, row, y, row.relative, 100.0, folders)
        left.set_title("paper (bits per token)", fontsize=FONT - 0.5)
        unit = ours[0].unit if ours else "bits per byte"
        middle.set_title(f"ours ({unit})", fontsize=FONT - 0.5)
        right.set_title("both, relative to the base (%)", fontsize=FONT - 0.5)
        if len(rows) == len(ours):
            empty(left, "the paper has no number")
        if not ours:
            empty(middle, "not measured yet")
        if not rows:
            empty(right, "")
        for axes in (left, middle, right):
            axes.set_xlabel("← better than the base · worse →", fontsize=SMALL, color=QUIET)
        _verdicts(right, subjects, findings)
        _key(figure, bottom, rows)
    return figure


def _settings_note(settings: Mapping[str, str]) -> str:
    """What ours were measured at; several folders by letters."""
    if len(settings) < 2:
        return "".join(f"ours: {text}" for text in settings.values())
    named = zip(LETTERS, settings.items(), strict=False)
    return "; ".join(f"{letter} ({folder}): {text}" for letter, (folder, text) in named)


def _empty(axes: Axes, subjects: Sequence[str], first: bool) -> None:
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.set_yticks(range(len(subjects)), list(subjects) if first else [""] * len(subjects))
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    axes.grid(axis="y", visible=False)
    for y in range(1, len(subjects)):
        axes.axhline(y - 0.5, color=INK, alpha=0.12, linewidth=0.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    plain_ticks(axes.xaxis)
    axes.margins(x=0.12)


def _mark(axes: Axes, row: Row, y: float, found: Any, scale: float, folders: Sequence[str]) -> None:
    x = scale * found.mean
    if row.ours:
        color = ours_color(folders, row.where)
        if found.exists:
            axes.plot([scale * found.low, scale * found.high], [y, y], color=color, linewidth=1.3)
        axes.plot([x], [y], marker="o", markersize=4, color=color, linestyle="none")
    else:
        look = MARKS.get(row.source, {"marker": "s"})
        axes.plot([x], [y], markersize=4, color=QUIET, linestyle="none", **look)


def ours_color(folders: Sequence[str], folder: str) -> str:
    """The records of the first folder are drawn in ink, others in the palette."""
    place = list(folders).index(folder)
    return INK if place == 0 else PALETTE[(place - 1) % len(PALETTE)]


def _verdicts(axes: Axes, subjects: Sequence[str], findings: Sequence[Finding]) -> None:
    for place, subject in enumerate(subjects):
        mine = [one for one in findings if one.claim.about(subject)]
        for number, finding in enumerate(mine):
            many = f"{LETTERS[number]} " if len(mine) > 1 else ""
            y = place + (number - (len(mine) - 1) / 2) * 0.28
            axes.text(1.03, y, many + label_of(finding), transform=axes.get_yaxis_transform(), va="center",
                      fontsize=FONT - 0.5, color=color_of(finding), clip_on=False)  # fmt: skip


def _key(figure: Figure, bottom: float, rows: Sequence[Row]) -> None:
    """What the marks mean, those alone that are there."""
    sources = {row.source for row in rows}
    folders = list(dict.fromkeys(row.where for row in rows if row.ours))
    marks = [
        Line2D([], [], color=QUIET, linestyle="none", markersize=4, label=name, **look)
        for name, look in MARKS.items()
        if name in sources
    ]
    for place, folder in enumerate(folders):
        color = ours_color(folders, folder)
        name = f"ours {LETTERS[place]}" if len(folders) > 1 else "ours"
        marks.append(Line2D([], [], color=color, marker="o", markersize=4, label=f"{name}, 95 % t interval"))
    if not marks:
        return
    figure.legend(
        handles=marks, loc="lower left", bbox_to_anchor=(0.0, (bottom - KEY) / figure.get_figheight()),
        ncols=len(marks), frameon=False, fontsize=FONT - 0.5, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def powers(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis of lengths with its own values as ticks, every second of many: 512, 1k, 2k, …"""
    shown = values if len(values) <= 6 else values[(len(values) - 1) % 2 :: 2]
    axis.set_ticks(list(shown), [thousands(value) for value in shown])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def thousands(value: float) -> str:
    """A length in few letters.

    >>> thousands(512), thousands(32768), thousands(81920)
    ('512', '32k', '80k')
    """
    return f"{value:.0f}" if value < 1024 else f"{value / 1024:.3g}k"


def curve(axes: Axes, xs: Sequence[float], ys: Sequence[float], name: str, **look: Any) -> None:
    """A line with its name at its end."""
    axes.plot(xs, ys, markersize=3, **look)
    axes.annotate(
        name, (xs[-1], ys[-1]), xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=FONT - 1, color=look.get("color", INK), annotation_clip=False,
        path_effects=[withStroke(linewidth=1.8, foreground="white")],
    )  # fmt: skip


def empty(axes: Axes, why: str) -> None:
    """A panel with nothing to show says why."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET, bbox=box)
    axes.set_xticks([])


def unmeasured(axes: Axes) -> None:
    """A panel of curves without records."""
    empty(axes, "not measured yet")
    axes.set_yticks([])


def spread(axes: Axes) -> None:
    """Move the names at the ends of curves apart where they would overlap, downwards from the highest."""
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    dpi = axes.get_figure(root=True).get_dpi()  # type: ignore[union-attr]
    low, high = axes.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    gap = (FONT + 0.5) / 72 * dpi
    placed = sorted(((axes.transData.transform(text.xy)[1], text) for text in names), key=lambda one: -one[0])
    last = math.inf
    for y, text in placed:
        wanted = min(max(y, low), high)
        wanted = min(wanted, last - gap)
        last = wanted
        text.set_position((4, (wanted - y) * 72 / dpi))
