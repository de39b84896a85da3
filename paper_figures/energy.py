"""Energy of Lightning Attention beside softmax and naive attention: joules per token over the length.

The joules are those of the GPU's own counter (NVML) over a window of calls back to back; what the GPU draws
when it is idle is part of them. There is one window for each number, so no interval: two energies whose ratio
is within `RESOLUTION` are not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.lightning_attention import CURVES, SHAPE
from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.kernels import MODES
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import OURS, Built, Row, Stamp
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.profiling.kernels.store import Block, kernel_hash
from tnbench.profiling.kernels.store import Records as KernelRecords
from tnbench.report.drawing import style
from tnbench.report.words import counted
from tnbench.statistics import Interval

OPERATOR = "linear_attention"
OWN, NAIVE = "triton", "quadratic"
SOFTMAX = ("softmax-cudnn", "softmax-flash")
MEASURED = (OWN, "lightning1", NAIVE, *SOFTMAX)
ABOUT = About(
    "energy",
    "Energy of Lightning Attention over the length",
    "",
    Measure(
        kernels=(OPERATOR,),
        axes={
            "implementation": list(MEASURED),
            "mode": "forward,both",
            "dtype": "bfloat16",
            "shape": f"{SHAPE['batch']},{SHAPE['heads']}",
            "head-dim": str(SHAPE["key_dim"]),
            "length": "1k,2k,4k,8k",
            "energy": "2",
        },
    ),
)
RESOLUTION = 0.1
"""Two readings, each taken to be within 5 %, as NVIDIA documents of the power of its older GPUs."""
LESS_THAN_NAIVE = Claim(
    "naive", "Open in the paper: the energy of our Lightning kernel against naive attention's.", Expects.open
)
LESS_THAN_SOFTMAX = Claim(
    "softmax",
    "Open in the paper: the energy of our Lightning kernel against the more frugal softmax attention's.",
    Expects.open,
)
OVER_LENGTH = Claim(
    "length", "Open in the paper: joules per token of our Lightning kernel as the length grows.", Expects.open
)
CLAIMS = (LESS_THAN_NAIVE, LESS_THAN_SOFTMAX, OVER_LENGTH)
ENERGY, POWER = "energy", "power"
JOULES = "J per million tokens"
"""Which is the same as µJ per token."""


def build(records: Records) -> Built:
    """Joules per token and watts of every implementation whose energy was counted, on each machine."""
    rows: list[Row] = []
    findings: list[Finding] = []
    stamps: list[Stamp] = []
    for where, found in records.kernels():
        blocks = counted_blocks(found)
        if not blocks:
            continue
        mine = [row for block in blocks for row in _rows(where, found, block)]
        rows += mine
        for claim, others in ((LESS_THAN_NAIVE, (NAIVE,)), (LESS_THAN_SOFTMAX, SOFTMAX)):
            finding, more = _less(mine, claim, others)
            rows, findings = rows + more, [*findings, finding]
        findings.append(_over_length(mine))
        hashes = dict.fromkeys(block.line["kernel_hash"] for block in blocks)
        present = kernel_hash(OPERATOR)
        stamps += [Stamp(where, OPERATOR, one, present, ABOUT.measure.command) for one in hashes]
    if not findings:
        findings = [Finding(one, Verdict.missing, command=ABOUT.measure.command) for one in CLAIMS]
    return Built(_figure(rows), rows, findings, stamps)


def counted_blocks(found: KernelRecords) -> list[Block]:
    """For each mode and length the block of the latest code in which most energies were counted.

    The reports show the blocks of most implementations, which need not be those: energy is counted of few.
    """
    by_point: dict[tuple[str, int], list[Block]] = {}
    for block in found.blocks:
        case = block.case
        fits = all(case["shape"].get(name) == size for name, size in SHAPE.items())
        alike = case["operator"] == OPERATOR and case["dtype"] == "bfloat16" and case["mode"] in MODES
        if alike and fits and _joules(block):
            by_point.setdefault((case["mode"], case["shape"]["length"]), []).append(block)
    chosen = []
    for _, blocks in sorted(by_point.items(), key=lambda one: (one[0][0] == "both", one[0][1])):
        latest = [block for block in blocks if block.stack == blocks[-1].stack]
        most = max(len(_joules(block)) for block in latest)
        chosen.append([block for block in latest if len(_joules(block)) == most][-1])
    return chosen


def _joules(block: Block) -> dict[str, Mapping[str, Any]]:
    """Implementation → its energy line, of those that the counter moved for."""
    return {name: line for name, line in block.energy.items() if line.get("joules_per_call") is not None}


def _rows(where: str, found: KernelRecords, block: Block) -> list[Row]:
    device = found.sessions.get(block.line["session"], {}).get("device", "a GPU")
    shape, mode = block.case["shape"], MODES[block.case["mode"]]
    setting = f"{device}, batch {shape['batch']}, {shape['heads']} heads of {shape['key_dim']}, bf16"
    rows = []
    for name, line in _joules(block).items():
        window = f"one window of {line['window']:g} s, {counted(line['calls'], 'call')}"
        shared: dict[str, Any] = {
            "setting": setting, "at": str(shape["length"]), "where": where, "runs": (block.id,),
            "command": f"{block.line['command']} --implementation {name} --energy {line['window']:g}",
            "note": f"{window}: no interval; idle power is part of it",
        }  # fmt: skip
        each = line["joules_per_call"] / block.line["tokens"] * 1e6
        rows.append(Row(name, OURS, f"{ENERGY}, {mode}", JOULES, value=_single(each), **shared))
        rows.append(Row(name, OURS, f"{POWER}, {mode}", "W", value=_single(line["watts"]), **shared))
    return rows


def _single(value: float) -> Interval:
    return Interval(float(value), math.nan, math.nan, 1)


def _energies(rows: Sequence[Row], name: str) -> dict[tuple[str, str], Row]:
    """Measure and length → the energy of an implementation."""
    return {
        (row.measure, row.at): row for row in rows if row.subject == name and row.measure.startswith(ENERGY)
    }


def _less(mine: Sequence[Row], claim: Claim, others: Sequence[str]) -> tuple[Finding, list[Row]]:
    """Ours against the most frugal of others at every point that has both, with a row for each."""
    pairs = []
    for point, own in _energies(mine, OWN).items():
        known = [_energies(mine, name).get(point) for name in others]
        rivals = [row for row in known if row is not None]
        if rivals:
            pairs.append((own, min(rivals, key=lambda row: row.value.mean)))
    if not pairs:
        return Finding(claim, Verdict.missing, command=ABOUT.measure.command), []
    ratios = [other.value.mean / own.value.mean for own, other in pairs]
    words = [_word(ratio) for ratio in ratios]
    rows = [
        Row(
            OWN, OURS, own.measure.replace(ENERGY, "energy saved"), "times less energy",
            against=other.subject, setting=own.setting, at=own.at, value=_single(ratio), verdict=word,
            where=own.where, runs=own.runs, command=own.command,
            note=f"one window each, no interval: within {100 * RESOLUTION:.0f} % they are not told apart",
        )
        for (own, other), ratio, word in zip(pairs, ratios, words, strict=True)
    ]  # fmt: skip
    because = (
        f"{min(ratios):.3g} to {max(ratios):.3g} times less energy per token at "
        f"{counted(len(ratios), 'point')}; less at {words.count('less')}, more at {words.count('more')}, "
        f"within {100 * RESOLUTION:.0f} % at {words.count('undecided')}; one window each, no interval"
    )
    whole = set(words)
    verdict = words[0] if len(whole) == 1 else "mixed" if {"less", "more"} <= whole else "undecided"
    return _finding(claim, verdict, because, [own for own, _ in pairs]), rows


def _word(ratio: float) -> str:
    """What the energy of another over ours says of ours."""
    if abs(math.log(ratio)) <= math.log1p(RESOLUTION):
        return "undecided"
    return "less" if ratio > 1 else "more"


def _over_length(mine: Sequence[Row]) -> Finding:
    """The longest against the shortest length, in each mode."""
    own = list(_energies(mine, OWN).values())
    growth = {}
    for measure in dict.fromkeys(row.measure for row in own):
        along = sorted((int(row.at), row.value.mean) for row in own if row.measure == measure)
        if len(along) > 1:
            growth[measure] = along
    if not growth:
        return Finding(OVER_LENGTH, Verdict.missing, command=ABOUT.measure.command)
    ratios = {measure: along[-1][1] / along[0][1] for measure, along in growth.items()}
    because = "; ".join(
        f"{measure.removeprefix(ENERGY + ', ')}: {ratios[measure]:.2f} times the joules per token at "
        f"{along[-1][0]:,} tokens of those at {along[0][0]:,}"
        for measure, along in growth.items()
    )
    verdict = "grows" if max(ratios.values()) > 1 + RESOLUTION else "does not grow"
    return _finding(OVER_LENGTH, verdict, f"{because}; one window each, no interval", own)


def _finding(claim: Claim, verdict: Verdict | str, because: str, rows: Sequence[Row]) -> Finding:
    runs = tuple(dict.fromkeys(run for row in rows for run in row.runs))
    first = rows[0]
    return Finding(claim, verdict, because, first.setting, first.where, ABOUT.measure.command, runs)


def _figure(rows: Sequence[Row]) -> Figure:
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(3.1 + 0.085 * len(drawing.id_lines(ids)))
    settings = list(dict.fromkeys(row.setting for row in rows))
    under = (
        f"Ours: {'; '.join(settings) or 'not measured yet'}. Joules are the GPU's own (NVML), over calls "
        "back to back; what it draws when idle is part of them. The paper has no experiment on energy."
    )
    panels = (f"{ENERGY}, forward", f"{ENERGY}, forward and backward", f"{POWER}, forward and backward")
    with style():
        top = drawing.head(figure, ABOUT.title, under)
        bottom = drawing.foot(figure, ids) + 0.4
        for axes, measure in zip(
            drawing.band(figure, top + 0.2, bottom, [1, 1, 1], left=0.05, right=0.875, wspace=1.0),
            panels,
            strict=True,
        ):
            _panel(axes, measure, [row for row in rows if row.measure == measure])
        figure.draw_without_rendering()
        for axes in figure.axes:
            drawing.spread(axes)
    return figure


def _panel(axes: Axes, measure: str, rows: Sequence[Row]) -> None:
    unit = rows[0].unit if rows else JOULES if measure.startswith(ENERGY) else "W"
    axes.set_title(f"{measure.replace('forward and backward', 'fwd and bwd')} ({unit})", fontsize=6.5)
    axes.set_xlabel("tokens")
    if not rows:
        drawing.unmeasured(axes)
        return
    axes.set_xscale("log", base=2)
    if measure.startswith(ENERGY):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(row.value.mean for row in rows))
    for where in dict.fromkeys(row.where for row in rows):
        for name, (label, color, line) in CURVES.items():
            mine = sorted(
                (float(row.at), row.value.mean) for row in rows if (row.subject, row.where) == (name, where)
            )
            if mine:
                xs, ys = zip(*mine, strict=True)
                drawing.curve(axes, xs, ys, label, color=color, linestyle=line, marker="o")
    drawing.powers(axes.xaxis, sorted({float(row.at) for row in rows}))
    drawing.plain_ticks(axes.yaxis)
