"""Printed numbers as grouped bars, for the tables that only several GPUs could measure again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing
from tnbench.report.drawing import FONT, INK, PALETTE, style

MODELS = {"Transformer": PALETTE[1], "TransNormerLLM": INK}


def bars(
    title: str,
    under: str,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    groups: Sequence[str],
    ids: Sequence[str],
) -> Figure:
    """One panel per measure: bars of both models side by side, a pair per group.

    Args:
        panels: measure with its unit → model → a value per group; NaN: nothing to show.
        groups: what stands under each pair.
    """
    figure = drawing.canvas(2.7 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        top = drawing.head(figure, title, under)
        bottom = drawing.foot(figure, ids) + 0.3
        axes = drawing.band(figure, top + 0.25, bottom, [1] * len(panels), left=0.06, right=0.98, wspace=0.2)
        for panel, (measure, models) in zip(axes, panels.items(), strict=True):
            _panel(panel, measure, models, groups)
    return figure


def _panel(axes: Axes, measure: str, models: Mapping[str, Sequence[float]], groups: Sequence[str]) -> None:
    axes.set_title(measure, fontsize=FONT - 0.5)
    width = 0.8 / len(models)
    most = max(value for values in models.values() for value in values if value == value)
    for place, (model, values) in enumerate(models.items()):
        xs = [group + (place - (len(models) - 1) / 2) * width for group in range(len(groups))]
        color = MODELS.get(model, PALETTE[(place + 1) % len(PALETTE)])
        axes.bar(xs, values, width * 0.92, color=color)
        for x, value in zip(xs, values, strict=True):
            if value == value:
                text = f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
                axes.text(x, value, text, ha="center", va="bottom", fontsize=5.2)
        axes.text(0.01 + 0.26 * place, 0.985, "■ " + model, color=color, transform=axes.transAxes, va="top",
                  fontsize=FONT - 0.5)  # fmt: skip
    axes.set_ylim(0, 1.22 * most)
    axes.set_xticks(range(len(groups)), ["\n".join(textwrap.wrap(group, 12)) for group in groups])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False)
    axes.set_yticks([])
