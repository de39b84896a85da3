"""The Triton kernels within a training step, in the interpreter: test_training_step.py starts this file."""

from __future__ import annotations

import pytest
import torch
from test_training_step import compiled, config, near, outcome

from tnbench.kernels.normalisation import triton_op


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_kernels_need_no_graph_break(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of 2 · layers + 1 norms all but the first take the sum in front of them along."""
    sums, add_norm = [], triton_op.add_norm

    def counted(*given, **options):
        sums.append(given)
        return add_norm(*given, **options)

    monkeypatch.setattr(triton_op, "add_norm", counted)
    keys = {"time": 20, "loss": "chunked"}
    plain = outcome(config(preset, **keys))
    assert len(sums) == 4
    for how, most in ((True, 1), ("blocks", 2)):
        torch._dynamo.reset()
        graphs, found = compiled(config(preset, compile=how, **keys), monkeypatch)
        assert graphs == most
        assert near(found, plain, 1e-6)
