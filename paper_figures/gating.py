"""The gate of gated linear attention (v2 table 5)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("gating", "The gate of gated linear attention", "gating", Measure("gating"))
CLAIMS = (
    Claim("without", "Without the gate the loss is higher.", Expects.higher, "no-gate", "without gate"),
)
NAMES = {"gate": "with gate", "no-gate": "without gate"}


def build(records: Records) -> Built:
    """With the gate, and without: then the channel mixer gets its parameters in ours."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Ours give the gate's parameters to the channel mixer; what the paper did is not said.",
    )
