"""Inference: time per token and memory over the context (v2 figure 4)."""

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
from tnbench.paper_figures.shared.speed import exactly, judge
from tnbench.paper_figures.shared.tables import Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict, judged
from tnbench.profiling.speedups import ALPHA
from tnbench.report import words
from tnbench.report.drawing import INK, PALETTE, style
from tnbench.statistics import compare

MARGIN = 0.05
"""Times per token that differ by less, as a share, count as constant."""
ABOUT = About(
    "inference",
    "Inference: time and memory over the context",
    "inference",
    Measure(
        models=True,
        axes={
            "mode": "decode",
            "preset": [OURSELVES, RIVAL],
            "size": "385m",
            "context": "256,1k,4k,16k,32k",
        },
    ),
)
CONSTANT = Claim(
    "constant-time", "The time per token does not grow with the context (TransNormerLLM).", Expects.parity
)
MEMORY = Claim("constant-memory", "Nor does the state (TransNormerLLM).", Expects.parity)
FASTER = Claim("faster", "TransNormerLLM decodes faster than a Transformer, at every context.", Expects.lower)


def build(records: Records) -> Built:
    """Both models decoding, over the context."""
    rows, findings, stamps = list(_printed()), [], []
    for machine in machines(records, "decode"):
        stamps += machine.stamps
        for size in machine.sizes("decode"):
            more, mine = _of(machine, machine.at("decode", size))
            rows, findings = rows + more, findings + mine
    if not findings:
        findings = [
            Finding(one, Verdict.missing, command=ABOUT.measure.command) for one in (CONSTANT, MEMORY, FASTER)
        ]
    return Built(_figure(rows), rows, findings, stamps)


def _printed() -> list[Row]:
    table = published.efficiency("inference")["throughput"]
    return [
        of_paper(
            name, table["source"], "throughput", table["unit"], value,
            setting="7B class, A100-80G, prompt 512, up to 1024 new tokens, batch as large as fits",
            where="TNL figure 5",
        )
        for name, value in table["rows"].items()
    ]  # fmt: skip


def _of(machine: Machine, blocks: dict[int, Any]) -> tuple[list[Row], list[Finding]]:
    rows = [row for name in ("time per token", "peak memory", "state") for row in machine.rows(blocks, name)]
    faster, ratios = judge(FASTER, machine.pairs(blocks), command=ABOUT.measure.command)
    return [*rows, *ratios], [_constant(machine, blocks), _state(rows), faster]


def _constant(machine: Machine, blocks: dict[int, Any]) -> Finding:
    """Longest against shortest context, over the rounds of each (Welch), within `MARGIN` or not."""
    timed = {
        context: row
        for context, block in blocks.items()
        for row in block.rows
        if row["variant"] == OURSELVES and row["status"] == "ok" and row.get("times")
    }
    if len(timed) < 2:
        return Finding(CONSTANT, Verdict.missing, command=ABOUT.measure.command)
    first, last = min(timed), max(timed)
    logs = [[math.log(x) for x in timed[context]["times"]["rounds"]] for context in (last, first)]
    (found,) = compare([(logs[0], logs[1])], alpha=ALPHA, margin=math.log1p(MARGIN), paired=False)
    growth = math.expm1(found.difference.mean)
    because = (
        f"{words.percent(growth)} from {first:,} to {last:,} tokens; constant means within "
        f"{100 * MARGIN:g} %: {words.verdict(found).partition(' (')[0]}"
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


def _state(rows: Sequence[Row]) -> Finding:
    """The same bytes at every context."""
    states = [row for row in rows if row.measure == "state" and row.subject == OURSELVES]
    if len(states) < 2:
        return Finding(MEMORY, Verdict.missing, command=ABOUT.measure.command)
    least, most = (end(row.value.mean for row in states) for end in (min, max))
    because = f"{least:.3g} to {most:.3g} MB from {states[0].at} to {states[-1].at} tokens"
    return exactly(MEMORY, least == most, because, states[-1])


def _figure(rows: Sequence[Row]) -> Figure:
    ours = [row for row in rows if row.ours]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(2.9 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        settings = "; ".join(dict.fromkeys(row.setting for row in ours)) or "not measured yet"
        top = drawing.head(figure, ABOUT.title, f"Ours: {settings}. The paper's figure prints no numbers.")
        bottom = drawing.foot(figure, ids) + 0.4
        axes = drawing.band(figure, top + 0.2, bottom, [1, 1, 1.2], left=0.075, right=0.97, wspace=0.75)
        for panel, measure in zip(axes, ("time per token", "peak memory"), strict=False):
            _panel(panel, measure, [row for row in ours if row.measure == measure])
        _throughput(axes[2])
        figure.draw_without_rendering()
        for panel in axes[:2]:
            drawing.spread(panel)
    return figure


def _panel(axes: Axes, measure: str, rows: Sequence[Row]) -> None:
    axes.set_xlabel("tokens of context")
    axes.set_title(f"{measure} ({rows[0].unit})" if rows else measure, fontsize=6.5)
    if not rows:
        drawing.unmeasured(axes)
        return
    axes.set_xscale("log", base=2)
    looks = {OURSELVES: INK, RIVAL: PALETTE[1]}
    for key in dict.fromkeys((row.subject, row.setting) for row in rows):
        mine = [row for row in rows if (row.subject, row.setting) == key]
        color = looks.get(key[0], PALETTE[0])
        drawing.curve(
            axes, [float(r.at) for r in mine], [r.value.mean for r in mine], key[0], color=color, marker="o"
        )
    axes.set_ylim(bottom=0)
    drawing.powers(axes.xaxis, sorted({float(row.at) for row in rows}))


def _throughput(axes: Axes) -> None:
    """What a later paper of the same authors prints."""
    table = published.efficiency("inference")["throughput"]
    names = sorted(table["rows"], key=table["rows"].get)
    values = [table["rows"][name] for name in names]
    axes.barh(
        names, values, color=[PALETTE[0] if name.startswith("TNL") else drawing.QUIET for name in names]
    )
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.0f}", va="center", fontsize=6)
    axes.set_title("printed by TNL: 7B class (tokens/s)", fontsize=6.5)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_xlim(0, 1.15 * max(values))
    axes.tick_params(axis="y", length=0)
