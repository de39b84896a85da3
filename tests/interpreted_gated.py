"""Run by test_gated_kernels.py in a process with TRITON_INTERPRET=1: gated linear attention against its
parts in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_processes import poison

from tnbench.kernels.gated_linear_attention import MAPS, Norm, gated_linear_attention, triton_op
from tnbench.kernels.linear_attention import linear_attention
from tnbench.kernels.linear_attention.plans import Plan
from tnbench.kernels.normalisation import norm as apply_norm
from tnbench.model.decays import OfficialDecay
from tnbench.model.feature_maps import Swish
from tnbench.model.mixers.base import Parts
from tnbench.model.mixers.linear import FUSED, GatedLinearAttention
from tnbench.model.norms import LayerNorm

torch.set_num_threads(1)

PHI = {name: kind() for kind, name in FUSED.items()}
NORMS: dict[str, dict[str, Any]] = {
    "srmsnorm": {},
    "rmsnorm": {"weight": True},
    "layernorm": {"weight": True, "bias": True, "centred": True, "eps": 1e-5},
}


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    poison(monkeypatch)


def parts(
    projected: Tensor, log_decay: Tensor | None, heads: int, feature_map: str, norm: Norm, per_head: bool,
    activation: str, scale: float,
) -> Tensor:  # fmt: skip
    """The operator by its parts in plain torch."""
    q, k, v, u = (part.unflatten(-1, (heads, -1)) for part in projected.chunk(4, -1))
    phi = PHI[feature_map]
    out, _ = linear_attention(phi(q), phi(k), v, log_decay, scale=scale, implementation="quadratic")
    if not per_head:
        out, u = out.flatten(-2), u.flatten(-2)
    y = apply_norm(
        out, gate=u, weight=norm.weight, bias=norm.bias, centred=norm.centred, eps=norm.eps,
        activation=activation, implementation="reference",
    )  # fmt: skip
    return y if not per_head else y.flatten(-2)


def compare(
    *, batch: int = 2, time: int = 40, heads: int = 2, dim: int = 16, feature_map: str = "swish",
    norm: str = "srmsnorm", per_head: bool = False, activation: str = "none", learned: bool = False,
    decayed: bool = True, scale: float = 1.0, operator: bool = False,
) -> None:  # fmt: skip
    width = heads * dim
    projected = torch.randn(batch, time, 4 * width)
    rates = torch.tensor([-0.02 * 4**h for h in range(heads)]) if decayed else None
    kind = dict(NORMS[norm])
    size = dim if per_head else width
    weights = {name: torch.randn(size) for name in ("weight", "bias") if kind.pop(name, False)}
    dy = torch.randn(batch, time, width)

    def outcome(dtype: torch.dtype, function: Any) -> list[Tensor]:
        leaves = [projected.to(dtype).requires_grad_()]
        given = {name: w.to(dtype).requires_grad_() for name, w in weights.items()}
        decay = None if rates is None else rates.to(dtype).requires_grad_(learned)
        leaves += [decay] if decay is not None and learned else []
        leaves += list(given.values())
        y = function(leaves[0], decay, Norm(**given, **kind))
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(dtype))]

    def ours(x: Tensor, decay: Tensor | None, norm: Norm) -> Tensor:
        if operator:
            options = (heads, feature_map, scale, norm.centred, norm.eps, per_head, activation)
            return torch.ops.tnbench.gated_linear_attention(x, decay, norm.weight, norm.bias, *options, True)[
                0
            ]
        return gated_linear_attention(
            x, decay, heads=heads, feature_map=feature_map, scale=scale, norm=norm, per_head=per_head,
            activation=activation,
        )  # fmt: skip

    def exact(x: Tensor, decay: Tensor | None, norm: Norm) -> Tensor:
        return parts(x, decay, heads, feature_map, norm, per_head, activation, scale)

    for a, b in zip(outcome(torch.float32, ours), outcome(torch.float64, exact), strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm() / b.norm()) < 2e-5


def slow(*values: Any) -> list[Any]:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("feature_map", ["swish", *slow(*(name for name in MAPS if name != "swish"))])
def test_feature_maps(feature_map: str):
    compare(feature_map=feature_map)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per_head", [True, False])
def test_norms_and_gates(norm: str, per_head: bool):
    compare(norm=norm, per_head=per_head, activation="swish", feature_map="none")


@pytest.mark.parametrize("time", [1, *slow(63, 300)])
def test_lengths(time: int):
    compare(time=time, dim=24, scale=0.5)


@pytest.mark.slow
def test_decays():
    compare(learned=True)
    compare(decayed=False, time=40)


def test_operator_is_the_function():
    compare(operator=True, learned=True, norm="rmsnorm")


def test_no_gradient_no_memory():
    x = torch.randn(1, 40, 4 * 32)
    with torch.no_grad():
        y = gated_linear_attention(x, None, heads=2)
    assert not y.requires_grad
    z = gated_linear_attention(x.requires_grad_(), None, heads=2)
    assert torch.equal(y, z)
    (again,) = torch.autograd.grad(z.sum(), x, create_graph=False)
    assert torch.isfinite(again).all()


def test_second_derivatives_are_refused():
    x = torch.randn(1, 40, 4 * 32).requires_grad_()
    y = gated_linear_attention(x, None, heads=2)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def mixer(implementation: str, inner_norm: Any = LayerNorm) -> GatedLinearAttention:
    torch.manual_seed(1)
    parts = Parts(
        decay=OfficialDecay(2, 0, 2), feature_map=Swish(), inner_norm=inner_norm, gate=True,
        implementation=implementation,
    )  # fmt: skip
    return GatedLinearAttention(32, 2, parts)


def gradients(call: Any, model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def test_the_mixer_takes_it(monkeypatch: pytest.MonkeyPatch):
    """Its parts one by one give the same; compiled, it is one graph."""
    x = torch.randn(1, 20, 32)
    apart = mixer("chunked")
    expected = gradients(apart, apart, x)
    whole = mixer("auto")
    calls = []
    launch = triton_op.forward
    monkeypatch.setattr(triton_op, "forward", lambda *a, **k: calls.append(1) or launch(*a, **k))
    for call in (whole, torch.compile(whole, fullgraph=True, backend="aot_eager")):
        for a, b in zip(gradients(call, whole, x), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.slow
def test_operator_keeps_the_rules_of_operators():
    x = torch.randn(1, 20, 4 * 32).requires_grad_()
    rates, weight = torch.tensor([-0.1, -0.2]).requires_grad_(), torch.randn(16).requires_grad_()
    options = (2, "swish", 1.0, False, 1e-6, True, "none")
    torch.library.opcheck(
        torch.ops.tnbench.gated_linear_attention.default, (x, rates, weight, None, *options, True)
    )


def test_one_launch_of_a_plan_serves_one_set_of_strides(monkeypatch: pytest.MonkeyPatch):
    """A GPU calls a kept launch again with new addresses alone: the strides of all its tensors must be those
    of the first call."""
    seen: dict[tuple, list] = {}
    launch = Plan._launch

    def recorded(self: Plan, name: str, strided: tuple, others: tuple, scale: float, reverse: bool = False):
        key = (id(self), name, reverse, scale, strided[-1].stride(), *(x is None for x in others))
        assert seen.setdefault(key, [x.stride() for x in strided]) == [x.stride() for x in strided], name
        launch(self, name, strided, others, scale, reverse)

    monkeypatch.setattr(Plan, "_launch", recorded)
    rates = torch.tensor([-0.1, 0.0])
    for feature_map in ("none", "none", "swish", "none", "relu"):
        x = torch.randn(1, 66, 4 * 32, requires_grad=True)
        gated_linear_attention(x, rates, heads=2, feature_map=feature_map).sum().backward()
    assert {name for _, name, *_ in seen} >= {"outputs", "gradients"}
