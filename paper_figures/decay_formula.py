"""The decay as the paper prints it, as its code has it, and as later work has it."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("decay-formula", "Decay formula: printed and official", "", Measure("decay"))
CLAIMS = (
    Claim(
        "printed",
        "Open: does exp(−(8h/H)(1 − l/L)), as printed, do better or worse than the official code's "
        "exp(−2^(−8h/H)(1 − l/(L − 1)))?",
        Expects.open,
        "printed",
    ),
    Claim("log-spaced", "Open: memory lengths log-spaced from 2 to 256.", Expects.open, "log-spaced"),
    Claim("retnet", "Open: RetNet's decay, the same in every layer.", Expects.open, "retnet"),
    Claim(
        "no-temperature",
        "Open: the official slopes, the same in every layer.",
        Expects.open,
        "no-temperature",
    ),
    Claim(
        "all-layers",
        "Open: does the undecayed last layer matter? The layer factor 1 − l/L, under which it decays too.",
        Expects.open,
        "all-layers",
    ),
)
NAMES = {
    "official": "official",
    **{name: name for name in ("printed", "no-temperature", "all-layers", "log-spaced", "retnet")},
}


def build(records: Records) -> Built:
    """Formulas against the official code's. The paper compares none of them."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="The printed formula is not that of any official code; the paper compares no formulas.",
    )
