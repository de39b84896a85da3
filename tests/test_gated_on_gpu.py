"""Gated linear attention as one operator on a GPU: against its parts, in float64, in memory, compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tnbench.kernels.gated_linear_attention import MAPS, Norm, gated_linear_attention
from tnbench.kernels.linear_attention import linear_attention
from tnbench.kernels.normalisation import norm as apply_norm
from tnbench.model.mixers.linear import FUSED

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PHI = {name: kind() for kind, name in FUSED.items()}
RATES = torch.tensor([-1.0, -0.1, -0.01, 0.0])


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel leaves unwritten shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def parts(x: Tensor, rates: Tensor, weight: Tensor | None, feature_map: str, per_head: bool, form: str):
    """By single operators: `form` is the implementation of linear attention and of the norm."""
    q, k, v, u = (part.unflatten(-1, (len(RATES), -1)) for part in x.chunk(4, -1))
    phi = PHI[feature_map]
    out, _ = linear_attention(phi(q), phi(k), v, rates, implementation=form)
    if not per_head:
        out, u = out.flatten(-2), u.flatten(-2)
    y = apply_norm(out, gate=u, weight=weight, implementation="triton" if form == "triton" else "reference")
    return y.flatten(-2) if per_head else y


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    dy = torch.randn(y.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).bfloat16()
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("dim", "time"), [(128, 2048), (64, 333), (96, 100)])
def test_against_float64(feature_map: str, dtype: torch.dtype, dim: int, time: int):
    """At most 1.5 times the error of its parts, one by one; the same bits twice."""
    per_head = dim == 64
    torch.set_float32_matmul_precision("highest")
    x = torch.randn(2, time, 4 * len(RATES) * dim, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn(dim, device="cuda").requires_grad_() if per_head else None
    leaves = [x] if weight is None else [x, weight]

    def whole() -> Tensor:
        return gated_linear_attention(
            x, RATES.cuda(), heads=len(RATES), feature_map=feature_map, norm=Norm(weight), per_head=per_head
        )

    found, again = (gradients(whole(), leaves) for _ in range(2))
    apart = gradients(parts(x, RATES.cuda(), weight, feature_map, per_head, "triton"), leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = gradients(
        parts(
            wide[0], RATES.cuda().double(), wide[1] if per_head else None, feature_map, per_head, "chunked"
        ),
        wide,
    )
    for a, b, c, e in zip(found, again, apart, exact, strict=True):
        assert torch.equal(a, b)
        errors = [float((t.double() - e).norm() / e.norm()) for t in (a, c)]
        assert errors[0] <= 1.5 * errors[1] + 1e-7, errors


def test_learned_decays():
    x = torch.randn(2, 500, 4 * len(RATES) * 64, device="cuda").bfloat16().requires_grad_()
    rates = RATES.cuda().requires_grad_()
    found = gradients(gated_linear_attention(x, rates, heads=len(RATES)), [x, rates])
    wide = [x.detach().double().requires_grad_(), rates.detach().double().requires_grad_()]
    exact = gradients(parts(wide[0], wide[1], None, "swish", False, "chunked"), wide)
    for a, e in zip(found, exact, strict=True):
        assert float((a.double() - e).norm() / e.norm()) < 0.01


def test_compiled_and_less_memory():
    """One graph, the same numbers; what is kept is the projection and O."""
    x = torch.randn(4, 4096, 4 * len(RATES) * 128, device="cuda").bfloat16().requires_grad_()

    def whole(x: Tensor) -> Tensor:
        return gated_linear_attention(x, RATES.cuda(), heads=len(RATES))

    eager = gradients(whole(x), [x])
    for a, b in zip(eager, gradients(torch.compile(whole, fullgraph=True)(x), [x]), strict=True):
        assert torch.equal(a, b)
    del a, b, eager
    held = []
    for call in (whole, lambda x: parts(x, RATES.cuda(), None, "swish", False, "triton")):
        before = torch.cuda.memory_allocated()
        y = call(x)
        held.append(torch.cuda.memory_allocated() - before)
        del y
    assert held[0] <= x.nbytes // 2 + x.nbytes // 8 + (1 << 20)  # y, O and the states between spans
    assert held[1] >= held[0] + x.nbytes // 2  # φ(q) and φ(k)
