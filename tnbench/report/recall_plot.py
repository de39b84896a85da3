"""Accuracy of recall against the size of the recurrent state: one panel per level of difficulty.

A variant is a point, each seed a small one. Variants that differ in nothing but their size (width, heads,
layers) are one family, with one colour and a line through its points.
"""

from __future__ import annotations

import math
from itertools import cycle, takewhile
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tnbench.report.drawing import FONT, INK, PALETTE, WIDTH, elided, style
from tnbench.report.results import Frame, SuiteResults
from tnbench.statistics import mean_interval

ERROR = "val_answer_error"
"""Column of `runs`: the share of wrong answers; `ERROR@LEVEL` is that of one level."""
SIZES = {f"model.{key}" for key in ("size", "width", "heads", "layers", "channel_width")}
"""Keys that change a model's size and nothing else."""
COLUMNS = ("level", "kind", "family", "variant", "seed", "state_size", "accuracy", "low", "high", "n")
PANELS = 4
"""Panels side by side, at most."""


def families(results: SuiteResults) -> dict[str, str]:
    """Variant → family, in the order of the suite: named by what its variants' names begin with."""
    groups: dict[str, list[str]] = {}
    for variant in results.variants:
        diff = {key: value for key, value in results.diffs[variant].items() if key not in SIZES}
        groups.setdefault(repr(sorted(diff.items(), key=str)), []).append(variant)
    return {variant: _common(group) for group in groups.values() for variant in group}


def _common(names: list[str]) -> str:
    """The words that all names begin with; the first name where they have none in common.

    >>> _common(["no-decay-32", "no-decay-64"]), _common(["a-1"]), _common(["one", "two"])
    ('no-decay', 'a-1', 'one')
    """
    if len(names) == 1:
        return names[0]
    words = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(group[0] for group in takewhile(lambda group: len(set(group)) == 1, words)) or names[0]


def levels(results: SuiteResults) -> dict[str, str]:
    """Column of `runs` → what its panel is called: every level, or all answers where there is one."""
    found = [name for name in results.runs if str(name).startswith(ERROR + "@")]
    return {name: name.partition("@")[2] for name in found} or {ERROR: "all answers"}


def drawn(results: SuiteResults) -> Frame:
    """What the figure shows, with `COLUMNS`: accuracies of finished runs, and means with their intervals."""
    family, rows = families(results), []
    for column, level in levels(results).items():
        for variant in results.variants:
            runs = results.of(variant)
            runs = runs[(runs["outcome"] == "finished") & np.isfinite(runs[column].astype(float))]
            if runs.empty:
                continue
            accuracy = 1 - runs[column].astype(float)
            state = float(runs["state_size"].iloc[0])
            known = {"level": level, "family": family[variant], "variant": variant, "state_size": state}
            rows += [
                {**known, "kind": "seed", "seed": seed, "accuracy": value}
                for seed, value in zip(runs["seed"], accuracy, strict=True)
            ]
            mean = mean_interval(accuracy.to_numpy(), results.alpha)
            ends = {"low": mean.low, "high": mean.high, "n": mean.n}
            rows.append({**known, "kind": "mean", "accuracy": mean.mean, **ends})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def recall(results: SuiteResults) -> tuple[Figure, Frame]:
    """Accuracy against values of state per sequence.

    Returns:
        The figure, and the table of exactly what it shows (see `drawn`).
    """
    table, panels = drawn(results), list(levels(results).values())
    colors: dict[str, str] = dict(
        zip(dict.fromkeys(families(results).values()), cycle((INK, *PALETTE)), strict=False)
    )
    across = min(PANELS, len(panels))
    down = math.ceil(len(panels) / across)
    with style():
        height = 0.75 + 1.75 * down
        figure = Figure(figsize=(WIDTH, height))
        grid: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=0.45 / WIDTH,
            right=1 - 1.35 / WIDTH,
            top=1 - 0.25 / height,
            bottom=0.62 / height,
            wspace=0.12,
            hspace=0.35,
        )
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            _draw(axes, table[table["level"] == panels[index]], colors)
            axes.set_title(panels[index], loc="left", fontweight="bold")
        grid[0, 0].set_ylim(-0.03, 1.03)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        for axes in grid[-1]:
            axes.set_xlabel("values of state per sequence")
        _legend(figure, colors)
        figure.text(0.45 / WIDTH, 0.06 / height, _footnote(results, table), fontsize=FONT - 1, alpha=0.75)
    return figure, table


def _draw(axes: Axes, table: Frame, colors: dict[str, str]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1024 else f"{value / 1024:g}k")
    for family, color in colors.items():
        mine = table[table["family"] == family]
        seeds, means = mine[mine["kind"] == "seed"], mine[mine["kind"] == "mean"].sort_values("state_size")
        dot = {"markersize": 3.4, "alpha": 0.5, "markeredgewidth": 0}
        axes.plot(seeds["state_size"], seeds["accuracy"], ".", color=color, **dot)
        axes.plot(means["state_size"], means["accuracy"], "o-", color=color, markersize=4, linewidth=1)


def _legend(figure: Figure, colors: dict[str, str]) -> None:
    """Names of the families beside the panels."""
    right = 1 - 1.25 / WIDTH
    step = 0.16 / figure.get_figheight()
    for index, (family, color) in enumerate(colors.items()):
        y = figure.subplotpars.top - index * step
        figure.text(right, y, "●", color=color, va="top")
        figure.text(right + 0.13 / WIDTH, y, elided(family), va="top", parse_math=False)


def _footnote(results: SuiteResults, table: Frame) -> str:
    counts = sorted(set(table["n"].dropna().astype(int)))
    n = f" (n = {counts[0]})" if len(counts) == 1 else f" (n = {counts[0]} to {counts[-1]})" if counts else ""
    text = f"Large dots: mean over finished runs{n}; small dots: single runs. k = 1,024 values."
    if results.runs["outcome"].ne("finished").any():
        text += " Runs that did not finish are not shown."
    return f"{text} Softmax attention: at the row's end."
