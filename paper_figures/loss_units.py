"""Bits or nats: in which unit the paper prints its losses, from the perplexities beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import OURS, Built, Row, printed
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding
from tnbench.report.drawing import INK, PALETTE, style

ABOUT = About("loss-units", "Bits or nats: the unit of the printed losses", "", Measure(arithmetic=True))
CLAIM = Claim(
    "unit",
    "Open: are the losses in bits or in nats per token? It does not say; other papers mostly print nats.",
    Expects.open,
)
TABLES = "paper_figures/published/ablations.yaml"
FITS = 0.01
"""A perplexity fits a loss where it is off by this share at most: the loss has three decimals."""
BASES = {"bits": 2.0, "nats": math.e}


def build(records: Records) -> Built:
    """Every printed pair of loss and perplexity against 2^loss and e^loss; arithmetic, no records."""
    pairs = list(_pairs())
    rows = [
        Row(
            name, f"paper {version}", "perplexity", "1", against=f"base^loss, loss {loss:g}", where=where,
            value=printed(perplexity), note=", ".join(_fitting(loss, perplexity)) or "fits neither",
        )
        for name, version, where, loss, perplexity in pairs
    ]  # fmt: skip
    fitting = {
        unit: sum(unit in _fitting(loss, perplexity) for *_, loss, perplexity in pairs) for unit in BASES
    }
    rows += [
        Row(unit, OURS, f"rows whose perplexity fits within {FITS:.0%}", "rows", against=f"{len(pairs)} rows",
            value=printed(count), runs=(TABLES,))
        for unit, count in fitting.items()
    ]  # fmt: skip
    best = max(fitting, key=lambda unit: fitting[unit])
    odd = [f"{name} ({version})" for name, version, _, loss, ppl in pairs if not _fitting(loss, ppl)]
    told = f"{fitting[best]} of {len(pairs)} perplexities fit {'2' if best == 'bits' else 'e'}^loss"
    because = f"{told} within {FITS:.0%}; not {', '.join(odd)}" if odd else f"{told} within {FITS:.0%}"
    other = next(unit for unit in BASES if unit != best)
    because += f"; {fitting[other]} fit the losses read as {other}"
    finding = Finding(CLAIM, best, because, "arithmetic on the printed tables", TABLES)
    return Built(_figure(pairs), rows, [finding])


def _pairs() -> Iterator[tuple[str, str, str, float, float]]:
    """Row, version, table, loss and perplexity, each printed pair of a version once."""
    seen = set()
    for name in published.ablations():
        table = published.ablation(name)
        for row, cells in table["rows"].items():
            for version in published.VERSIONS:
                if version not in cells or len(cells[version]) < 2:
                    continue
                loss, perplexity = map(float, cells[version][:2])
                if (version, loss, perplexity) not in seen:
                    seen.add((version, loss, perplexity))
                    yield row, version, str(table["where"][version]), loss, perplexity


def _fitting(loss: float, perplexity: float) -> list[str]:
    return [unit for unit, base in BASES.items() if abs(perplexity / base**loss - 1) <= FITS]


def _figure(pairs: list[tuple[str, str, str, float, float]]) -> Figure:
    figure = drawing.canvas(3.4)
    with style():
        top = drawing.head(figure, ABOUT.title, "Every printed pair of training loss and perplexity.") + 0.1
        bottom = drawing.foot(figure, (TABLES,), "Arithmetic on the tables of v1 and v2.") + 0.45
        (axes,) = drawing.band(figure, top, bottom, [1], left=0.075, right=0.86)
        losses = [pair[3] for pair in pairs]
        grid = [min(losses) + (max(losses) - min(losses)) * step / 50 for step in range(51)]
        drawing.curve(axes, grid, [2**x for x in grid], "2^loss: bits", color=INK, linewidth=1)
        drawing.curve(axes, grid, [math.e**x for x in grid], "e^loss: nats", color=PALETTE[1], linewidth=1)
        for version, look in drawing.MARKS.items():
            mine = [pair for pair in pairs if f"paper {pair[1]}" == version]
            axes.plot(
                [pair[3] for pair in mine], [pair[4] for pair in mine], linestyle="none", color=drawing.QUIET,
                markersize=4, label=version, zorder=3, **look,
            )  # fmt: skip
        for name, version, _, loss, perplexity in pairs:
            if version == published.VERSIONS[-1] and not _fitting(loss, perplexity):
                axes.annotate(
                    name, (loss, perplexity), xytext=(6, 3), textcoords="offset points", color=drawing.QUIET
                )
        axes.set_xlabel("printed training loss")
        axes.set_ylabel("perplexity")
        axes.legend(frameon=False, loc="upper left")
    return figure
