"""Scale: what is claimed of 175B, and beyond (the title of v1; v2 tables 13 and 14)."""

from __future__ import annotations

from tnbench.paper_figures.shared import published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.bars import MODELS, bars
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.several_gpus import of_table
from tnbench.paper_figures.shared.tables import Built, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict

LATER = "clusters are needed; the paper itself timed 175B and trained none"
ABOUT = About("scale", "Scale: 175B and beyond", "stress-test", Measure(later=LATER))
SIZE = "175B"
CLAIMS = (
    Claim("faster", "At 175B TransNormerLLM trains 29 % more tokens per second.", Expects.higher),
    Claim(
        "quality",
        "TransNormerLLM scales to 175 billion parameters (title of v1): no loss is printed above 7B.",
        Expects.open,
    ),
)


def build(records: Records) -> Built:
    """What is printed of 175B; nothing is measured yet."""
    stress, context = published.efficiency("stress-test"), published.efficiency("largest-context")
    rows = [row for row in of_table(stress, "") if row.at == SIZE]
    longest = context["rows"][SIZE]
    rows += [
        of_paper(
            model, f"paper {context['source']}", "largest context", context["unit"], longest[place], at=SIZE,
            setting=context["setting"], where=f"v1 {context['where']['v1']}",
        )
        for place, model in enumerate(MODELS)
    ]  # fmt: skip
    speed = {model: [stress["rows"][SIZE][model][0]] for model in MODELS}
    largest = {model: [longest[place]] for place, model in enumerate(MODELS)}
    shown = {"tokens/s per GPU, context 2048": speed, "largest context, 64 GPUs (tokens)": largest}
    under = f"Printed of 175B: times and memory, no loss. Ours: not measured yet ({LATER})."
    findings = [Finding(claim, Verdict.missing, because=LATER) for claim in CLAIMS]
    return Built(bars(ABOUT.title, under, shown, [SIZE], []), rows, findings)
