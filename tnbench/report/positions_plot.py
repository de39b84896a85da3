"""Losses by position of a suite's variants, drawn from a tidy table, which is returned with the figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tnbench.report.drawing import FONT, INK, WIDTH, elided, inches, looks, style
from tnbench.report.plots import spread
from tnbench.report.results import Frame, SuiteResults
from tnbench.statistics import t_bounds

HEIGHT = 3.0


def drawn(results: SuiteResults) -> Frame:
    """What the figure shows.

    Columns: kind (seed, mean), variant, seed, trained_context, begin, end, value (bits per byte), low, high
    and n. A bin holds the targets with `begin` to `end` − 1 tokens before them; means are over the seeds that
    were read, with their t interval where there are two.
    """
    assert results.evals
    read = results.evals.positions
    read = read.assign(value=read["bits_per_token"].astype(float) / read["bytes_per_token"].astype(float))
    parts: list[pd.DataFrame] = []
    for variant in results.variants:
        mine = read[read["variant"] == variant]
        seeds = mine[["seed", "trained_context", "begin", "end", "value"]].sort_values(["seed", "begin"])
        if not len(seeds):
            continue
        parts.append(seeds.assign(kind="seed", variant=variant))
        bins = seeds.groupby(["trained_context", "begin", "end"])["value"]
        for (context, begin, end), values in bins:
            n = len(values)
            mean, low, high = t_bounds(values, results.alpha) if n > 1 else (values.iloc[0], np.nan, np.nan)
            row = {"kind": "mean", "variant": variant, "trained_context": context, "begin": begin, "end": end}
            parts.append(pd.DataFrame([{**row, "value": mean, "low": low, "high": high, "n": n}]))
    order = ["kind", "variant", "seed", "trained_context", "begin", "end", "value", "low", "high", "n"]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    frame = frame.reindex(columns=order)
    return frame.astype(dict.fromkeys(("seed", "trained_context", "begin", "end", "n"), "Int64"))


def figure(results: SuiteResults) -> tuple[Figure, Frame]:
    """Bits per byte over the tokens before the target, a curve for each variant, trained contexts dotted.

    Returns:
        The figure, and the table of exactly what it shows (see `drawn`).
    """
    table = drawn(results)
    names = {
        variant: elided(variant) + (" (A/A)" if variant in results.repeats else "")
        for variant in results.variants
    }
    with style():
        made = Figure(figsize=(WIDTH, HEIGHT))
        left, right = 0.47, max(map(inches, names.values())) + 0.35
        axes = made.add_axes((left / WIDTH, 0.6 / HEIGHT, (WIDTH - left - right) / WIDTH, 1 - 0.8 / HEIGHT))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("tokens before the target")
        axes.set_ylabel("loss (bits per byte)")
        ends: dict[str, tuple[float, float]] = {}
        for variant, look in looks(results).items():
            line = {"color": look["color"], "linestyle": look["linestyle"]}
            mine = table[table["variant"] == variant]
            for _, run in mine[mine["kind"] == "seed"].groupby("seed"):
                axes.plot(_centres(run), run["value"], **{**line, "linewidth": 0.5, "alpha": 0.45})
            mean = mine[mine["kind"] == "mean"].sort_values("begin")
            if not len(mean):
                continue
            place = _centres(mean)
            axes.plot(place, mean["value"], marker=look["marker"], markersize=2.5, **line)
            low, high = (mean[name].astype(float) for name in ("low", "high"))
            axes.fill_between(place, low, high, color=look["color"], alpha=0.13, linewidth=0)
            ends[variant] = (float(place[-1]), float(mean["value"].iloc[-1]))
        seen = table[(table["kind"] == "mean") | (table["begin"] >= 4)]["value"]
        if len(seen):  # bands of few seeds, and single runs at the first tokens, may lie far outside
            margin = 0.06 * (seen.max() - seen.min()) or 0.1
            axes.set_ylim(seen.min() - margin, seen.max() + margin)
        for context in sorted(set(table["trained_context"].dropna())):
            axes.axvline(context, color=INK, linewidth=0.6, linestyle=(0, (1, 2)))
            words = f" trained on {context}"
            axes.annotate(words, (context, 1), xycoords=("data", "axes fraction"), va="top")
        _label(axes, ends, names, looks(results))
        made.text(left / WIDTH, 0.06 / HEIGHT, _footnote(results, table), fontsize=FONT - 1, alpha=0.75)
    return made, table


def _centres(bins: Frame) -> np.ndarray:
    """Geometric middles of the bins, in tokens."""
    begin, end = (bins[name].to_numpy(dtype=float) for name in ("begin", "end"))
    return np.sqrt(begin * (end - 1))


def _label(axes, ends: dict[str, tuple[float, float]], names: dict[str, str], look: dict) -> None:
    """Names at the right, as near to the ends of their curves as leaves room for each."""
    height = axes.get_window_extent().height / axes.figure.dpi
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda variant: ends[variant][1])
    wanted = np.array([(np.clip(ends[variant][1], low, high) - low) / (high - low) for variant in order])
    for variant, place, target in zip(order, spread(wanted, 1.25 * FONT / 72 / height), wanted, strict=True):
        start = axes.transAxes.inverted().transform(axes.transData.transform((ends[variant][0], low)))[0]
        pointer = {"color": look[variant]["color"], "transform": axes.transAxes, "clip_on": False}
        axes.plot(
            [start, 1.02, 1.05], [target, place, place], linewidth=0.5, linestyle=(0, (1, 2)), **pointer
        )
        axes.text(
            1.06, place, names[variant], transform=axes.transAxes, va="center_baseline", parse_math=False
        )


def _footnote(results: SuiteResults, table: Frame) -> str:
    n = sorted(set(table["n"].dropna()))
    parts = ["thin lines: single runs"]
    if n:
        seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        parts.insert(0, f"Thick lines: mean over seeds ({seeds})")
    if n and n[-1] > 1:
        parts.insert(1, f"bands: {results.coverage} t interval")
    return "; ".join(parts) + "; bins of powers of two, read from the report split."
