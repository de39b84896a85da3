"""Decay temperature: with and without the layer factor 1 − l/L (v2 table 4)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("decay-temperature", "Decay temperature", "decay-temperature", Measure("decay-temperature"))
CLAIMS = (
    Claim(
        "without",
        "Without the temperature, so with the same decay in every layer, the loss is higher.",
        Expects.higher,
        "without",
        "without temperature",
    ),
)
NAMES = {"with": "with temperature", "without": "without temperature"}


def build(records: Records) -> Built:
    """With the layer factor, which leaves the last layer undecayed, and without."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="The temperature weakens the decay from layer to layer; the last layer has none.",
    )
