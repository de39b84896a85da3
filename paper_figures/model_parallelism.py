"""Model parallelism at 7B on eight GPUs (v2 table 12)."""

from __future__ import annotations

from tnbench.paper_figures.shared import published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.bars import bars
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.several_gpus import of_table, panels
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict

LATER = "several GPUs are needed, and tnbench has no model parallelism yet"
ABOUT = About("model-parallelism", "Model parallelism at 7B", "model-parallelism", Measure(later=LATER))
CLAIMS = (
    Claim("speed", "At every degree of model parallelism TransNormerLLM trains more tokens per second than a "
          "Transformer with FlashAttention (19 to 25 % more).", Expects.higher),
    Claim("memory", "Eight-way parallelism saves 62.3 % of a GPU's memory against one-way.", Expects.lower),
)  # fmt: skip


def build(records: Records) -> Built:
    """The printed table; nothing is measured yet."""
    table = published.efficiency("model-parallelism")
    groups = [f"{degree}-way" for degree in table["rows"]]
    under = f"Printed: {table['setting']}. Ours: not measured yet ({LATER})."
    figure = bars(ABOUT.title, under, panels(table), groups, [])
    findings = [Finding(claim, Verdict.missing, because=LATER) for claim in CLAIMS]
    return Built(figure, of_table(table, "-way model parallelism"), findings)
