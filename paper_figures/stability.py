"""Norms and stability: learning rates up to divergence, in bf16 and in fp16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records, SuiteRecords
from tnbench.paper_figures.shared.tables import OURS, Built, Row
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.records import RunFolder
from tnbench.report.drawing import FONT, INK, PALETTE, style
from tnbench.report.results import Frame
from tnbench.report.words import counted
from tnbench.statistics import Interval, mean_interval

ABOUT = About("stability", "Norms over learning rates, up to divergence", "", Measure("stability"))
NORMS = {"srmsnorm": "SRMSNorm", "rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}
PRECISIONS = ("bf16", "fp16")
COLORS = dict(zip(NORMS, (INK, PALETTE[1], PALETTE[0]), strict=True))
RATE = "training.learning_rate"
PANELS = {
    "loss": "validation loss\n(bits per byte)",
    "gradient_norm": "largest gradient norm",
    "counted": "spikes and steps\nnot finite",
}
"""Column of `runs` → label of its axis."""
WORKS = 1.1
"""A rate works where every seed finished with at most this multiple of the norm's lowest mean loss."""
CLAIMS = {
    precision: Claim(
        precision,
        f"Open: up to which learning rate does SRMSNorm train in {precision}, beside RMSNorm and LayerNorm? "
        "The paper says that it differs little from RMSNorm, and shows one rate.",
        Expects.open,
    )
    for precision in PRECISIONS
}


def build(records: Records) -> Built:
    """Loss and largest gradient norm over the learning rate, with what was not finite and what stood out."""
    suites = records.suites(ABOUT.measure.suite)
    if not suites:
        command = ABOUT.measure.command
        missing = [Finding(claim, Verdict.missing, command=command) for claim in CLAIMS.values()]
        return Built(_figure(None, "", ()), [], missing)
    rows, findings = [], []
    for one in suites:
        searched = runs(one)
        rows += list(_rows(one, searched))
        findings += list(_findings(one, searched))
    ids = [run for row in rows for run in row.runs]
    figure = _figure(runs(suites[0]), suites[0].setting, tuple(dict.fromkeys(ids)))
    notes = [f"the figure shows {suites[0].where}; the table has all"] if len(suites) > 1 else []
    return Built(figure, rows, findings, [stamp for one in suites for stamp in one.stamps], notes)


def runs(one: SuiteRecords) -> Frame:
    """The tuning runs of the suite: norm, precision, rate, seed, loss, outcome and what was counted."""
    table: Frame = pd.read_csv(one.folder / "tuning.csv")
    lines = []
    for line in table.to_dict("records"):
        norm, _, precision = str(line["variant"]).partition("-")
        manifest = RunFolder(one.folder / "runs" / str(line["run_id"])).read_manifest() or {}
        counts = manifest.get("stability", {})
        loss, gradient = counts.get("loss", {}), counts.get("gradient_norm", {})
        lines.append(
            {
                "norm": norm,
                "precision": precision,
                "rate": float(line[RATE]),
                "seed": line["seed"],
                "run": line["run_id"],
                "outcome": line["outcome"],
                "loss": float(line["value"]),
                "gradient_norm": gradient.get("largest", math.nan),
                "spikes": loss.get("spikes", 0) + gradient.get("spikes", 0),
                "not_finite": max(loss.get("not_finite", 0), gradient.get("not_finite", 0)),
            }
        )
    found = pd.DataFrame(lines)
    return found.assign(counted=found["spikes"] + found["not_finite"])


def _points(searched: Frame) -> Iterator[tuple[tuple[str, str, float], Frame]]:
    for norm in NORMS:
        for precision in PRECISIONS:
            mine = searched[(searched["norm"] == norm) & (searched["precision"] == precision)]
            for rate, point in mine.groupby("rate"):
                yield (norm, precision, float(rate)), point  # type: ignore[arg-type]


def _rows(one: SuiteRecords, searched: Frame) -> Iterator[Row]:
    shared: dict[str, Any] = {"setting": one.setting, "where": one.where, "command": one.command}
    for (norm, precision, rate), point in _points(searched):
        more: dict[str, Any] = {
            **shared, "at": f"learning rate {rate:g}, {precision}", "runs": tuple(point["run"]),
            "note": _told(point),
        }  # fmt: skip
        finished = point["loss"].dropna()
        yield Row(NORMS[norm], OURS, one.measured.label, one.measured.unit,
                  value=mean_interval(list(finished), one.alpha), **more)  # fmt: skip
        yield Row(NORMS[norm], OURS, "largest gradient norm", "1",
                  value=_single(point["gradient_norm"].max(), len(point)), **more)  # fmt: skip
        for measure in ("spikes", "not_finite"):
            yield Row(NORMS[norm], OURS, measure.replace("_", " "), "steps",
                      value=_single(float(point[measure].sum()), len(point)), **more)  # fmt: skip


def sensitivity(one: SuiteRecords) -> dict[str, float]:
    """By variant: the mean excess of the loss over the grid against the best point (summary.csv)."""
    table: Frame = pd.read_csv(one.folder / "summary.csv")
    return dict(zip(table["variant"], table["sensitivity"].astype(float), strict=True))


def _single(value: float, n: int) -> Interval:
    return Interval(value, math.nan, math.nan, n)


def _told(point: Frame) -> str:
    lost = point[point["outcome"] != "finished"]["outcome"]
    return ", ".join(f"{n} of {len(point)} {name}" for name, n in lost.value_counts().items())


def largest(searched: Frame, norm: str, precision: str) -> float:
    """The largest learning rate below which, and at which, the norm works (`WORKS`); NaN where none does."""
    mine = searched[(searched["norm"] == norm) & (searched["precision"] == precision)]
    finished = mine.groupby("rate")["loss"].agg(lambda values: values.mean(skipna=False))
    reached = math.nan
    for rate, loss in finished.sort_index().items():
        if not loss <= WORKS * finished.min():
            if math.isfinite(reached):
                break
            continue
        reached = float(rate)  # type: ignore[arg-type]
    return reached


def _findings(one: SuiteRecords, searched: Frame) -> Iterator[Finding]:
    for precision, claim in CLAIMS.items():
        mine = searched[searched["precision"] == precision]
        if mine.empty:
            yield Finding(claim, Verdict.missing, command=ABOUT.measure.command)
            continue
        excess = sensitivity(one)
        reach = {norm: largest(searched, norm, precision) for norm in NORMS}
        texts = []
        for norm, rate in reach.items():
            own = mine[mine["norm"] == norm]
            text = f"{NORMS[norm]} up to {rate:g}" if math.isfinite(rate) else f"{NORMS[norm]} at no rate"
            steps = counted(int(own["not_finite"].sum()), "step")
            spikes = counted(int(own["spikes"].sum()), "spike")
            mean = f"sensitivity {excess[f'{norm}-{precision}']:.2f} {one.measured.unit}"
            texts.append(f"{text} ({mean}, {spikes}, {steps} not finite)")
        others = [rate for norm, rate in reach.items() if norm != "srmsnorm"]
        yield Finding(
            claim,
            _place(reach["srmsnorm"], others),
            f"a loss of at most {WORKS:g} times the lowest in every seed: {'; '.join(texts)}",
            one.setting,
            one.where,
            one.command,
            tuple(mine["run"]),
        )


def _place(own: float, others: list[float]) -> str:
    """Where SRMSNorm's largest rate stands among the others'; a rate that is NaN lies below all."""
    own, *others = (-math.inf if math.isnan(rate) else rate for rate in (own, *others))
    if own >= max(others):
        return "as far as the others" if own == max(others) else "further than the others"
    return "less far than the others" if own < min(others) else "between the others"


def _figure(searched: Frame | None, setting: str, ids: tuple[str, ...]) -> Figure:
    figure = drawing.canvas(6.1 + 0.09 * len(drawing.id_lines(ids)))
    under = (
        "Left bf16, right fp16 with a loss scale. Points: runs; lines: means over seeds; crosses: diverged. "
        "Gradient norms are those before clipping; spikes and steps not finite are counted together."
    )
    with style():
        top = drawing.head(figure, ABOUT.title, under) + 0.2
        bottom = drawing.foot(figure, ids, f"ours: {setting}" if setting else "") + 0.45
        total = figure.get_figheight()
        grid = figure.add_gridspec(
            len(PANELS), 2, top=1 - top / total, bottom=bottom / total, left=0.085, right=0.9,
            wspace=0.28, hspace=0.16,
        )  # fmt: skip
        for (row, column), (place, precision) in product(enumerate(PANELS), enumerate(PRECISIONS)):
            axes = figure.add_subplot(grid[row, place])
            if searched is None:
                drawing.unmeasured(axes)
            else:
                _panel(axes, searched[searched["precision"] == precision], column)
            if not row:
                axes.set_title(precision, fontsize=FONT)
            if not place:
                axes.set_ylabel(PANELS[column])
            last = row == len(PANELS) - 1
            axes.tick_params(labelbottom=last)
            axes.set_xlabel("learning rate" if last else "")
    return figure


def _panel(axes: Axes, mine: Frame, column: str) -> None:
    axes.set_xscale("log")
    rates = sorted(set(mine["rate"]))
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".lstrip("0")))
    axes.xaxis.set_minor_locator(NullLocator())
    for norm, name in NORMS.items():
        own = mine[mine["norm"] == norm]
        known = own[own[column].notna()]
        axes.plot(known["rate"], known[column], ".", color=COLORS[norm], markersize=4, alpha=0.6)
        means = known.groupby("rate")[column].mean()
        if len(means):
            drawing.curve(axes, list(means.index), list(means), name, color=COLORS[norm], linewidth=1)
        lost = own[own["outcome"] != "finished"]
        axes.plot(
            lost["rate"], [1.0] * len(lost), "x", color=COLORS[norm], markersize=4, clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    if column == "gradient_norm":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        drawing.plain_ticks(axes.yaxis)
    axes.autoscale_view()
    drawing.spread(axes)
