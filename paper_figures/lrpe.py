"""LRPE against no position, with and without decay."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("lrpe", "LRPE against no position", "", Measure("lrpe"))
CLAIMS = (
    Claim("no-position", "Open: neither position nor decay.", Expects.open, "no-position"),
    Claim("decay-only", "Open: decay in place of LRPE.", Expects.open, "decay-only"),
    Claim("rope", "Open: RoPE, so fixed angles and no learned ones.", Expects.open, "rope"),
    Claim(
        "lrpe-rotation",
        "Open: channel pairs that turn, in place of the official code's cosine per channel.",
        Expects.open,
        "lrpe-rotation",
    ),
)
NAMES = {
    "lrpe": "LRPE",
    **{name: name for name in ("no-position", "decay-only", "rope", "lrpe-rotation")},
}


def build(records: Records) -> Built:
    """LRPE alone against its rivals. The paper's tables have LRPE only beside decay or APE."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Each against LRPE in every layer, without decay.",
    )
