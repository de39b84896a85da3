"""Transformer against TransNormerLLM (v2 table 1)."""

from __future__ import annotations

from tnbench.paper_figures.shared.ablation import built
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects

ABOUT = About("transformer", "Transformer against TransNormerLLM", "transformer", Measure("architecture"))
CLAIMS = (
    Claim(
        "transformer",
        "A Transformer of the same size has a higher loss, by 5 % at 385M and 9 % at 1B.",
        Expects.higher,
        "transformer",
        "Transformer",
    ),
    Claim(
        "gpt2",
        "Not asked by the paper: a GPT-2-style Transformer (LayerNorm, learned positions, GELU); the claim "
        "above is tested on a strong one (RMSNorm, RoPE, SwiGLU).",
        Expects.open,
        "gpt2",
    ),
    Claim("retnet", "Asked by a reviewer, not in the paper: RetNet.", Expects.open, "retnet"),
)
NAMES = {
    "transnormerllm": "TransNormerLLM",
    "transformer": "Transformer",
    "gpt2": "gpt2",
    "retnet": "retnet",
}


def build(records: Records) -> Built:
    """The paper's four models, and ours: the strong Transformer, GPT-2's, RetNet."""
    return built(
        ABOUT,
        CLAIMS,
        records,
        names=NAMES,
        under="Each model against TransNormerLLM of its size. Ours are tuned alike; the paper does not say "
        "which Transformer it trained.",
    )
