"""The decode step and Lightning Attention 1 on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch
from decode_cases import STEPS, decode_case, lightning1_case, relative

from tnbench.kernels.decode_step import decode_step
from tnbench.kernels.decode_step.configurations import candidates
from tnbench.kernels.linear_attention.lightning1 import lightning1
from tnbench.kernels.linear_attention.reference import quadratic

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

FAR = (5, 40_000, 100_000)
"""Positions at which a phase in plain fp32 would be off by 4e-3."""


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_decode_step(dtype: torch.dtype, step: dict):
    errors = decode_case("cuda", dtype, "triton", **step, positions=FAR)
    state = errors.pop("state")
    assert state < 2e-6, state  # whatever the inputs are, the state is fp32
    bound = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype]
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("rows", [64, 128, 256])
def test_decode_step_in_every_configuration(rows: int, monkeypatch: pytest.MonkeyPatch):
    from tnbench.kernels.decode_step import triton_op

    for chosen in candidates(rows):
        monkeypatch.setattr(triton_op, "override", chosen)
        errors = decode_case("cuda", torch.bfloat16, "triton", dim=rows, value_dim=96, positions=FAR)
        assert errors["state"] < 2e-6, chosen
        assert max(errors.values()) < 3e-3, chosen


def test_decode_step_in_graphs():
    """Compiled whole, and replayed by a CUDA graph that advances its own positions: the same bits."""
    batch, heads, dim = 4, 16, 128
    q, k, v = (torch.randn(batch, heads, dim, device="cuda").bfloat16() for _ in range(3))
    rate, theta = -torch.rand(heads, device="cuda"), torch.rand(heads, dim, device="cuda")
    position = torch.zeros(batch, dtype=torch.int32, device="cuda")
    state = torch.zeros(batch, heads, 2 * dim, dim, device="cuda")

    def step() -> torch.Tensor:
        out = decode_step(q, k, v, rate, state, theta=theta, position=position, feature_map="swish")
        position.add_(1)
        return out

    def three(call) -> list[torch.Tensor]:
        call()
        torch.cuda.synchronize()
        position.zero_()
        state.zero_()
        return [call().clone() for _ in range(3)] + [state.clone()]

    plain = three(step)
    compiled = three(torch.compile(step, fullgraph=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    replayed = three(replay)
    for a, b, c in zip(plain, compiled, replayed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    "problem",
    [
        {"time": 1, "dim": 64, "value_dim": 64},
        {"time": 333, "dim": 96, "value_dim": 64, "fused": True},
        {"time": 517, "dim": 64, "value_dim": 64, "batch": 2},
        {"time": 300, "dim": 256, "value_dim": 192},
        {"time": 200, "dim": 16, "value_dim": 24, "decayed": False},
        {"time": 4096, "dim": 128, "value_dim": 128},
        {"time": 700, "dim": 128, "value_dim": 128, "block": (64, 128)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lightning1(dtype: torch.dtype, problem: dict):
    if dtype == torch.float32 and "block" in problem:
        pytest.skip("a block that fits 16 bits")
    errors = lightning1_case("cuda", dtype, **problem)
    assert max(errors.values()) < (5e-3 if dtype == torch.bfloat16 else 5e-6), errors


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_that_is_not_the_current_one():
    for device in ("cuda:0", "cuda:1"):
        errors = decode_case(device, torch.bfloat16, "triton", **STEPS[1])
        errors |= lightning1_case(device, torch.bfloat16, time=333, dim=64, value_dim=64)
        assert max(errors.values()) < 5e-3, errors


def test_lightning1_is_as_accurate_as_the_quadratic_form():
    torch.manual_seed(0)
    leaves = [torch.randn(1, 1000, 3, 128, device="cuda").bfloat16().requires_grad_() for _ in range(3)]
    do = torch.randn(1, 1000, 3, 128, device="cuda").bfloat16()
    rate = -torch.tensor([1.0, 0.0, 0.01], device="cuda")
    exact = [x.detach().double().requires_grad_() for x in leaves]
    q, k, v = exact
    wanted = quadratic(q, k, v, rate.double())[0]
    wanted = [wanted, *torch.autograd.grad(wanted, exact, do.double())]
    worst = []
    q, k, v = leaves
    for out in (lightning1(q, k, v, rate), quadratic(q, k, v, rate)[0]):
        found = [out, *torch.autograd.grad(out, leaves, do)]
        pairs = zip(found, wanted, strict=True)
        worst.append([relative(a.transpose(1, 2), b.transpose(1, 2)) for a, b in pairs])
    for ours, baseline in zip(*worst, strict=True):
        assert ours < 1.5 * baseline, worst
