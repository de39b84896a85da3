"""Stress test: speed and memory up to 65B (v2 table 13)."""

from __future__ import annotations

from tnbench.paper_figures.shared import published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.bars import bars
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.several_gpus import of_table, panels
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict

LATER = "several GPUs are needed, and tnbench does not shard models yet"
ABOUT = About("stress-test", "Stress test on model size", "stress-test", Measure(later=LATER))
SPEED = Claim(
    "speed",
    "At every size TransNormerLLM trains more tokens per second and GPU (21 to 29 % more).",
    Expects.higher,
)


def build(records: Records) -> Built:
    """The printed table; nothing is measured yet."""
    table = published.efficiency("stress-test")
    under = f"Printed: {table['setting']}. Ours: not measured yet ({LATER})."
    figure = bars(ABOUT.title, under, panels(table), list(table["rows"]), [])
    return Built(figure, of_table(table, ""), [Finding(SPEED, Verdict.missing, because=LATER)])
