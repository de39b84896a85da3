"""How strong the decay should be: fixed values, none, learned."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("decay-values", "Decay values: fixed, none, learned", "", Measure("decay"))
FIXED = ("fixed-0.9", "fixed-0.99", "fixed-0.999")
CLAIMS = (
    *(
        Claim(name, f"Open: λ = {name.removeprefix('fixed-')} in every head and layer.", Expects.open, name)
        for name in FIXED
    ),
    Claim("none", "Open: no decay.", Expects.open, "none"),
    Claim(
        "learned",
        "A learned decay is not stable (v1: gradients unstable, NaN; no number printed). Open: its loss.",
        Expects.open,
        "learned",
    ),
)
NAMES = {"official": "official", **{name: name for name in (*FIXED, "none", "learned")}}


def build(records: Records) -> Built:
    """One value for all heads and layers, none, and learned values, against the official slopes."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="One decay for all heads and layers, none, and a learned one, against the official slopes.",
    )
