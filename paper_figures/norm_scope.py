"""The norm on the output of gated linear attention: over all heads, per head, or none."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("norm-scope", "The norm behind linear attention: its scope", "", Measure("norm-scope"))
CLAIMS = (
    Claim(
        "per-head",
        "Open: a norm for each head, as in RetNet, instead of one over all heads, as in the official code.",
        Expects.open,
        "per-head",
    ),
    Claim("none", "Open: no norm there at all.", Expects.open, "none"),
)
NAMES = {"all-heads": "all heads", "per-head": "per-head", "none": "none"}


def build(records: Records) -> Built:
    """Scopes of the norm. The paper's formula has a norm and does not say over what."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Against one norm over all heads together, as the official code has it.",
    )
