"""Run by test_norm_kernels.py in a process with TRITON_INTERPRET=1: LRPE's kernels against float64.

Forms, head dims, strides, positions, every configuration.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from triton_processes import poison

from tnbench.kernels.lrpe import rotate, triton_op
from tnbench.kernels.lrpe.configurations import Configuration, candidates, configuration

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def outcome(
    projection: Tensor, theta: Tensor, heads: int, form: str, start: int, implementation: str
) -> list[Tensor]:
    """q', k' and the gradients in the fused projection (batch, time, 4 · width) and θ."""
    projection, theta = projection.detach().requires_grad_(), theta.detach().requires_grad_()
    q, k = (part.unflatten(-1, (heads, -1)) for part in projection.chunk(4, dim=-1)[:2])
    out = rotate(q, k, theta, start=start, form=form, implementation=implementation)
    draw = torch.Generator().manual_seed(1)
    incoming = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in out]
    return [*out, *torch.autograd.grad(out, (projection, theta), incoming)]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float = 3e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm()


def angles(heads: int, dim: int, form: str) -> Tensor:
    count = dim if form == "cosine" else dim // 2
    return 10000 ** (-torch.arange(heads * count).view(heads, count) / (heads * count))


@pytest.mark.parametrize("form", ["cosine", "rotation"])
@pytest.mark.parametrize("shared", [False, True], ids=["per head", "shared"])
@pytest.mark.parametrize(
    ("batch", "time", "heads", "dim"),
    [
        (2, 5, 3, 8),
        pytest.param(1, 1, 1, 2, marks=pytest.mark.slow),
        pytest.param(1, 9, 2, 96, marks=pytest.mark.slow),
        pytest.param(3, 7, 5, 6, marks=pytest.mark.slow),
    ],
)
def test_against_float64(form: str, shared: bool, batch: int, time: int, heads: int, dim: int):
    theta = angles(1 if shared else heads, dim, form)
    projection = torch.randn(batch, time, 4 * heads * dim)
    found = outcome(projection, theta, heads, form, 11, "triton")
    agree(found, outcome(projection.double(), theta.double(), heads, form, 11, "reference"))


@pytest.mark.parametrize("form", ["cosine", "rotation"])
def test_fp16_is_rounded_once(form: str):
    theta, projection = angles(2, 16, form), torch.randn(2, 6, 4 * 32).half()
    found = outcome(projection, theta, 2, form, 0, "triton")
    agree(found, outcome(projection.double(), theta.double(), 2, form, 0, "reference"), 4e-4)


def test_angles_that_are_not_learned():
    q, k = (torch.randn(2, 5, 3, 8).requires_grad_() for _ in range(2))
    theta = angles(1, 8, "rotation")
    out = rotate(q, k, theta, form="rotation", implementation="triton")
    found = torch.autograd.grad(out, (q, k), [torch.ones_like(x) for x in out])
    wide = [x.detach().double().requires_grad_() for x in (q, k)]
    out = rotate(wide[0], wide[1], theta.double(), form="rotation")
    agree(list(found), list(torch.autograd.grad(out, wide, [torch.ones_like(x) for x in out])))


def test_strides():
    """(batch, heads, time, dim) seen through a transpose, and a last dimension that is not dense."""
    q, k = torch.randn(2, 3, 5, 8).transpose(1, 2), torch.randn(2, 5, 3, 16)[..., ::2]
    theta = angles(3, 8, "cosine")
    agree(
        list(rotate(q, k, theta, implementation="triton")),
        list(rotate(q.double(), k.double(), theta.double())),
    )


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_configuration(direction: str):
    q, k, dq, dk = torch.randn(4, 2, 7, 2, 24)
    theta = angles(2, 24, "rotation")
    expected = None
    for chosen in candidates(direction):
        if direction == "forward":
            found = list(triton_op.launch_forward(q, k, theta, 3, "rotation", chosen))
        else:
            found = triton_op.launch_backward(dq, dk, q, k, theta, 3, "rotation", True, chosen)
        expected = expected or [t.double() for t in found]
        agree(found, expected)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_tiles_of_several_tokens(direction: str):
    """Later tokens of a tile are turned on from the first; the last tile of a sequence is not full."""
    q, k, dq, dk = torch.randn(4, 2, 7, 2, 24)
    theta = angles(2, 24, "rotation")
    chosen = Configuration(4, 16, 1, 3)
    if direction == "forward":
        found = list(triton_op.launch_forward(q, k, theta, 3, "rotation", chosen))
        expected = list(rotate(q.double(), k.double(), theta.double(), start=3, form="rotation"))
    else:
        found = triton_op.launch_backward(dq, dk, q, k, theta, 3, "rotation", True, chosen)
        wide = [x.double().requires_grad_() for x in (q, k, theta)]
        out = rotate(*wide, start=3, form="rotation")
        expected = list(torch.autograd.grad(out, wide, [dq.double(), dk.double()]))
    agree(found, expected)


def test_gradients_of_gradients_are_refused():
    q = torch.randn(1, 3, 2, 8).requires_grad_()
    out, _ = rotate(q, q, angles(2, 8, "cosine"), implementation="triton")
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        dq.sum().backward()


def test_tiles_narrow_with_channels_and_tokens():
    assert configuration("forward", 40, 9, "none")[1:3] == (64, 1)
    assert configuration("backward", 1024, 3, "none")[:2] == (4, 1024)
    assert configuration("backward", 1024, 1, "none").steps == 1


def test_segments_fit_together():
    q, k = torch.randn(2, 1, 9, 2, 8)
    theta = angles(2, 8, "cosine")
    whole = rotate(q, k, theta, implementation="triton")
    parts = [
        rotate(x, y, theta, start=s, implementation="triton")
        for x, y, s in ((q[:, :4], k[:, :4], 0), (q[:, 4:], k[:, 4:], 4))
    ]
    for n in range(2):
        assert torch.equal(whole[n], torch.cat([parts[0][n], parts[1][n]], dim=1))


def test_quarter_turns():
    """θ = π/2: cos nθ = 1, 0, −1, 0, … and sin nθ = 0, 1, 0, −1, …"""
    one = torch.ones(1, 8, 1, 1)
    q, _ = rotate(one, one, torch.tensor([[math.pi / 2]]), implementation="triton")
    expected = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]] * 2).view(1, 8, 1, 2).float()
    assert (q - expected).abs().max() < 2e-6


def test_nothing_to_turn():
    q = torch.randn(2, 0, 3, 8).requires_grad_()
    theta = angles(3, 8, "cosine").requires_grad_()
    out = rotate(q, q, theta, implementation="triton")
    (dtheta,) = torch.autograd.grad(out[0].sum() + out[1].sum(), theta)
    assert torch.equal(dtheta, torch.zeros(3, 8))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    theta, projection = angles(2, 8, "cosine"), torch.randn(2, 5, 64)

    def scores(projection, theta, start):
        q, k = (part.unflatten(-1, (2, -1)) for part in projection.chunk(4, dim=-1)[:2])
        q, k = rotate(q, k, theta, start=start, implementation="triton")
        return (q * k).sum(-1).square().sum()

    compiled = torch.compile(scores, fullgraph=True, backend=backend)
    for start in (0, 5, 6):
        found = []
        for run in (scores, compiled):
            leaves = [projection.clone().requires_grad_(), theta.clone().requires_grad_()]
            run(leaves[0], leaves[1], start).backward()
            found.append([x.grad for x in leaves])
        # The scores do not depend on start, so that θ's gradient is what is left of large sums.
        agree([found[0][0]], [found[1][0].double()])
        assert (found[0][1] - found[1][1]).abs().max() < 1e-3


@pytest.mark.slow
def test_operator_contract(monkeypatch: pytest.MonkeyPatch):
    """torch's own checks: schema, fake kernel, autograd registration, dynamic shapes."""
    monkeypatch.undo()
    q, k = (torch.randn(2, 4, 3, 8).requires_grad_() for _ in range(2))
    for learned in (True, False):
        theta = angles(3, 8, "cosine").requires_grad_(learned)
        torch.library.opcheck(torch.ops.tnbench.lrpe.default, (q, k, theta, 2, "cosine"))
