"""TransNormer T1 and T2 against TransNormerLLM (v2 table 2)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("transnormer", "TransNormer against TransNormerLLM", "transnormer", Measure("architecture"))
CLAIMS = (
    Claim(
        "t1", "TransNormer T1 has a higher loss, by 2 %.", Expects.higher, "transnormer-t1", "TransNormer-T1"
    ),
    Claim(
        "t2", "TransNormer T2 has a higher loss, by 1 %.", Expects.higher, "transnormer-t2", "TransNormer-T2"
    ),
)
NAMES = {
    "transnormerllm": "TransNormerLLM",
    "transnormer-t1": "TransNormer-T1",
    "transnormer-t2": "TransNormer-T2",
}


def build(records: Records) -> Built:
    """Both forms of the predecessor, block-diagonal attention below and norm attention above."""
    return built(ABOUT, CLAIMS, records, names=NAMES, under="Each predecessor against TransNormerLLM.")
