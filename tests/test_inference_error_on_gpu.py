"""The study of the two inference algorithms on a GPU: overflow steps and errors are those of the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tnbench.profiling.inference_error import DTYPES, Study, decode_original, measure
from tnbench.profiling.inference_error_model import decode_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

STUDY = Study(heads=8, head_dim=32, length=384, seeds=2)


@pytest.mark.parametrize("name", DTYPES)
def test_overflow_steps_are_those_of_the_cpu(name):
    """The same inputs, so the same steps; sums in another order may round one step apart."""
    (series, steps), (_, expected) = (
        measure(replace(STUDY, device=device), name, lambda text: None) for device in ("cuda", "cpu")
    )
    for found, known in zip(steps, expected, strict=True):
        assert found["predicted"] == known["predicted"]
        assert found["state"] == known["state"]
        for seen, other in zip(found["seen"], known["seen"], strict=True):
            assert seen is other is None or abs(seen - other) <= 1
    bound = {"fp32": 5e-6, "bf16": 4e-3, "fp16": 5e-4}[name]
    for row in series:
        if row["algorithm"] == "robust":
            pairs = zip(row["position"], row["median"], strict=True)
            assert max(error for step, error in pairs if step >= 10) < bound


def test_segments_go_on_where_the_last_one_ended():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 60, 4, 8, device="cuda") for _ in range(3))
    log_decay = -torch.tensor([2.0, 0.5, 0.25, 0.01], device="cuda")
    whole, _ = decode_original(q, k, v, log_decay, 0, None)
    first, state = decode_original(q[:, :17], k[:, :17], v[:, :17], log_decay, 0, None)
    second, _ = decode_original(q[:, 17:], k[:, 17:], v[:, 17:], log_decay, 17, state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, equal_nan=True)


def test_a_model_is_lost_with_its_fastest_head():
    found = decode_model({"fp16": torch.float16, "fp32": torch.float32}, 2, "cuda")
    for row in found["rows"]:
        lost = {"fp16": range(20, 24), "fp32": range(175, 179)}[row["dtype"]]
        if row["algorithm"] == "original":
            assert all(step in lost for step in row["first_lost"])
        else:
            assert row["first_lost"] == [None, None]
