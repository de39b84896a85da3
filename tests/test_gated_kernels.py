"""Gated linear attention as one operator, without a GPU: refusals, interpreter, compiler."""

from __future__ import annotations

import json

import pytest
import torch
from triton_processes import interpreted, python

from tnbench.kernels.compiled import SHARED
from tnbench.kernels.gated_linear_attention import gated_linear_attention, obstacle


@pytest.mark.parametrize("only", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(only: str):
    interpreted(only, "interpreted_gated.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_kernels_spill_nothing(capability: int):
    pytest.importorskip("triton")
    done = python(
        "-m", "tnbench.kernels.compiled", "gated_linear_attention", str(capability), "1024", interpret=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= SHARED[capability], row
        assert row["registers"] <= 128, row  # two programs of 8 warps on a multiprocessor


@pytest.mark.parametrize(
    ("shape", "change", "said"),
    [
        ((1, 4, 128), {"feature_map": "cube"}, "known are none, swish"),
        ((1, 4, 100), {}, "4 · width"),
        ((4, 128), {}, "4 · width"),
        ((1, 4, 128), {"log_decay": torch.zeros(3)}, r"log_decay must be \(2,\)"),
        ((1, 4, 128), {}, "need an NVIDIA GPU"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], change: dict, said: str):
    arguments = {"log_decay": None, "heads": 2, **change}
    with pytest.raises(ValueError, match=said):
        gated_linear_attention(torch.zeros(shape), **arguments)


def test_obstacles():
    assert "head dims up to 256" in str(obstacle(torch.zeros(1, 1, 4 * 512), 1))
    assert "16 bytes" in str(obstacle(torch.zeros(1, 1, 4 * 12, dtype=torch.bfloat16), 1))
    assert "nothing" in str(obstacle(torch.zeros(0, 1, 64), 1))
