"""Run by test_decode_kernels.py in a process with TRITON_INTERPRET=1: the decode step and Lightning
Attention 1 against float64."""

from __future__ import annotations

import pytest
import torch
from decode_cases import STEPS, decode_case, lightning1_case

from tnbench.kernels.decode_step import decode_step, triton_op
from tnbench.kernels.decode_step.configurations import Configuration
from tnbench.kernels.linear_attention.lightning1 import lightning1


@pytest.fixture(autouse=True)
def restored():
    yield
    triton_op.override = None


@pytest.mark.parametrize(
    "step", [*STEPS[:4], *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS[4:])], ids=str
)
def test_decode_step(step):
    errors = decode_case("cpu", torch.float32, "triton", **step)
    # The interpreter rounds the products that the GPU fuses: phases are off by their own rounding error.
    assert max(errors.values()) < (2e-5 if "form" in step else 2e-6), errors


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [Configuration(16, 4), Configuration(64, 1)])
def test_decode_step_in_tiles(chosen):
    triton_op.override = chosen
    errors = decode_case("cpu", torch.float32, "triton", dim=24, value_dim=80, feature_map="swish")
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.slow
def test_decode_operator_is_registered():
    q, k, v = (torch.randn(2, 3, 16) for _ in range(3))
    rate, theta = torch.tensor([-1.0, -0.1, 0.0]), torch.rand(3, 16)
    position = torch.tensor([7, 1000], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.tnbench.decode_step.default,
        (q, k, v, rate, torch.randn(2, 3, 32, 16), theta, position, "cosine", "swish", 0.5),
        test_utils=("test_schema", "test_faketensor"),
    )

    def step(q, k, v, state):
        return decode_step(q, k, v, rate, state, theta=theta, position=position, implementation="triton") * 2

    results = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        state = torch.ones(2, 3, 32, 16)
        results.append([f(q, k, v, state), f(v, k, q, state), state])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "problem",
    [
        {"time": 1, "dim": 16, "value_dim": 16},
        {"time": 77, "dim": 24, "value_dim": 40, "block": (16, 32)},
        pytest.param(
            {"time": 70, "dim": 16, "value_dim": 24, "block": (32, 16), "fused": True}, marks=pytest.mark.slow
        ),
        pytest.param({"time": 130, "dim": 96, "value_dim": 16, "batch": 2}, marks=pytest.mark.slow),
        pytest.param({"time": 150, "dim": 16, "value_dim": 96, "block": (64, 64)}, marks=pytest.mark.slow),
        {"time": 64, "dim": 16, "value_dim": 16, "block": (32, 32), "decayed": False},
    ],
    ids=str,
)
def test_lightning1(problem):
    errors = lightning1_case("cpu", torch.float32, **problem)
    assert max(errors.values()) < 2e-6, errors


def test_lightning1_is_differentiated_once():
    q = torch.randn(1, 16, 1, 16, requires_grad=True)
    (dq,) = torch.autograd.grad(lightning1(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        dq.sum().backward()


@pytest.mark.slow
def test_lightning1_compiles_without_a_graph_break():
    leaves = [torch.randn(1, 40, 2, 16, requires_grad=True) for _ in range(3)]
    leaves.append(torch.tensor([-0.3, -0.01], requires_grad=True))
    torch.library.opcheck(
        torch.ops.tnbench.lightning1.default,
        (*leaves, 0.5, 16, 16),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )

    def call(q, k, v, rate):
        return lightning1(q, k, v, rate, scale=0.5, block=(16, 16))

    results = []
    for f in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        out = f(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
