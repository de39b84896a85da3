"""Positional encoding: Mix, APE, exponential decay, LRPE, LRPE-d (v2 table 3)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About(
    "positional-encoding", "Positional encoding", "positional-encoding", Measure("positional-encoding")
)
CLAIMS = (
    Claim("ape", "Learned absolute positions have a higher loss than Mix.", Expects.higher, "ape", "APE"),
    Claim("exp-decay", "Decay alone has a higher loss than Mix.", Expects.higher, "exp-decay", "Exp-Decay"),
    Claim("lrpe", "LRPE without decay has a higher loss than Mix.", Expects.higher, "lrpe", "LRPE"),
    Claim(
        "lrpe-d",
        "LRPE-d in every layer has a lower loss than Mix, which was chosen because it trains faster.",
        Expects.lower,
        "lrpe-d",
        "LRPE-d",
    ),
)
NAMES = {"mix": "Mix", "ape": "APE", "exp-decay": "Exp-Decay", "lrpe": "LRPE", "lrpe-d": "LRPE-d"}


def build(records: Records) -> Built:
    """The five encodings. The base of v1 is LRPE-d, that of v2 and of ours Mix."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Differences to the version's own base: LRPE-d in v1, Mix (LRPE-d in the first layer, decay "
        "alone above) in v2 and in ours.",
    )
