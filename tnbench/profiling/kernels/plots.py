"""Log-log plots of kernels: time and memory over the length, a panel for each shape."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import matplotlib.ticker
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tnbench.profiling.kernels.panels import OURS, Panel, seconds, words
from tnbench.profiling.texts import place
from tnbench.report.drawing import FONT, INK, PALETTE, WIDTH, inches, style
from tnbench.report.results import Frame

MEASURES = {
    "time": "time (ms)",
    "memory": "peak memory beyond the inputs (MiB)",
    "roofline": "share of the roofline",
}
COLUMNS = 4
PANEL = 1.5
"""Height of a panel in inches."""
LEFT = 0.62
"""Inches for the labels at the left."""
COPY = "#8a8a8a"
LINES = {"peer": "-", "torch": (0, (4, 1.2)), "softmax": (0, (1, 1.1)), "copy": (0, (6, 1, 1, 1))}
FIRST = {"peer": 0, "torch": 2, "softmax": 4}
"""Where in the palette a source begins, so that first ones differ in colour too."""
MARKERS = "os^Dv<>ph*"

Look = dict[str, Any]


def looks(frame: Frame) -> dict[str, Look]:
    """Colour, line and marker of each implementation, the same in all figures of an operator.

    Ours are drawn in ink, a copy in grey; the other sources are told apart by their lines.
    """
    found: dict[str, Look] = {}
    counts: dict[str, int] = {}
    for name, source in (
        frame[["implementation", "source"]].drop_duplicates("implementation").itertuples(index=False)
    ):
        kind = "ours" if source in OURS else source
        index = counts.get(kind, 0)
        counts[kind] = index + 1
        if source in OURS:
            line = {
                "color": INK,
                "linestyle": "-" if index == 0 else (0, (2 + index, 1)),
                "linewidth": 1.7,
                "zorder": 4,
            }
        else:
            line = {
                "color": COPY if source == "copy" else PALETTE[(FIRST[source] + index) % len(PALETTE)],
                "linestyle": LINES.get(source, "-"),
                "linewidth": 1.0,
            }
        found[name] = {**line, "marker": MARKERS[index % len(MARKERS)], "markersize": 2.6}
    return found


def value(measure: str, row: dict[str, Any]) -> float:
    """What is drawn of a row of kernels.csv; NaN where it has none."""
    if row["status"] != "ok":
        return math.nan
    if measure == "time":
        return 1e3 * seconds(row)
    if measure == "memory":
        return row["peak_memory_bytes"] / 2**20 if pd.notna(row["peak_memory_bytes"]) else math.nan
    return row["roofline_share"]


def figure(measure: str, panels: list[Panel], looks: dict[str, Look]) -> Figure | None:
    """All panels of one operator and dtype; None where nothing was measured.

    Args:
        measure: `time`, `memory` or `roofline`.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.implementations))
    drawn = [name for name in names if any(_points(measure, panel, name) for panel in panels)]
    if not drawn:
        return None
    columns = min(COLUMNS, max(Counter(panel.mode for panel in panels).values()))
    lines = -(-len(panels) // columns)
    handles = [Line2D([], [], label=name, **looks[name]) for name in drawn] + _extra(measure, panels)
    with style():
        width = WIDTH if columns > 1 else 0.72 * WIDTH
        widest = max(inches(str(handle.get_label())) for handle in handles) + 0.5
        across = max(1, min(len(handles), int((width - 0.1) / widest)))
        legend = 0.16 * -(-len(handles) // across)
        bottom, top, between = 0.45 + legend, 0.42, 0.28
        height = bottom + top + PANEL * lines + between * (lines - 1)
        made = Figure(figsize=(width, height))
        grid = made.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        made.subplots_adjust(
            left=LEFT / width,
            right=1 - 0.1 / width,
            bottom=bottom / height,
            top=1 - top / height,
            wspace=0.08,
            hspace=between / PANEL,
        )
        for index, panel in enumerate(panels):
            _draw(grid.flat[index], measure, panel, looks)
        if measure == "roofline":
            highest = max(y for panel in panels for name in drawn for _, y in _points(measure, panel, name))
            grid.flat[0].set_ylim(0, 1.05 * max(1.0, highest))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        first = panels[0]
        center = (LEFT + (width - LEFT - 0.1) / 2) / width
        label = "length (tokens)" if first.axis == "length" else first.axis
        made.text(center, (bottom - 0.32) / height, label, ha="center")
        middle = (bottom + height - top) / 2 / height
        made.text(0.06 / width, middle, MEASURES[measure], rotation=90, va="center")
        title = f"{words(first.operator)}, {first.dtype}"
        made.text(LEFT / width, 1 - 0.16 / height, title, fontsize=FONT + 1, fontweight="bold")
        below: Any = {
            "loc": "lower center",
            "bbox_to_anchor": (0.5, 0),
            "borderaxespad": 0.2,
            "ncols": across,
        }
        made.legend(handles=handles, frameon=False, handlelength=2.6, columnspacing=1.2, **below)
    return made


def _extra(measure: str, panels: list[Panel]) -> list[Line2D]:
    """What the legend says beside the implementations."""
    handles = []
    if measure == "time" and any(panel.rows["floor_seconds"].notna().any() for panel in panels):
        handles.append(Line2D([], [], color=INK, alpha=0.5, linewidth=0.8, linestyle="--", label="floor"))
    if measure == "memory" and any(_predicted(panel) for panel in panels):
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="ours, predicted"))
    if any((panel.rows["status"] == "oom").any() for panel in panels):
        handles.append(
            Line2D([], [], color=INK, marker="x", linestyle="", markersize=3.5, label="out of memory")
        )
    return handles


def _points(measure: str, panel: Panel, name: str) -> list[tuple[int, float]]:
    pairs = [(where, value(measure, dict(row))) for where, row in sorted(panel.cells(name).items())]
    return [(where, found) for where, found in pairs if found > 0]


def _predicted(panel: Panel) -> list[tuple[int, float]]:
    """The memory that theory gives the first of ours, in MiB."""
    ours = panel.rows[panel.rows["source"] == "ours"]
    mine = ours[ours["implementation"] == ours["implementation"].iloc[0]] if len(ours) else ours
    known = mine.dropna(subset=["predicted_memory_bytes"]).sort_values(panel.axis)
    pairs = zip(known[panel.axis], known["predicted_memory_bytes"], strict=True)
    return [(int(where), size / 2**20) for where, size in pairs if size > 0]


def _draw(axes: Axes, measure: str, panel: Panel, looks: dict[str, Look]) -> None:
    axes.set_title(f"{panel.mode}, {panel.name}", loc="left")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: place(round(x))))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    if measure == "roofline":
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        axes.axhline(1, color=INK, alpha=0.5, linewidth=0.8, linestyle="--")
    else:
        axes.set_yscale("log")
    if measure == "time":
        floor = (
            panel.rows.dropna(subset=["floor_seconds"]).drop_duplicates(panel.axis).sort_values(panel.axis)
        )
        axes.plot(
            floor[panel.axis].astype(int),
            1e3 * floor["floor_seconds"],
            "--",
            color=INK,
            alpha=0.5,
            linewidth=0.8,
        )
    if measure == "memory" and (predicted := _predicted(panel)):
        axes.plot(*zip(*predicted, strict=True), ":", color=INK, linewidth=0.8, zorder=5)
    for name in panel.implementations:
        if points := _points(measure, panel, name):
            axes.plot(*zip(*points, strict=True), **looks[name])
        gone = [where for where, row in panel.cells(name).items() if row["status"] == "oom"]
        look = {"color": looks[name]["color"], "markersize": 3.5, "clip_on": False}
        axes.plot(gone, [1.0] * len(gone), "x", transform=axes.get_xaxis_transform(), **look)
