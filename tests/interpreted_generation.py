"""Run by test_decoding.py in a process with TRITON_INTERPRET=1: whole models on the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from test_decoding import assert_near, preset_model, some_tokens

from tnbench.evaluation.generation import Decoder, inference_model


@pytest.mark.parametrize(
    ("preset", "version"),
    [("transnormerllm", "v1"), ("transnormerllm", "v2"), ("transnormer-t1", "v2"), ("transformer", "v2")],
)
@torch.no_grad()
def test_prefill_and_decode(preset: str, version: str):
    """Norms, gates, LRPE, prefill and steps in the kernels, against float64 in plain torch."""
    torch.manual_seed(0)
    model = preset_model(preset, version, context=20, width=64, layers=2)
    tokens = some_tokens(2, 20)
    decoder = Decoder(inference_model(model, "fp32"), 2, 20)
    logits = [decoder.prefill(tokens[:, :13])]
    logits += [decoder.step(token) for token in tokens[:, 13:].unbind(1)]
    torch.manual_seed(0)
    exact = preset_model(preset, version, context=20, width=64, layers=2).double()
    assert_near(torch.stack(logits, dim=1), exact(tokens)[:, 12:], 2e-5)
