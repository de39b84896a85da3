"""Robust against original inference: where λ^(−t) overflows (v1 algorithms 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import INFERENCE_ERROR, Records
from tnbench.paper_figures.shared.tables import OURS, Built, Row, Stamp
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.profiling import inference_error_report as study
from tnbench.records import source_hash
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.report.results import Frame
from tnbench.statistics import Interval

ABOUT = About(
    "robust-inference",
    "Original and robust inference: how long each stays finite",
    "robust-inference",
    Measure(
        program="tnbench.profiling.inference_error",
        takes="about a minute on a CPU; it writes all at its end",
    ),
)
ORIGINAL = Claim(
    "original", "The original inference breaks down: ‖q λ^t‖ falls to 0 and ‖k λ^(−t)‖ grows without bound.",
    Expects.higher,
)  # fmt: skip
ROBUST = Claim("robust", "The robust inference gives the same outputs and stays stable.", Expects.parity)
COLORS = {"fp32": INK, "bf16": PALETTE[1], "fp16": PALETTE[0]}


def build(records: Records) -> Built:
    """The step at which each head is lost, predicted and seen, and the error of the robust form."""
    record = records.inference_error()
    if record is None:
        findings = [
            Finding(one, Verdict.missing, command=ABOUT.measure.command) for one in (ORIGINAL, ROBUST)
        ]
        return Built(_figure(None, ""), [], findings)
    frame = study.overflow(record)
    where, command = INFERENCE_ERROR.as_posix(), "python -m tnbench.profiling.inference_error"
    setting = (
        f"{record['heads']} heads of {record['head_dim']}, layer {record['layer'] + 1} of "
        f"{record['layers']}, {record['length']:,} steps, {record['seeds']} sequences"
    )
    run = f"inference-error@{record['measured']}"
    shared = {"setting": setting, "where": where, "command": command, "runs": (run,)}
    rows = [
        Row(
            "original", OURS, "first step that is not finite", "steps", against="predicted",
            at=f"{row.dtype}, slope {row.slope:.3g}", note="low and high: over the sequences",
            value=Interval(float(row.first), float(row.first), float(row.last), row.seeds),
            base=_single(row.predicted), **shared,
        )
        for row in frame.itertuples()
        if row.seen_seeds
    ]  # fmt: skip
    errors = study.load(records.root / INFERENCE_ERROR)
    robust = errors[errors["algorithm"] == "robust"]
    rows += [
        Row(
            "robust, state in fp32", OURS, "largest median error", "relative", at=str(dtype),
            value=_single(mine["median"].max(), record["seeds"]), **shared,
        )
        for dtype, mine in robust.groupby("dtype", sort=False)
    ]  # fmt: skip
    finite = record["model"]["rows"]
    findings = [
        _lost(frame, shared),
        _stable(robust, [row for row in finite if row["algorithm"] == "robust"], shared),
    ]
    made = record["provenance"]["source_hash"]
    stamps = [Stamp(where, "inference-error", made, source_hash(), command)]
    return Built(_figure(frame, setting, (run,)), rows, findings, stamps)


def _single(value: float, n: int = 1) -> Interval:
    return Interval(float(value), math.nan, math.nan, n)


def _lost(frame: Frame, shared: dict) -> Finding:
    """Confirmed where every head is lost in every sequence, contradicted where none is."""
    lost, total = int(frame["seen_seeds"].sum()), int(frame["seeds"].sum())
    verdict = Verdict.confirmed if lost == total else Verdict.undecided if lost else Verdict.contradicted
    early = frame.loc[frame["first"].idxmin()]
    because = (
        f"{lost} of {total} heads × sequences × dtypes lose finiteness, the first at step {early['first']} "
        f"({early['dtype']}, slope {early['slope']:.2g}); exact, not a test"
    )
    return Finding(
        ORIGINAL, verdict, because, shared["setting"], shared["where"], shared["command"], shared["runs"]
    )


def _stable(robust: Frame, model: Sequence[dict], shared: dict) -> Finding:
    """Confirmed where no logit of any sequence is lost; the errors are told beside it."""
    lost = sum(step is not None for row in model for step in row["first_lost"])
    largest = {dtype: float(mine["median"].max()) for dtype, mine in robust.groupby("dtype", sort=False)}
    because = (
        f"{lost} sequences of the whole model lose a logit; largest median error of a head "
        + ", ".join(f"{error:.1e} in {dtype}" for dtype, error in largest.items())
    )
    verdict = Verdict.contradicted if lost else Verdict.confirmed
    return Finding(
        ROBUST, verdict, because, shared["setting"], shared["where"], shared["command"], shared["runs"]
    )


def _figure(frame: Frame | None, setting: str, ids: Sequence[str] = ()) -> Figure:
    figure = drawing.canvas(3.0)
    with style():
        under = f"Ours: {setting}." if setting else "Ours: not measured yet."
        top = drawing.head(figure, ABOUT.title, f"{under} The paper has no experiment on it.")
        bottom = drawing.foot(figure, ids) + 0.4
        (axes,) = drawing.band(figure, top + 0.1, bottom, [1], left=0.09, right=0.77)
        axes.set_xlabel("slope of the head (its decay is exp(−slope) per step)")
        axes.set_ylabel("first step that is not finite")
        if frame is None:
            drawing.unmeasured(axes)
            return figure
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for dtype, mine in frame.groupby("dtype", sort=False):
            name = str(dtype)
            axes.plot(mine["slope"], mine["predicted"], color=COLORS[name], linewidth=0.8)
            last = mine["last"].astype(float)
            axes.plot(mine["slope"], last, "o", color=COLORS[name], markersize=3.5)
            _label(axes, mine, name)
        slopes = sorted(set(frame["slope"]))
        axes.set_xticks(slopes, [f"1/{round(1 / slope)}" for slope in slopes])
        axes.minorticks_off()
        drawing.plain_ticks(axes.yaxis)
        axes.invert_xaxis()
        axes.text(
            1.02, 0.52, "lines: predicted, log(largest\nnumber of the dtype) / slope\ndots: seen, original "
            "form\nrobust form: never", transform=axes.transAxes, va="top", fontsize=6.5,
        )  # fmt: skip
    return figure


def _label(axes, mine: Frame, name: str) -> None:
    end = mine.loc[mine["slope"].idxmin()]
    text = {"fp32": "fp32", "bf16": "bf16 (as fp32)"}.get(name, name)
    offset = {"fp32": 6, "bf16": -6}.get(name, 0)
    axes.annotate(
        text, (end["slope"], float(end["predicted"])), xytext=(6, offset), textcoords="offset points",
        va="center", color=COLORS[name], annotation_clip=False,
    )  # fmt: skip
