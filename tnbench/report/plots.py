"""The figure of a suite's results, drawn from a tidy table, which is returned with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform
from scipy.optimize import isotonic_regression

from tnbench.report import words
from tnbench.report.drawing import FONT, INK, WIDTH, elided, inches, looks, style
from tnbench.report.results import Frame, SuiteResults, VariantSummary
from tnbench.statistics import t_bounds

CURVES, FINAL = "curves", "final"
"""Names of the two panels."""
ROW = 0.3
"""Height of a row of the panel of final values, in inches: two lines of text."""


def drawn(results: SuiteResults) -> Frame:
    """What the figure shows.

    Columns: panel (curves, final), kind (seed, mean), variant, seed, outcome, tokens, value, low, high, n.
    A mean in the panel of curves is taken where all finished runs of the variant have a value, and has an
    interval where there are two; runs that ended otherwise are drawn as far as they came.
    """
    metric = results.measured
    curves = results.curves
    curves = curves[(curves["name"] == metric.curve) & (curves["split"] == metric.split)]
    curves = curves.drop_duplicates(["variant", "seed", "tokens"], keep="last")
    outcomes = results.runs[["variant", "seed", "outcome"]]
    curves = curves.merge(outcomes, on=["variant", "seed"]).sort_values(["seed", "tokens"], kind="stable")
    curves = curves[np.isfinite(curves["value"].astype(float))]

    parts: list[pd.DataFrame] = []
    for one in results.summaries:
        mine = curves[curves["variant"] == one.variant]
        seeds = mine[["seed", "outcome", "tokens", "value"]].assign(panel=CURVES, kind="seed")
        mean = _mean_curve(mine[mine["outcome"] == "finished"], results.alpha)
        final = results.values(one.variant).rename("value").reset_index()
        final = final.assign(panel=FINAL, kind="seed", outcome="finished")
        ends = pd.DataFrame([vars(one.metric)] if one.metric.n else []).rename(columns={"mean": "value"})
        new = [seeds, mean.assign(panel=CURVES, kind="mean"), final, ends.assign(panel=FINAL, kind="mean")]
        parts += [part.assign(variant=one.variant) for part in new if len(part)]
    order = ["panel", "kind", "variant", "seed", "outcome", "tokens", "value", "low", "high", "n"]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame.reindex(columns=order)


def _mean_curve(runs: Frame, alpha: float) -> pd.DataFrame:
    table = runs.pivot(index="tokens", columns="seed", values="value").dropna()
    values, n = table.to_numpy(dtype=float), table.shape[1]
    if not len(table):
        return pd.DataFrame()
    mean, low, high = t_bounds(values, alpha) if n > 1 else (values[:, 0], np.nan, np.nan)
    return pd.DataFrame({"tokens": table.index, "value": mean, "low": low, "high": high, "n": n})


def curves(results: SuiteResults) -> tuple[Figure, Frame]:
    """The metric during training, and beside it every final value with mean and interval.

    Returns:
        The figure, and the table of exactly what it shows (see `drawn`).
    """
    table = drawn(results)
    names = {
        variant: elided(variant) + (" (A/A)" if variant in results.repeats else "")
        for variant in results.variants
    }
    rows = {one.variant: _row(one, names[one.variant]) for one in results.summaries}
    with style():
        height = max(2.5, 0.95 + ROW * len(names))
        figure = Figure(figsize=(WIDTH, height))
        left, label = 0.47, max(map(inches, names.values())) + 0.22
        name = max(inches(row["name"]) for row in rows.values()) + 0.1
        texts = [_head(results), *(row[part] for row in rows.values() for part in ("text", "verdict"))]
        text = max(map(inches, texts)) + 0.1
        room = WIDTH - left - label - name - text
        wide, narrow = 0.56 * room, 0.44 * room

        def axes(start: float, width: float) -> Axes:
            return figure.add_axes((start / WIDTH, 0.58 / height, width / WIDTH, 1 - 0.83 / height))

        _draw_curves(axes(left, wide), results, table[table["panel"] == CURVES], names)
        _draw_final(axes(WIDTH - text - narrow, narrow), results, table[table["panel"] == FINAL], rows)
        figure.text(left / WIDTH, 0.06 / height, _footnote(results), fontsize=FONT - 1, alpha=0.75)
    return figure, table


def _footnote(results: SuiteResults) -> str:
    n = sorted({one.metric.n for one in results.summaries} - {0})
    parts = ["thin lines, small dots: single runs"]
    if n:
        seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        parts.insert(0, f"Thick lines, large dots: mean over finished runs ({seeds})")
    if n and n[-1] > 1:
        parts.insert(1, f"bands, bars: {results.coverage} t interval")
    if (results.runs["outcome"] != "finished").any():
        parts.append("×: did not finish")
    return "; ".join(parts) + "."


def _draw_curves(axes: Axes, results: SuiteResults, table: Frame, names: dict[str, str]) -> None:
    metric = results.measured
    axes.set_title("a  during training", loc="left", fontweight="bold")
    axes.set_xlabel("training tokens")
    axes.set_ylabel(f"{metric.label} ({metric.unit})")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(_ticks(axes, 5))
    if table.empty:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no value recorded", ha="center", va="center", transform=axes.transAxes)
        return
    ends: dict[str, tuple[float, float]] = {}
    stops: list[tuple[float, float, str]] = []
    for variant, look in looks(results).items():
        line = {
            "color": look["color"],
            "linestyle": look["linestyle"],
            "zorder": 3 if variant == results.base else 2,
        }
        mine = table[table["variant"] == variant]
        seeds, mean = mine[mine["kind"] == "seed"], mine[mine["kind"] == "mean"]
        for _, run in seeds.groupby("seed"):
            axes.plot(run["tokens"], run["value"], **{**line, "linewidth": 0.5, "alpha": 0.45})
            if run["outcome"].iloc[-1] != "finished":
                stops.append((run["tokens"].iloc[-1], run["value"].iloc[-1], look["color"]))
        if len(mean):
            axes.plot(mean["tokens"], mean["value"], marker="." if len(mean) == 1 else "", **line)
            axes.fill_between(
                mean["tokens"], mean["low"], mean["high"], color=look["color"], alpha=0.13, linewidth=0
            )
        if len(mine):
            last = (mean if len(mean) else seeds).iloc[-1]
            ends[variant] = (last["tokens"], last["value"])
    axes.set_xlim(0, table["tokens"].max())
    axes.set_ylim(*_heights(table))
    for tokens, value, color in stops:
        axes.plot(tokens, np.clip(value, *axes.get_ylim()), "x", color=color, markersize=4, clip_on=False)
    _label_ends(axes, ends, names, looks(results))


def _ticks(axes: Axes, most: int) -> MaxNLocator:
    inches = axes.get_window_extent().width / axes.figure.dpi
    return MaxNLocator(max(1, min(most, int(inches / 0.4))))


def _heights(table: Frame) -> tuple[float, float]:
    """Limits that leave out the first fifth of training, whose fall would flatten everything after it."""
    late = table[(table["tokens"] >= 0.2 * table["tokens"].max())]
    late = (
        late[(late["outcome"] == "finished") | (late["kind"] == "mean")]
        if "mean" in set(late["kind"])
        else late
    )
    low, high = late["value"].min(), late["value"].max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float]], names: dict[str, str], look: dict) -> None:
    """Names at the right of the panel, as near to the ends of their lines as leaves room for each."""
    inches = axes.get_window_extent().height / axes.figure.dpi
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda variant: ends[variant][1])
    wanted = np.array([(np.clip(ends[variant][1], low, high) - low) / (high - low) for variant in order])
    heights = spread(wanted, gap=1.25 * FONT / 72 / inches)
    for variant, height, target in zip(order, heights, wanted, strict=True):
        x = axes.transLimits.transform((ends[variant][0], low))[0]
        style: dict[str, Any] = (
            {"linewidth": 0.8} if x > 0.99 else {"linewidth": 0.5, "linestyle": (0, (1, 2))}
        )
        style |= {"color": look[variant]["color"], "transform": axes.transAxes, "clip_on": False}
        axes.plot([x, 1.02, 1.05], [target, height, height], **style)
        axes.text(
            1.065, height, names[variant], transform=axes.transAxes, va="center_baseline", parse_math=False
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places nearest (least squares) to the `wanted` ones, ascending, at least `gap` apart, within 0 to 1.

    >>> spread(np.array([0.5, 0.5, 0.9]), gap=0.1).round(2).tolist()
    [0.45, 0.55, 0.9]
    """
    if len(wanted) == 0:
        return wanted
    steps = gap * np.arange(len(wanted))
    return np.clip(isotonic_regression(wanted - steps).x, 0, max(0.0, 1 - steps[-1])) + steps


def _draw_final(axes: Axes, results: SuiteResults, table: Frame, rows: dict[str, dict[str, str]]) -> None:
    metric = results.measured
    axes.set_title("b  final", loc="left", fontweight="bold")
    axes.set_xlabel(f"{metric.label} ({metric.unit})")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(_ticks(axes, 3))
    if table.empty:
        axes.set(xticks=[])
    edge = axes.get_yaxis_transform()
    beside = {"va": "center_baseline", "parse_math": False}

    def moved(transform: Transform, points: float) -> Transform:
        return transform + ScaledTranslation(0, points / 72, axes.figure.dpi_scale_trans)

    below = moved(axes.transData, -5.5)
    axes.annotate(_head(results), (1, 1), (5, 6), xycoords="axes fraction", textcoords="offset points")
    for height, (variant, look) in enumerate(looks(results).items()):
        mine = table[table["variant"] == variant]
        seeds, mean = mine[mine["kind"] == "seed"], mine[mine["kind"] == "mean"]
        row = rows[variant]
        axes.text(-0.04, height, row["name"], ha="right", transform=edge, **beside)
        fade = {"alpha": 0.7} if mean.empty else {}
        lines = [row["text"], row["verdict"]] if row["verdict"] else [row["text"]]
        for line, lift in zip(lines, (4.2, -4.2) if len(lines) == 2 else (0,), strict=True):
            axes.text(1.04, height, line, transform=moved(edge, lift), **fade, **beside)
        single = {"color": look["color"], "markersize": 3.4, "alpha": 0.6, "markeredgewidth": 0}
        axes.plot(seeds["value"], [height] * len(seeds), ".", transform=below, **single)
        for point in mean.itertuples():
            axes.plot([point.low, point.high], [height, height], color=look["color"], linewidth=1.1)
            axes.plot(point.value, height, marker=look["marker"], color=look["color"], markersize=4)
            if variant == results.base:
                axes.axvline(point.value, color=INK, linewidth=0.5, linestyle=(0, (3, 3)), zorder=0)


def _head(results: SuiteResults) -> str:
    return f"paired difference [{results.coverage}]"


def _row(one: VariantSummary, name: str) -> dict[str, str]:
    """What stands beside a variant's final values: name, difference or why there is none, verdict."""
    finished, _, lost = words.outcomes(one.outcomes).partition(", ")
    if one.metric.n == 0:
        return {"name": name, "text": elided(lost or "no run", longest=27), "verdict": ""}
    name += f" ({finished})" if lost else ""
    if one.comparison is None:
        return {"name": name, "text": "base", "verdict": ""}
    if one.comparison.difference.n == 0:
        return {"name": name, "text": "no pair with the base", "verdict": ""}
    text = words.difference(one.comparison.difference)
    return {"name": name, "text": text, "verdict": words.verdict(one.comparison)}
