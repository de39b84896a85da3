"""The norms and LRPE on a GPU against float64: dtypes, shapes, strides, table, far positions, graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tnbench.kernels import lrpe, normalisation
from tnbench.kernels.lrpe import configurations as lrpe_configurations
from tnbench.kernels.normalisation import configurations

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

LIMIT = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""Relative error of one rounding of the result, doubled."""

KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "srmsnorm": ({}, ()),
    "gate": ({}, ("gate",)),
    "swish": ({"activation": "swish"}, ("gate",)),
    "rmsnorm": ({}, ("weight",)),
    "layernorm": ({"centred": True}, ("weight", "bias")),
    "everything": ({"centred": True, "activation": "sigmoid"}, ("gate", "weight", "bias")),
}


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel leaves unwritten shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(run: Callable[..., list[Tensor]], tensors: dict[str, Tensor]) -> None:
    """Each result and each gradient of run(implementation, **tensors); twice, for the same bits."""

    def outcome(implementation: str, wide: bool) -> list[Tensor]:
        leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
        used = {n: t.double() if wide else t for n, t in leaves.items()}
        results = run(implementation, **used)
        draw = torch.Generator("cuda").manual_seed(1)
        incoming = [
            torch.randn(r.shape, device="cuda", generator=draw).bfloat16().to(r.dtype) for r in results
        ]
        return [*results, *torch.autograd.grad(results, list(used.values()), incoming)]

    found, again, exact = outcome("triton", False), outcome("triton", False), outcome("reference", True)
    for n, (a, b, c) in enumerate(zip(found, again, exact, strict=True)):
        assert torch.equal(a, b), n
        error = float((a.detach().double() - c.detach()).norm() / c.detach().norm())
        assert error <= LIMIT[a.dtype], (n, error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize(
    "shape", [(513, 3), (77, 7), (1000, 64), (300, 1000), (129, 1536), (65, 4096), (40, 16384), (5, 70001)]
)
def test_norm(shape: tuple[int, int], dtype: torch.dtype, kind: str):
    flags, names = KINDS[kind]
    tensors = {"x": torch.randn(shape, device="cuda").to(dtype)}
    for name in names:
        drawn = torch.randn(shape if name == "gate" else shape[-1:], device="cuda")
        tensors[name] = drawn.to(dtype) if name == "gate" else drawn
    check(lambda how, **t: [normalisation.norm(**t, **flags, implementation=how)], tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(300, 1000), (65, 4096), (3, 40000)])
def test_residual(shape: tuple[int, int], dtype: torch.dtype):
    # Sums that bf16 holds exactly: r' is rounded before the norm in one and not in the other.
    x, residual = (torch.randn(2, *shape, device="cuda") * 8).round().div(8).to(dtype)
    check(
        lambda how, x, residual: list(normalisation.add_norm(x, residual, implementation=how)),
        {"x": x, "residual": residual},
    )


def test_strides():
    projection = torch.randn(3, 70, 4 * 768, device="cuda").bfloat16()
    x, gate = projection.chunk(4, dim=-1)[1::2]

    def gated(how: str, x: Tensor, gate: Tensor) -> list[Tensor]:
        return [normalisation.norm(x, gate=gate, activation="swish", implementation=how)]

    for a, b in (
        (x, gate),
        (x.unflatten(-1, (12, 64)), gate.unflatten(-1, (12, 64))),
        (x[..., 1:], gate[..., :-1]),
        (x.transpose(0, 1), gate.contiguous().transpose(0, 1)),
    ):
        check(gated, {"x": a, "gate": b})


@pytest.mark.parametrize("name", [n for n in configurations.tuned() if n.startswith("sm_90")])
def test_every_row_of_the_table(name: str):
    from tnbench.kernels.normalisation import tuning

    _, operation, width = name.split()
    tuning.compile({"operation": operation, "width": int(width)}, configurations.tuned()[name])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_configuration_of_lrpe(direction: str):
    from tnbench.kernels.lrpe import tuning

    for chosen in lrpe_configurations.candidates(direction):
        tuning.compile({"direction": direction}, chosen._asdict())


@pytest.mark.slow
@pytest.mark.parametrize("operation", configurations.OPERATIONS)
@pytest.mark.parametrize("width", [1024, 4096, 16384])
def test_every_configuration(operation: str, width: int):
    from triton.runtime.errors import OutOfResources

    from tnbench.kernels.normalisation import tuning

    for chosen in configurations.candidates(operation, width):
        # A pipeline deeper than the shared memory is passed over when tuning, too.
        with contextlib.suppress(OutOfResources):
            tuning.compile({"operation": operation, "width": width}, chosen._asdict())


def test_more_elements_than_31_bits():
    x = torch.empty(140_000, 16384, device="cuda", dtype=torch.bfloat16)
    x[-64:].normal_()
    y = normalisation.norm(x)[-64:]
    exact = normalisation.norm(x[-64:].double(), implementation="reference")
    assert (y.double() - exact).norm() <= LIMIT[torch.bfloat16] * exact.norm()


@pytest.mark.parametrize("form", lrpe.FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("heads", "dim", "start", "shared"),
    [(8, 128, 0, False), (5, 96, 1000, False), (4, 64, 100_000, True), (3, 18, 7, False)],
)
def test_lrpe(form: str, dtype: torch.dtype, heads: int, dim: int, start: int, shared: bool):
    """At a hundred thousand, a phase in plain fp32 would be off by 4e-3."""
    theta = torch.rand(1 if shared else heads, dim if form == "cosine" else dim // 2, device="cuda")
    projection = torch.randn(2, 333, 4 * heads * dim, device="cuda").to(dtype)
    q, k = (p.unflatten(-1, (heads, dim)) for p in projection.chunk(4, dim=-1)[:2])

    def run(how: str, q: Tensor, k: Tensor, theta: Tensor) -> list[Tensor]:
        return list(lrpe.rotate(q, k, theta, start=start, form=form, implementation=how))

    check(run, {"q": q, "k": k, "theta": theta})


def test_compiled_and_captured():
    """torch.compile without a break, and a CUDA graph with the same bits."""
    torch.use_deterministic_algorithms(False)
    x, r, u = (torch.randn(256, 1024, device="cuda").bfloat16().requires_grad_() for _ in range(3))

    def layer(x: Tensor, r: Tensor, u: Tensor) -> Tensor:
        y, total = normalisation.add_norm(x, r)
        return normalisation.norm(y, gate=u) + total

    eager, compiled = (
        torch.autograd.grad(f(x, r, u).sum(), (x, r, u))
        for f in (layer, torch.compile(layer, fullgraph=True))
    )
    for a, b in zip(eager, compiled, strict=True):
        assert (a.double() - b.double()).norm() <= 8e-3 * b.double().norm()
    with torch.no_grad():
        expected = layer(x, r, u)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x, r, u)
        y.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu_has_kernels_of_its_own():
    """In calls of the same shapes as the first one's."""
    found = []
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(0)
        x, weight = torch.randn(300, 1024), torch.rand(1024)
        leaves = [t.to(device).requires_grad_() for t in (x, weight)]
        y = normalisation.norm(leaves[0], weight=leaves[1])
        found.append([g.cpu() for g in torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("norm", ["srmsnorm", "rmsnorm", "layernorm"])
def test_modules_use_the_kernels(norm: str):
    """The model's norms on the GPU agree with themselves on the CPU, gated and not."""
    from tnbench import registry
    from tnbench.model.norms import gated

    module = registry.find("norm", norm).target(96)
    x, u = torch.randn(2, 5, 96), torch.randn(2, 5, 96)
    expected = [module(x), gated(module, x, u, "swish")]
    module = module.cuda()
    found = [module(x.cuda()), gated(module, x.cuda(), u.cuda(), "swish")]
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b).norm() <= 1e-6 * b.norm()
