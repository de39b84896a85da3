"""SRMSNorm, RMSNorm and LayerNorm (v1 table 10)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("normalisation", "Normalisation", "normalisation", Measure("normalisation"))
CLAIMS = (
    Claim("rmsnorm", "RMSNorm is no different from SRMSNorm.", Expects.parity, "rmsnorm", "RMSNorm"),
    Claim("layernorm", "LayerNorm is no different from SRMSNorm.", Expects.parity, "layernorm", "LayerNorm"),
)
NAMES = {"srmsnorm": "SRMSNorm", "rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def build(records: Records) -> Built:
    """The three norms, each in every place of the model."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Each norm, in every place of the model, against SRMSNorm, which has no parameters.",
    )
