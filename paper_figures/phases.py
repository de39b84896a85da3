"""LRPE's phases at long positions in bf16, fp16 and fp32. Left open by the paper (paper.md 7.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import NONE, OURS, Built, Row, Stamp
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.profiling import phase_error_report as study
from tnbench.report.drawing import FONT, INK, PALETTE, style
from tnbench.statistics import Interval

ABOUT = About(
    "phases",
    "LRPE's phases at long positions in 16 bits",
    "",
    Measure(
        program="tnbench.profiling.phase_error", takes="half a minute on a CPU; it writes all at its end"
    ),
)
CLAIMS = {
    ("bf16", "both"): Claim(
        "bf16",
        "Open: positions and θ in bf16, as the official code has them in a model loaded in bf16.",
        Expects.open,
    ),
    ("bf16", "positions"): Claim(
        "bf16-positions", "Open: positions in bf16 and θ in fp32, as under autocast.", Expects.open
    ),
    ("fp16", "both"): Claim("fp16", "Open: positions and θ in fp16.", Expects.open),
    ("bf16", "theta"): Claim(
        "bf16-theta",
        "Open: θ alone rounded to bf16, positions and phases in fp32: ours, in a model loaded in bf16.",
        Expects.open,
    ),
}
"""Dtype and form → the question; the answer compares errors of scores with those of exact phases."""
WORSE = 2.0
"""Times the error that rounding queries, keys and rotations leaves by itself: beyond, a form is worse."""
LOOKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("bf16", "both"): ("bf16", {"color": PALETTE[1], "linestyle": "-"}),
    ("bf16", "positions"): ("bf16, θ fp32", {"color": PALETTE[1], "linestyle": (0, (4, 1.4))}),
    ("bf16", "theta"): ("θ alone bf16", {"color": PALETTE[1], "linestyle": (0, (1, 1.2))}),
    ("fp16", "both"): ("fp16", {"color": PALETTE[0], "linestyle": "-"}),
    ("fp16", "positions"): ("fp16, θ fp32", {"color": PALETTE[0], "linestyle": (0, (4, 1.4))}),
    ("bf16", "ours"): ("ours, bf16", {"color": INK, "linestyle": "-"}),
    ("fp32", "ours"): ("ours, fp32", {"color": INK, "linestyle": (0, (4, 1.4))}),
}
"""Dtype and form → name at the end of the curve, and how it is drawn. Our phases are alike in all dtypes."""
WORDS = {
    "positions": "positions in {dtype}, θ in fp32",
    "both": "positions and θ in {dtype}",
    "theta": "θ rounded to {dtype}, phases in fp32",
    "ours": "ours: phases in fp32, {dtype}",
}


def build(records: Records) -> Built:
    """Errors of phases and of scores over the position, and where each form breaks."""
    folder = records.root / study.FOLDER
    if not (folder / study.RECORDS).exists():
        command = ABOUT.measure.command
        findings = [Finding(claim, Verdict.missing, command=command) for claim in CLAIMS.values()]
        return Built(_figure(None, "", ()), [], findings)
    record = study.read(folder)
    where, command = study.FOLDER.as_posix(), ABOUT.measure.command
    setting = (
        f"{record['heads']} heads of {record['head_dim']}, official θ, positions to {record['length']:,}"
    )
    run = f"phase-error@{record['measured']}"
    shared: dict[str, Any] = {"setting": setting, "where": where, "command": command, "runs": (run,)}
    rows = [row for one in record["series"] for row in _rows(record, one, shared)]
    exact = {one["dtype"]: one for one in record["series"] if one["form"] == "ours"}
    findings = [
        _finding(CLAIMS[key], record, one, exact[one["dtype"]], shared)
        for one in record["series"]
        if (key := (one["dtype"], one["form"])) in CLAIMS
    ]
    stamps = [Stamp(where, "phase-error", record["code"], study.code_hash(), command)]
    return Built(_figure(record, setting, (run,)), rows, findings, stamps)


def _rows(record: dict[str, Any], one: dict[str, Any], shared: dict[str, Any]) -> list[Row]:
    """The largest errors of phases and of scores before each mark."""
    subject = WORDS[one["form"]].format(dtype=one["dtype"])
    kinds = [("phase error", "rad", 0, one["phase"])]
    kinds += [
        (f"error of scores at distance {distance}", "share of the scores", int(distance), errors)
        for distance, errors in one["score"].items()
    ]
    found = []
    for measure, unit, distance, errors in kinds:
        for mark in study.MARKS:
            if distance < mark <= record["length"]:
                error = study.largest(record, errors, mark, distance)
                value, note = (NONE, "not finite") if math.isinf(error) else (_single(error), "")
                at = f"{mark} positions"
                found.append(
                    Row(subject, OURS, f"largest {measure}", unit, at=at, value=value, note=note, **shared)
                )
    return found


def _single(value: float) -> Interval:
    return Interval(value, math.nan, math.nan, 1)


def _finding(
    claim: Claim, record: dict[str, Any], one: dict[str, Any], exact: dict[str, Any], shared: dict[str, Any]
) -> Finding:
    """Worse where scores at some distance are off by `WORSE` times what exact phases leave, to the end."""
    off = [found for d in study.DISTANCES if (found := _broken(record, one, exact, d))]
    ends = [
        f"{_radians(record, one, mark)} before {mark:,}" for mark in study.MARKS if mark <= record["length"]
    ]
    text = f"phases off by up to {', '.join(ends)}"
    if one["first_lost"] is not None:
        text += f", not finite from position {one['first_lost']:,} on"
    shares = [_share(record, one, distance) for distance in study.DISTANCES]
    other = max(
        study.largest(record, errors, record["length"], int(d)) for d, errors in exact["score"].items()
    )
    text += f"; scores off by up to {', '.join(shares)}, with exact phases by {_percent(other)}"
    if off:
        begin, distance = min(off)
        text += f"; over {WORSE:g} times that from position {begin:,} on, at distance {distance}"
    text += "; these numbers repeat: no test is needed"
    return Finding(
        claim, "worse" if off else "equivalent", text, shared["setting"], shared["where"],
        shared["command"], shared["runs"],
    )  # fmt: skip


def _broken(
    record: dict[str, Any], one: dict[str, Any], exact: dict[str, Any], distance: int
) -> tuple[int, int] | None:
    """The position from which on all scores at a distance are off, and the distance; None: there is none."""
    first = None
    own, other = one["score"][str(distance)], exact["score"][str(distance)]
    for begin, error, least in zip(record["begins"], own, other, strict=True):
        if begin >= distance:
            off = error is None or error > WORSE * least
            first = (first or begin) if off else None
    return None if first is None else (first, distance)


def _radians(record: dict[str, Any], one: dict[str, Any], mark: int) -> str:
    error = study.largest(record, one["phase"], mark)
    return "infinity" if math.isinf(error) else f"{error:.2g} rad" if error < 100 else f"{error:.0f} rad"


def _share(record: dict[str, Any], one: dict[str, Any], distance: int) -> str:
    """The largest finite error of scores at a distance."""
    pairs = zip(record["begins"], one["score"][str(distance)], strict=True)
    error = max(error for begin, error in pairs if begin >= distance and error is not None)
    return f"{_percent(error)} at distance {distance}"


def _percent(share: float) -> str:
    """Two significant digits.

    >>> _percent(0.2312), _percent(0.00019)
    ('23 %', '0.019 %')
    """
    return f"{100 * share:.2g} %"


def _figure(record: dict[str, Any] | None, setting: str, ids: Sequence[str]) -> Figure:
    figure = drawing.canvas(3.0)
    with style():
        under = (
            "Positions and θ in 16 bits, as in the official code, beside ours. Left: the largest error of a "
            "phase. Then: the error of scores q·k over their size, by the distance of query and key. Spikes: "
            "the two lie on either side of a power of two. Cross: then infinite."
        )
        top = drawing.head(figure, ABOUT.title, under) + 0.2
        bottom = drawing.foot(figure, ids, f"ours: {setting}" if setting else "") + 0.4
        axes = drawing.band(figure, top, bottom, [1, 1, 1, 1], left=0.06, right=0.895, wspace=0.33)
        kinds = [("phase error (rad)", 0), *((f"scores, distance {d}", d) for d in study.DISTANCES)]
        for place, (panel, (title, distance)) in enumerate(zip(axes, kinds, strict=True)):
            panel.set_title(title, fontsize=FONT - 0.5)
            panel.set_xlabel("position", fontsize=FONT - 1)
            if record is None:
                drawing.unmeasured(panel)
                continue
            _panel(panel, record, distance, named=place == len(kinds) - 1)
        if record is not None:
            figure.draw_without_rendering()
            drawing.spread(axes[-1])
    return figure


def _panel(axes: Axes, record: dict[str, Any], distance: int, named: bool) -> None:
    """Phase errors where the distance is 0, otherwise errors of scores."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for one in record["series"]:
        key = (one["dtype"], one["form"])
        if key not in LOOKS:
            continue
        errors = one["score"][str(distance)] if distance else one["phase"]
        pairs = zip(record["begins"], errors, strict=True)
        points = [(begin, error) for begin, error in pairs if error and begin >= max(distance, 1)]
        xs, ys = zip(*points, strict=True)
        name, look = LOOKS[key]
        axes.plot(xs, ys, linewidth=1, **look)
        if named:
            axes.annotate(
                name, (1.3 * record["length"], ys[-1]), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=FONT - 1, color=look["color"], annotation_clip=False,
            )  # fmt: skip
        if errors[-1] is None:
            axes.plot(xs[-1:], ys[-1:], "x", color=look["color"], markersize=4)
    drawing.powers(axes.xaxis, [16, 256, 4096, 65536])
    axes.set_xlim(8, 1.3 * record["length"])
    if distance:
        axes.set_ylim(1e-5, 3)
        labels = {1e-4: "0.01 %", 1e-3: "0.1 %", 1e-2: "1 %", 0.1: "10 %", 1.0: "100 %"}
    else:
        axes.set_ylim(1e-7, 2e3)
        axes.axhline(math.pi, color=drawing.QUIET, linewidth=0.7)
        axes.text(9, 1.3 * math.pi, "half a turn", fontsize=FONT - 1.5, color=drawing.QUIET)
        labels = {1e-6: "1e−6", 1e-4: "1e−4", 1e-2: "0.01", 1.0: "1", 1e2: "100"}
    shown = labels.values() if distance in (0, study.DISTANCES[0]) else [""] * len(labels)
    axes.set_yticks(list(labels), list(shown))
    axes.minorticks_off()
