"""Lightning Attention: time and memory over the length (v2 figure 3; Lightning Attention-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.kernels import Machine, machines
from tnbench.paper_figures.shared.records import Records, stamps_of_kernels
from tnbench.paper_figures.shared.speed import exactly, judge
from tnbench.paper_figures.shared.tables import OURS, Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.statistics import Interval

SHAPE = {"batch": 4, "heads": 16, "key_dim": 128}
"""Feature dim 16 · 128 = 2048, as in the paper's figure; the batch is not stated there."""
ABOUT = About(
    "lightning-attention",
    "Lightning Attention: time and memory over the length",
    "lightning-attention",
    Measure(
        kernels=("linear_attention",),
        axes={
            "mode": "forward,both",
            "dtype": "bfloat16",
            "shape": "4,16",
            "head-dim": "128",
            "length": "1k,2k,4k,8k",
        },
    ),
)
CURVES: dict[str, tuple[str, str, str]] = {
    "quadratic": ("naive", PALETTE[1], "-"),
    "lightning1": ("Lightning 1", PALETTE[0], "-"),
    "softmax-flash": ("softmax (Flash)", PALETTE[3], "--"),
    "softmax-cudnn": ("softmax (cuDNN)", PALETTE[4], "--"),
    "chunked": ("chunked torch", PALETTE[2], "-"),
    "lightning2": ("Lightning 2, official", PALETTE[5], "-"),
    "triton": ("Lightning 2, ours", INK, "-"),
}
"""Implementation → name, colour and line."""
SPEED = Claim(
    "speed", "Lightning Attention 1 is at least twice as fast as naive, forward and backward.", Expects.lower
)
SECOND = Claim(
    "speed-2",
    "The same of our kernel, of Lightning Attention-2's linear kind: at least twice as fast as naive.",
    Expects.lower,
)
MEMORY = Claim(
    "memory",
    "Lightning Attention 1 takes up to 4 times less memory than naive, at 8,192 tokens.",
    Expects.lower,
)
FLASH = Claim(
    "flash-forward",
    "Lightning Attention-2's linear form is faster than FlashAttention from 4,096 tokens on, forward.",
    Expects.lower,
)
FLASH_BOTH = Claim("flash-both", "And from 8,192 tokens on, forward and backward.", Expects.lower)


def build(records: Records) -> Built:
    """Every implementation that was measured at the paper's width, over the length."""
    rows, findings, found = list(_printed()), [], machines(records, "linear_attention")
    for machine in found:
        more, mine = _of(machine)
        rows, findings = rows + more, findings + mine
    if not findings:
        claims = (SPEED, SECOND, MEMORY, FLASH, FLASH_BOTH)
        findings = [Finding(one, Verdict.missing, command=ABOUT.measure.command) for one in claims]
    stamps = [
        stamp for one in found for stamp in stamps_of_kernels(one.where, one.records, "linear_attention")
    ]
    return Built(_figure(rows), rows, findings, stamps)


def _printed() -> list[Row]:
    table = published.efficiency("lightning-attention")
    rows = [
        of_paper(
            "Lightning Attention 1", f"paper {claim['source']}", name, claim["unit"], claim["value"],
            against="naive", setting=table["setting"], where=f"v1 {table['where']['v1']}", note=claim["text"],
        )
        for name, claim in table["claims"].items()
    ]  # fmt: skip
    log = table["log"]
    rows += [
        of_paper(
            column.split()[0], "code", f"time, {column.split()[1]}", log["unit"], value,
            setting="batch 4, 32 heads of 128, bf16, GPU not named", at=str(length), where="official log",
        )
        for length, values in log["rows"].items()
        for column, value in zip(log["columns"], values, strict=True)
    ]  # fmt: skip
    return rows


def _of(machine: Machine) -> tuple[list[Row], list[Finding]]:
    """Rows and verdicts of one machine."""
    setting = f"{machine.device}, batch 4, 16 heads of 128, bf16"
    forward, both = (machine.at(mode, "length", dtype="bfloat16", **SHAPE) for mode in ("forward", "both"))
    rows = [
        row
        for blocks in (forward, both)
        for measure in ("time", "peak memory")
        for row in machine.rows(blocks, measure, setting, list(CURVES))
    ]
    findings: list[Finding] = []
    tests: Sequence[tuple[Claim, Mapping, str, str, float]] = (
        (SPEED, both, "lightning1", "quadratic", 2.0),
        (SECOND, both, "triton", "quadratic", 2.0),
        (FLASH, _from(forward, 4096), "triton", "softmax-flash", 1.0),
        (FLASH_BOTH, _from(both, 8192), "triton", "softmax-flash", 1.0),
    )
    for claim, blocks, own, other, least in tests:
        pairs = machine.pairs(blocks, own, other, setting)
        finding, more = judge(claim, pairs, least, ABOUT.measure.command)
        findings.append(finding)
        rows += more
    return rows + _saving(rows, findings), findings


def _from(blocks: Mapping, least: int) -> dict:
    return {length: block for length, block in blocks.items() if length >= least}


def _saving(rows: Sequence[Row], findings: list[Finding]) -> list[Row]:
    """Memory of naive over that of Lightning 1 at every length, and the verdict at 8,192."""
    peaks = {(row.subject, row.at): row for row in rows if row.measure == "peak memory, forward and backward"}
    found = []
    for (name, at), own in peaks.items():
        other = peaks.get(("quadratic", at))
        if name == "lightning1" and other is not None:
            ratio = other.value.mean / own.value.mean
            found.append(
                Row(
                    name, OURS, "memory saved", "times less memory", against="quadratic", setting=own.setting,
                    at=at, value=Interval(ratio, float("nan"), float("nan"), 1), where=own.where,
                    runs=own.runs, command=own.command, note="repeats exactly: no interval",
                )
            )  # fmt: skip
    last = next((row for row in found if row.at == "8192"), None)
    if last is None:
        findings.append(Finding(MEMORY, Verdict.missing, command=ABOUT.measure.command))
    else:
        ratio = last.value.mean
        text = f"{ratio:.1f} times less at 8,192 tokens, forward and backward"
        findings.append(exactly(MEMORY, ratio >= 4, text, last))
    return found


def _figure(rows: Sequence[Row]) -> Figure:
    ours = [row for row in rows if row.ours and row.measure.startswith(("time", "peak"))]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(3.3 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        device = ours[0].setting if ours else "not measured yet"
        top = drawing.head(
            figure, ABOUT.title, f"Ours: {device}. The paper: feature dim 2048, no numbers printed."
        )
        bottom = drawing.foot(figure, ids) + 0.4
        panels = drawing.band(figure, top + 0.2, bottom, [1, 1, 1], left=0.05, right=0.875, wspace=1.0)
        measures = ("time, forward", "time, forward and backward", "peak memory, forward and backward")
        for axes, measure in zip(panels, measures, strict=True):
            _panel(axes, measure, [row for row in ours if row.measure == measure])
        figure.draw_without_rendering()
        for axes in panels:
            drawing.spread(axes)
    return figure


def _panel(axes: Axes, measure: str, rows: Sequence[Row]) -> None:
    unit = "MB" if measure.startswith("peak") else "ms"
    axes.set_title(f"{measure.replace('forward and backward', 'fwd and bwd')} ({unit})", fontsize=6.5)
    axes.set_xlabel("tokens")
    if not rows:
        drawing.unmeasured(axes)
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for name, (label, color, line) in CURVES.items():
        mine = [row for row in rows if row.subject == name]
        if mine:
            xs, ys = [float(row.at) for row in mine], [row.value.mean for row in mine]
            drawing.curve(axes, xs, ys, label, color=color, linestyle=line, marker="o")
    drawing.powers(axes.xaxis, sorted({float(row.at) for row in rows}))
    drawing.plain_ticks(axes.yaxis)
