"""The activation of the gated linear unit: none (SGLU) or Swish (v1 table 9)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About(
    "glu-activation", "Activation of the gated linear unit", "glu-activation", Measure("glu-activation")
)
CLAIMS = (
    Claim(
        "swish",
        "With Swish in the gated linear unit the loss is higher than with none (0.006 bits, one run).",
        Expects.higher,
        "swish",
        "Swish",
    ),
    Claim("gelu", "Not in the paper: GELU.", Expects.open, "gelu"),
    Claim("sigmoid", "Not in the paper: a sigmoid.", Expects.open, "sigmoid"),
)
NAMES = {"none": "none (SGLU)", "swish": "Swish", "gelu": "gelu", "sigmoid": "sigmoid"}


def build(records: Records) -> Built:
    """SGLU and SwiGLU as in the paper, and two other activations."""
    return built(ABOUT, CLAIMS, records, names=NAMES, under="Each activation against none (SGLU).")
