"""The activation φ on queries and keys of gated linear attention (v1 table 8)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("feature-map", "Feature map of gated linear attention", "feature-map", Measure("feature-map"))
CLAIMS = (
    Claim("1+elu", "1+elu has a higher loss than Swish.", Expects.higher, "1+elu", "1+elu"),
    Claim("none", "No activation has a higher loss than Swish.", Expects.higher, "none", "none"),
    Claim("relu", "Not in the paper: ReLU.", Expects.open, "relu"),
)
NAMES = {"swish": "Swish", "1+elu": "1+elu", "none": "none", "relu": "relu"}


def build(records: Records) -> Built:
    """Swish, 1+elu and none as in the paper, and ReLU. The base is 1+elu in v1, Swish in v2 and in ours."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Differences to the version's own base: 1+elu in v1, Swish in v2 and in ours.",
    )
