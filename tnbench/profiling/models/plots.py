"""Log-log plots of models over the context: tokens/s, time per token, memory measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.ticker
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tnbench.profiling.texts import number, place
from tnbench.report.drawing import FONT, INK, PALETTE, WIDTH, elided, inches, style
from tnbench.report.results import Frame

MEASURES = {
    "speed": "tokens/s",
    "time": "time per token (µs)",
    "memory": "peak memory (MiB)",
}
"""What is drawn, in words; memory in GiB from 1 GiB on."""
PANEL = 2.1
"""Height of a panel in inches."""
LEFT = 0.72
"""Inches for the labels at the left."""
LONGEST_NAME = 28

Look = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """The rows of models.csv of one mode and way to choose the batch, over the context."""

    title: str
    rows: Frame

    def cells(self, variant: str) -> list[Mapping[str, Any]]:
        """The rows of a variant by ascending context."""
        mine = self.rows[self.rows["variant"] == variant]
        return mine.sort_values("context").to_dict("records")


def figures(frame: Frame) -> Iterator[tuple[str, Figure]]:
    """Name and figure for each suite, size, precision and measure."""
    for key, rows in frame.groupby(["suite", "size", "precision", "vocabulary"], sort=False):
        suite, size, precision, vocabulary = key
        title = f"{size}, {precision}, vocabulary {vocabulary:,}" + (f", suite {suite}" if suite else "")
        stem = "-".join(filter(None, (str(suite), str(size), str(precision), f"v{vocabulary}")))
        for measure in MEASURES:
            made = figure(measure, title, list(panels(rows)), looks(rows))
            if made is not None:
                yield f"{stem}-{measure}", made


def panels(rows: Frame) -> Iterator[Panel]:
    """One panel for each mode, and for each batch where it is the same at several contexts."""
    for mode, found in rows.groupby("mode", sort=False):
        tokens = found["context"].astype(int) * found["batch"].astype(int)
        if mode == "train" and tokens.nunique() == 1 and found["context"].nunique() > 1:
            yield Panel(f"{mode}, {tokens.iloc[0]:,} tokens a step", found)
            continue
        for batch, part in found.groupby("batch", sort=False):
            yield Panel(f"{mode}, batch {batch}", part)


def looks(rows: Frame) -> dict[str, Look]:
    """Colour, line and marker of each variant: the first in ink, peers with broken lines."""
    found: dict[str, Look] = {}
    for index, (name, source) in enumerate(
        rows[["variant", "source"]].drop_duplicates("variant").itertuples(index=False)
    ):
        again, color = divmod(index - 1, len(PALETTE))
        found[name] = {
            "color": INK if index == 0 else PALETTE[color],
            "linestyle": (0, (5, 1.2)) if source == "peer" else "-",
            "linewidth": 1.7 if index == 0 else 1.1,
            "marker": "os^Dv"[again % 5 if index else 0] if source != "peer" else "x",
            "markersize": 3.2,
            "zorder": 4 if index == 0 else 3,
        }
    return found


def value(measure: str, row: Mapping[str, Any]) -> float:
    """What is drawn of a row of models.csv; NaN where it has none."""
    if measure == "memory":
        bytes_ = row["peak_memory_bytes"]
        return float(bytes_) / 2**20 if pd.notna(bytes_) else math.nan
    if row["status"] != "ok":
        return math.nan
    return row["tokens_per_second"] if measure == "speed" else 1e6 * row["seconds_per_token"]


def figure(measure: str, title: str, panels: list[Panel], looks: Mapping[str, Look]) -> Figure | None:
    """All panels of one model size; None where nothing was measured.

    Args:
        measure: `speed`, `time` or `memory`.
    """
    drawn = [
        name
        for name in looks
        if any(value(measure, row) > 0 for panel in panels for row in panel.cells(name))
    ]
    if not drawn:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    label, unit = MEASURES[measure], 1.0
    if measure == "memory" and max(panel.rows["peak_memory_bytes"].max() for panel in panels) >= 2**30:
        label, unit = label.replace("MiB", "GiB"), 1024.0
    handles = [Line2D([], [], label=elided(name, LONGEST_NAME), **looks[name]) for name in drawn]
    handles += _extra(measure, panels)
    with style():
        width = WIDTH if columns > 1 else 0.6 * WIDTH
        widest = max(inches(str(handle.get_label())) for handle in handles) + 0.5
        across = max(1, min(len(handles), int((width - 0.1) / widest)))
        bottom, top, between = 0.45 + 0.16 * -(-len(handles) // across), 0.45, 0.5
        height = bottom + top + PANEL * lines + between * (lines - 1)
        gap = 0.55
        made = Figure(figsize=(width, height))
        grid = made.subplots(lines, columns, squeeze=False)
        made.subplots_adjust(
            left=LEFT / width,
            right=1 - 0.1 / width,
            bottom=bottom / height,
            top=1 - top / height,
            wspace=gap / ((width - LEFT - 0.1 - gap * (columns - 1)) / columns),
            hspace=between / PANEL,
        )
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, measure, panel, looks, unit)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        made.text(
            (LEFT + (width - LEFT - 0.1) / 2) / width,
            (bottom - 0.34) / height,
            "context (tokens)",
            ha="center",
        )
        middle = (bottom + height - top) / 2 / height
        made.text(0.07 / width, middle, label, rotation=90, va="center")
        made.text(LEFT / width, 1 - 0.16 / height, title, fontsize=FONT + 1, fontweight="bold")
        made.legend(
            handles=handles,
            frameon=False,
            handlelength=2.6,
            columnspacing=1.2,
            loc="lower center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=0.2,
            ncols=across,
        )
    return made


def _extra(measure: str, panels: list[Panel]) -> list[Line2D]:
    """What the legend says beside the variants."""
    handles = []
    if measure == "memory" and any(panel.rows["predicted_memory_bytes"].notna().any() for panel in panels):
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label="predicted"))
    if any((panel.rows["status"] == "oom").any() for panel in panels):
        handles.append(
            Line2D([], [], color=INK, marker="X", linestyle="", markersize=4, label="out of memory")
        )
    return handles


def _draw(axes: Axes, measure: str, panel: Panel, looks: Mapping[str, Look], unit: float) -> None:
    axes.set_title(panel.title, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    contexts = sorted({int(context) for context in panel.rows["context"]})
    axes.set_xticks(contexts, [place(context) for context in contexts])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    if len(contexts) == 1:
        axes.set_xlim(contexts[0] / 2, contexts[0] * 2)
    heights = []
    for name, look in looks.items():
        rows = panel.cells(name)
        points = [(int(row["context"]), value(measure, row) / unit) for row in rows]
        points = [(x, y) for x, y in points if y > 0]
        if points:
            axes.plot(*zip(*points, strict=True), **look)
            heights += [y for _, y in points]
        if measure == "memory":
            predicted = [
                (int(row["context"]), float(row["predicted_memory_bytes"]) / 2**20 / unit)
                for row in rows
                if pd.notna(row["predicted_memory_bytes"])
            ]
            if predicted:
                axes.plot(*zip(*predicted, strict=True), ":", color=look["color"], linewidth=0.9, zorder=5)
                heights += [y for _, y in predicted]
        gone = [int(row["context"]) for row in rows if row["status"] == "oom"]
        axes.plot(
            gone,
            [0.97] * len(gone),
            "X",
            transform=axes.get_xaxis_transform(),
            color=look["color"],
            markersize=4,
        )
    _ticks(axes, heights)


def _ticks(axes: Axes, heights: list[float]) -> None:
    """At least a factor of two is shown, so that noise looks small, with some plain numbers beside it."""
    if not heights:
        return
    low, high = min(heights), max(heights)
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), math.sqrt(2)) * 1.12
    axes.set_ylim(middle / half, middle * half)
    subs = (1.0, 2.0, 5.0) if half > 2 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: _tick(y)))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _tick(height: float) -> str:
    """`20k`, `1.5`, `0.05`: as short as it goes."""
    text = f"{height / 1000:g}k" if height >= 1000 else number(height)
    return text.rstrip("0").rstrip(".") if "." in text else text
