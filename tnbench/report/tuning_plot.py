"""The figure of a suite's tuning: the metric on the tune split over the grid, one panel per variant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from tnbench.report import words
from tnbench.report.drawing import FONT, INK, WIDTH, elided, inches, looks, style
from tnbench.report.results import Frame, SuiteResults

LOST = ("diverged", "out_of_memory", "failed")
"""Outcomes that leave a point of the grid without a mean."""
PANEL, TITLE = 1.55, 0.37
"""Height of a panel with its title, and of the title, in inches."""


def searched(results: SuiteResults) -> Frame:
    """What the figure shows: one row per tuning run, and one per mean.

    Columns: kind (run, mean), variant, one per key of the grid, seed, outcome, value, chosen. A point of the
    grid has a mean where all its runs have a value; `chosen` marks the mean of the chosen point.
    """
    grid, order = results.grid, ["kind", "variant", *results.grid, "seed", "outcome", "value", "chosen"]
    runs = results.tuning.assign(kind="run", chosen=False, value=results.tuning["value"].astype(float))
    runs = runs.astype(dict.fromkeys(grid, float)).sort_values(["variant", *grid, "seed"], kind="stable")
    means = []
    for (variant, *values), group in runs.groupby(["variant", *grid]):
        if np.isfinite(group["value"]).all():
            point = dict(zip(grid, values, strict=True))
            choice = results.choices.get(str(variant))
            chosen = choice is not None and point == dict(choice.point)
            means.append({"variant": variant, **point, "value": group["value"].mean(), "chosen": chosen})
    parts = [runs, pd.DataFrame(means, columns=["variant", *grid, "value", "chosen"]).assign(kind="mean")]
    return pd.concat([part for part in parts if len(part)], ignore_index=True).reindex(columns=order)


def tuning(results: SuiteResults) -> tuple[Figure, Frame]:
    """The metric of every tuning run over the grid, on a logarithmic axis.

    Further keys of the grid give a panel several lines; that of the chosen point is drawn strongly. A run
    that diverged, or did not finish for another reason, is a cross at the top edge.

    Returns:
        The figure, and the table of exactly what it shows (see `searched`).
    """
    assert results.tuned, "a suite without tuning runs has no such figure"
    table, variants = searched(results), results.variants
    down = math.ceil(len(variants) / 4)
    across = math.ceil(len(variants) / down)
    left, below = 0.6, 0.62
    wide, height = (WIDTH - left) / max(across, 2), below + PANEL * down
    limits = _limits(table)
    with style():
        figure = Figure(figsize=(WIDTH, height))
        for index, variant in enumerate(variants):
            row, column = divmod(index, across)
            bottom = height - PANEL * (row + 1)
            axes = figure.add_axes(
                (
                    (left + wide * column) / WIDTH,
                    bottom / height,
                    (wide - 0.12) / WIDTH,
                    (PANEL - TITLE) / height,
                )
            )
            _panel(axes, results, table, variant)
            axes.set_ylim(*limits)
            axes.tick_params(labelleft=column == 0, labelbottom=index + across >= len(variants))
        middle = left + (wide * across - 0.12) / 2
        unit = f"{results.measured.label}\n({results.measured.unit})"
        centre = 1 - (PANEL * down + TITLE) / 2 / height
        figure.text(0.06 / WIDTH, centre, unit, rotation=90, va="center", multialignment="center")
        figure.text(middle / WIDTH, (below - 0.32) / height, words.key(_across(results)), ha="center")
        figure.text(left / WIDTH, 0.06 / height, _footnote(results, table), fontsize=FONT - 1, alpha=0.75)
    return figure, table


def _across(results: SuiteResults) -> str:
    """The key on the horizontal axis: the learning rate where it is tuned."""
    return next((key for key in results.grid if key.endswith("learning_rate")), results.grid[0])


def _limits(table: Frame) -> tuple[float, float]:
    known = table["value"].dropna().astype(float)
    if known.empty:
        return 0.0, 1.0
    margin = 0.08 * (known.max() - known.min()) or 0.05 * abs(known.max()) or 1.0
    return known.min() - margin, known.max() + 2 * margin  # room for the crosses


def _panel(axes: Axes, results: SuiteResults, table: Frame, variant: str) -> None:
    key, look = _across(results), looks(results)[variant]
    choice = results.choices.get(variant)
    name = elided(variant) + (" (A/A)" if variant in results.repeats else "")
    chosen = f"best: {words.chosen(choice)}" if choice else "not chosen yet"
    axes.set_title(f"{name}\n{chosen}", loc="left", parse_math=False)
    axes.set_xscale("log")
    _label_values(axes, sorted(table[key].unique()))
    if variant != results.base:
        for _, x, y in _lines(results, table, results.base):
            axes.plot(x, y, color=INK, linewidth=0.6, linestyle=(0, (1, 2)), alpha=0.7)
    for chosen, x, y in _lines(results, table, variant):
        width, alpha = (0.9, 1.0) if chosen else (0.6, 0.45)
        axes.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=width, alpha=alpha)
    mine = table[table["variant"] == variant]
    runs, means = mine[mine["kind"] == "run"], mine[mine["kind"] == "mean"]
    axes.plot(
        runs[key],
        runs["value"],
        ".",
        color=look["color"],
        markersize=5,
        markeredgewidth=0,
        alpha=0.6,
        zorder=3,
    )
    best = means[means["chosen"].astype(bool)]
    ring = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 0.8}
    axes.plot(best[key], best["value"], "o", **ring)
    lost = runs[runs["outcome"].isin(LOST)]
    top = axes.get_xaxis_transform()
    axes.plot(
        lost[key], [1.0] * len(lost), "x", color=look["color"], markersize=4, transform=top, clip_on=False
    )


def _lines(results: SuiteResults, table: Frame, variant: str) -> Iterator[tuple[bool, Any, Any]]:
    """A variant's means along the axis, for each setting of the other keys; whether it is the chosen one."""
    key, choice = _across(results), results.choices.get(variant)
    others = [name for name in results.grid if name != key]
    means = table[(table["variant"] == variant) & (table["kind"] == "mean")].sort_values(key)
    groups = means.groupby(others) if others else [((), means)]
    for values, line in groups:
        chosen = choice is None or tuple(values) == tuple(choice.point[name] for name in others)
        yield chosen, line[key], line["value"]


def _label_values(axes: Axes, values: list[float]) -> None:
    """The values of the grid as ticks, as many of them labelled as there is room for."""
    wide = axes.get_window_extent().width / axes.figure.dpi
    widest = max(inches(f"{value:g}") for value in values) + 0.1
    every = math.ceil(len(values) * widest / wide)
    axes.xaxis.set_major_locator(FixedLocator(values[::every]))
    axes.xaxis.set_minor_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    room = min(0.4, widest / 2 / wide)  # the outer labels stay below their own panel
    beyond = (values[-1] / values[0]) ** (room / (1 - 2 * room)) if len(values) > 1 else 2.0
    axes.set_xlim(values[0] / beyond, values[-1] * beyond)


def _footnote(results: SuiteResults, table: Frame) -> str:
    seeds = ", ".join(f"{seed:g}" for seed in sorted(set(results.tuning["seed"])))
    parts = [f"Tune split. Dots: single runs (seeds {seeds})", "lines: their means"]
    if len(results.variants) > 1:
        parts.append("dotted: the base")
    if table["chosen"].astype(bool).any():
        parts.append("ring: chosen")
    lost = set(table["outcome"].dropna()) & set(LOST)
    if lost:
        parts.append(f"×: {'diverged' if lost == {'diverged'} else 'diverged or did not finish'}")
    return "; ".join(parts) + "."
