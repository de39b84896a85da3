"""Training speed over the context, for sizes (table 1 of Lightning Attention-2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.models import OURSELVES, RIVAL, Machine, machines
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import judge
from tnbench.paper_figures.shared.tables import Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict, judged
from tnbench.profiling.speedups import ALPHA
from tnbench.report import words
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.statistics import compare

MARGIN = 0.05
"""Speeds that differ by less, as a share, count as constant."""
ABOUT = About(
    "context-speed",
    "Training speed over the context",
    "context-speed",
    Measure(
        models=True,
        axes={
            "mode": "train",
            "preset": [OURSELVES, RIVAL],
            "size": "385m,1b",
            "context": "1k,2k,4k,8k,16k,32k,64k",
        },
    ),
)
CONSTANT = Claim(
    "constant",
    "With Lightning Attention-2 the tokens per second do not depend on the length (1,024 to 94,208 at 0.4B).",
    Expects.parity,
)
FASTER = Claim(
    "faster", "And are more than a Transformer's with FlashAttention-2, at every length.", Expects.lower
)
COLORS = {
    "LLaMA-FA2": PALETTE[1],
    "TNL-LA1": PALETTE[0],
    "TNL-LA2": INK,
    OURSELVES: INK,
    RIVAL: PALETTE[1],
}


def build(records: Records) -> Built:
    """The printed speeds, and ours."""
    rows, findings, stamps = list(_printed()), [], []
    for machine in machines(records, "train"):
        stamps += machine.stamps
        for size in machine.sizes("train"):
            blocks = machine.at("train", size)
            rows += machine.rows(blocks, "speed")
            finding, ratios = judge(FASTER, machine.pairs(blocks), command=ABOUT.measure.command)
            findings += [_constant(machine, blocks), finding]
            rows += ratios
    if not findings:
        findings = [
            Finding(one, Verdict.missing, command=ABOUT.measure.command) for one in (CONSTANT, FASTER)
        ]
    return Built(_figure(rows), rows, findings, stamps)


def _printed() -> list[Row]:
    table = published.efficiency("context-speed")
    return [
        of_paper(
            line["model"], table["source"], "speed", table["unit"], value if value != "oom" else math.nan,
            setting=f"{line['size']}, two A100-80G", at=str(length), where="LA2 table 1",
            note="out of memory" if value == "oom" else "",
        )
        for line in table["rows"]
        for length, value in zip(table["lengths"], line["values"], strict=True)
    ]  # fmt: skip


def _constant(machine: Machine, blocks: dict[int, Any]) -> Finding:
    """Longest against shortest context, over the rounds of each (Welch), within `MARGIN` or not."""
    timed = {
        context: [math.log(seconds / row["tokens"]) for seconds in row["times"]["rounds"]]
        for context, block in blocks.items()
        for row in block.rows
        if row["variant"] == OURSELVES and row["status"] == "ok" and row.get("times")
    }
    if len(timed) < 2:
        return Finding(CONSTANT, Verdict.missing, command=ABOUT.measure.command)
    first, last = min(timed), max(timed)
    (found,) = compare([(timed[last], timed[first])], alpha=ALPHA, margin=math.log1p(MARGIN), paired=False)
    because = (
        f"{words.percent(math.expm1(-found.difference.mean))} tokens/s from {first:,} to {last:,} tokens; "
        f"constant means within {100 * MARGIN:g} %"
    )
    block = blocks[last]
    return Finding(
        CONSTANT,
        judged(Expects.parity, found),
        because,
        machine.setting(block),
        machine.where,
        block.line["command"],
        tuple(blocks[context].line["block"] for context in (first, last)),
    )


def _figure(rows: Sequence[Row]) -> Figure:
    ours = [row for row in rows if row.ours and row.measure == "speed" and row.unit == "tokens/s"]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    settings = list(dict.fromkeys(row.setting for row in ours))
    figure = drawing.canvas(2.9 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        under = "Printed (table 1 of Lightning Attention-2): tokens per GPU and second, two A100-80G. Ours: "
        top = drawing.head(figure, ABOUT.title, under + ("; ".join(settings) or "not measured yet") + ".")
        bottom = drawing.foot(figure, ids) + 0.4
        printed = list(dict.fromkeys(row.setting for row in rows if not row.ours))
        panels = [*printed, *(settings or ["ours"])]
        axes = drawing.band(figure, top + 0.2, bottom, [1] * len(panels), left=0.065, right=0.93, wspace=0.75)
        for panel, setting in zip(axes, panels, strict=True):
            mine = [row for row in rows if row.setting == setting and row.unit == "tokens/s"]
            _panel(panel, ("" if setting in printed else "ours: ") + setting.split(", two")[0], mine)
        figure.draw_without_rendering()
        for panel in axes:
            drawing.spread(panel)
    return figure


def _panel(axes: Axes, title: str, rows: Sequence[Row]) -> None:
    axes.set_xlabel("tokens of context")
    axes.set_title(f"{title} (1,000 tokens/s)" if rows else "ours", fontsize=6.5)
    if not rows:
        drawing.unmeasured(axes)
        return
    axes.set_xscale("log", base=2)
    for name in dict.fromkeys(row.subject for row in rows):
        mine = [row for row in rows if row.subject == name and math.isfinite(row.value.mean)]
        if mine:
            xs, ys = [float(row.at) for row in mine], [row.value.mean / 1e3 for row in mine]
            drawing.curve(axes, xs, ys, name, color=COLORS.get(name, PALETTE[2]), marker="o")
    axes.set_ylim(bottom=0)
    lengths = sorted({float(row.at) for row in rows})
    drawing.powers(axes.xaxis, [length for length in lengths if math.log2(length) % 2 == 0] or lengths)
