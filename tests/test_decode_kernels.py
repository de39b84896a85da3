"""The decode step and Lightning Attention 1 without a GPU: definitions, refusals, interpreter, compiler."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from decode_cases import STEPS, decode_case, relative
from triton_processes import interpreted, python

from tnbench.kernels.compiled import SHARED
from tnbench.kernels.decode_step import FEATURE_MAPS, configurations, decode_step
from tnbench.kernels.decode_step.configurations import RULE, candidates, configuration
from tnbench.kernels.linear_attention import linear_attention
from tnbench.kernels.linear_attention.lightning1 import blocks, lightning1
from tnbench.kernels.lrpe import rotate


@pytest.mark.parametrize("only", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(only: str):
    interpreted(only, "interpreted_decode.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_kernels_keep_everything_in_registers(capability: int):
    pytest.importorskip("triton")
    done = python("compiled_decode.py", str(capability), interpret=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 40
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= SHARED[capability], row
        if capability == 90 and "lightning1 torch.bfloat16" in row["kernel"] and "decay" not in row["kernel"]:
            assert row["wgmma"] > 0, row


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_reference_is_the_model_s_own_step(feature_map: str):
    """φ, LRPE and `linear_attention` as the mixers call them, one token at a time."""
    from tnbench import registry

    torch.manual_seed(0)
    phi = registry.find("feature_map", feature_map).target()
    rate, theta = -torch.rand(3).double(), torch.rand(3, 8).double()
    state = torch.randn(2, 3, 16, 5).double()
    before: torch.Tensor | None = state.clone()
    for n in (4, 5):
        q, k, v = (torch.randn(2, 1, 3, d).double() for d in (8, 8, 5))
        qr, kr = rotate(phi(q), phi(k), theta, start=n, implementation="reference")
        wanted, before = linear_attention(
            qr, kr, v, rate, scale=0.5, initial_state=before, output_state=True, implementation="recurrent"
        )
        q, k, v = (x.squeeze(1) for x in (q, k, v))
        found = decode_step(q, k, v, rate, state, scale=0.5, feature_map=feature_map, theta=theta, position=n)
        assert relative(found, wanted.squeeze(1)) < 1e-14
        assert before is not None
        assert relative(state, before) < 1e-14


def test_reference_in_single_precision():
    for step in STEPS[:5]:
        errors = decode_case("cpu", torch.float32, "reference", **step)
        assert max(errors.values()) < 1e-4, (step, errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 3, 9)}, "must be"),
        ({"state": torch.zeros(2, 3, 8, 5)}, r"state must be \(2, 3, 16, 5\)"),
        ({"state": torch.zeros(2, 3, 16, 5).half()}, "float32"),
        ({"state": torch.zeros(2, 3, 5, 16).mT}, "contiguous"),
        ({"log_decay": torch.zeros(2)}, r"log_decay must be \(3,\)"),
        ({"theta": torch.zeros(3, 4)}, "theta must be"),
        ({"position": None}, "needs a position"),
        ({"position": torch.zeros(3, dtype=torch.int32)}, "position must be"),
        ({"position": torch.zeros(2)}, "position must be"),
        ({"position": torch.zeros(2, dtype=torch.int32, device="meta")}, "position must be on cpu"),
        ({"log_decay": torch.zeros(3, device="meta")}, "log_decay must be on cpu"),
        ({"feature_map": "silu"}, "known are none, swish"),
        ({"form": "circle"}, "known are cosine"),
        ({"implementation": "cuda"}, "known are auto"),
        ({"implementation": "triton"}, "cannot take"),
        ({"v": torch.zeros(2, 3, 5, requires_grad=True)}, "no_grad"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    given = {
        "q": torch.zeros(2, 3, 8),
        "k": torch.zeros(2, 3, 8),
        "v": torch.zeros(2, 3, 5),
        "log_decay": None,
    }
    given |= {"state": torch.zeros(2, 3, 16, 5), "theta": torch.zeros(3, 8), "position": 1}
    decode_step(**given)
    if change.get("implementation") == "triton":
        monkeypatch.setattr("tnbench.kernels.decode_step.obstacle", lambda x: "no GPU")
    with pytest.raises(ValueError, match=message):
        decode_step(**given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(1, 3, 2, 16)}, "must be"),
        ({"q": torch.zeros(1, 4, 2, 16).double()}, "Triton kernels"),
    ],
)
def test_lightning1_refuses(change: dict, message: str):
    given: dict[str, Any] = {name: torch.zeros(1, 4, 2, 16) for name in "qkv"} | change
    with pytest.raises(ValueError, match=message):
        lightning1(**given)


def test_configurations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(configurations, "tuned", lambda: {"sm_80 256 part": {"tile": 8, "warps": 2}})
    configurations.lookup.cache_clear()
    assert configuration(200, 128, 1, "sm_80", 108) == (8, 2)
    assert configuration(200, 128, 1000, "sm_80", 108) == RULE[256][0]
    assert configuration(128, 128, 64 * 16, "sm_90", 132) == RULE[128][0]
    assert configuration(100, 128, 1, "sm_90", 132) == RULE[128][1]
    configurations.lookup.cache_clear()
    for rows, both in RULE.items():
        assert set(both) <= set(candidates(rows))
    assert blocks(89, torch.bfloat16, 96) == blocks(80, torch.bfloat16, 128)
    assert blocks(90, torch.float32, 128)[:2] == (32, 32)
    assert blocks(90, torch.bfloat16, 128, (256, 32))[:3] == (256, 32, 8)
