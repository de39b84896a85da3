"""Run by test_norm_kernels.py in a process with TRITON_INTERPRET=1: the norms' kernels against float64.

Shapes, strides, dtypes, gates, residuals, every configuration.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_processes import poison

from tnbench.kernels.normalisation import add_norm, configurations, launches, norm, triton_op
from tnbench.kernels.normalisation.configurations import OPERATIONS, SUMMING, candidates
from tnbench.kernels.normalisation.rows import Rows

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "srmsnorm": {},
    "rmsnorm": {"weight": True},
    "layernorm": {"weight": True, "bias": True, "centred": True, "eps": 1e-5},
    "gate": {"gate": True},
    "swish": {"gate": True, "activation": "swish"},
    "everything": {"gate": True, "weight": True, "bias": True, "centred": True, "activation": "sigmoid"},
}


def slow(*values: Any) -> list[Any]:
    """Parameters of the slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def tensors(kind: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """The keyword arguments of `norm`, drawn."""
    given = {}
    for name, value in kind.items():
        if name in ("gate", "weight", "bias"):
            value = torch.randn(shape if name == "gate" else shape[-1:]).to(dtype)
        given[name] = value
    return given


def outcome(function, arguments: dict[str, Any], implementation: str) -> list[Tensor]:
    """Results and the gradients in all tensors, for one and the same incoming gradient."""
    leaves = {n: v.detach().requires_grad_() for n, v in arguments.items() if isinstance(v, Tensor)}
    results = function(**{**arguments, **leaves}, implementation=implementation)
    results = results if isinstance(results, tuple) else (results,)
    draw = torch.Generator().manual_seed(1)
    incoming = [torch.randn(r.shape, generator=draw, dtype=torch.float64).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, list(leaves.values()), incoming)]


def exact(function, arguments: dict[str, Any]) -> list[Tensor]:
    """`outcome` by definition in float64."""
    wide = {n: v.double() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    return outcome(function, wide, "reference")


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float = 2e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.detach().double() - b.detach()).norm() <= tolerance * max(float(b.detach().norm()), 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 130), *slow((1, 1), (7, 5), (3, 2, 64), (5, 96))])
def test_against_float64(kind: str, shape: tuple[int, ...]):
    arguments = {"x": torch.randn(shape), **tensors(KINDS[kind], shape, torch.float32)}
    # One column minus its mean is 0 divided by √eps: its gradient is nothing but rounding.
    tolerance = 1.0 if shape == (1, 1) and "centred" in arguments else 2e-6
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments), tolerance)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows count as wider than the registers, and are read in steps of 64."""
    monkeypatch.setattr(launches, "configuration", lambda *a: None)
    monkeypatch.setattr(launches, "WIDE_BLOCK", 64)
    monkeypatch.setattr(launches, "_known", launches.Launches())


@pytest.mark.parametrize("kind", ["everything", *slow("srmsnorm", "gate", "rmsnorm")])
@pytest.mark.usefixtures("wide")
def test_rows_wider_than_registers(kind: str):
    arguments = {"x": torch.randn(5, 150), **tensors(KINDS[kind], (5, 150), torch.float32)}
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments))


@pytest.mark.usefixtures("wide")
def test_residual_of_wide_rows():
    arguments = {"x": torch.randn(3, 150), "residual": torch.randn(3, 150), "weight": torch.randn(150)}
    agree(outcome(add_norm, arguments, "triton"), exact(add_norm, arguments))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swish", "rmsnorm"])
def test_rows_that_are_read_twice_to_save_registers(kind: str):
    arguments = {"x": torch.randn(3, 8200), **tensors(KINDS[kind], (3, 8200), torch.float32)}
    arguments = {n: v.half() if isinstance(v, Tensor) else v for n, v in arguments.items()}
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments), 4e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["srmsnorm", "everything"])
def test_rows_that_are_wide_indeed(kind: str):
    arguments = {"x": torch.randn(2, 33000), **tensors(KINDS[kind], (2, 33000), torch.float32)}
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments))


@pytest.mark.parametrize("kind", ["srmsnorm", *slow("rmsnorm", "layernorm")])
def test_residual(kind: str):
    shape = (5, 48)
    given = tensors(KINDS[kind], shape, torch.float32)
    arguments = {"x": torch.randn(shape), "residual": torch.randn(shape), **given}
    agree(outcome(add_norm, arguments, "triton"), exact(add_norm, arguments))


def test_residual_equals_the_sum_and_its_norm():
    """r' is rounded before it is normed, so that fused and unfused give the same bits."""
    x, residual = torch.randn(4, 40).half(), torch.randn(4, 40).half()
    y, total = add_norm(x, residual, implementation="triton")
    assert torch.equal(total, x + residual)
    assert torch.equal(y, norm(x + residual, implementation="triton"))


@pytest.mark.parametrize("used", ["y", "r'"])
def test_residual_with_one_output_used(used: str):
    found = []
    for implementation in ("triton", "reference"):
        torch.manual_seed(3)
        x, residual = (torch.randn(3, 24).requires_grad_() for _ in range(2))
        y, total = add_norm(x, residual, implementation=implementation)
        weights = torch.randn(3, 24)
        ((y if used == "y" else total) * weights).sum().backward()
        found.append([x.grad, residual.grad])
    agree(found[0], [g.double() for g in found[1]])


def test_mixed_dtypes():
    """A residual stream in fp32 beside a branch in fp16; y straight in fp16."""
    x, residual = torch.randn(3, 24).half().requires_grad_(), torch.randn(3, 24).requires_grad_()
    y, total = add_norm(x, residual, dtype=torch.float16, implementation="triton")
    assert (y.dtype, total.dtype) == (torch.float16, torch.float32)
    dx, dresidual = torch.autograd.grad(
        (y, total), (x, residual), (torch.ones_like(y), torch.ones_like(total))
    )
    assert (dx.dtype, dresidual.dtype) == (torch.float16, torch.float32)
    gated = norm(x.detach(), gate=residual.detach(), implementation="triton")
    assert gated.dtype == torch.float32


@pytest.mark.parametrize("kind", ["srmsnorm", "everything"])
def test_fp16_is_rounded_once(kind: str):
    arguments = {"x": torch.randn(5, 96).half(), **tensors(KINDS[kind], (5, 96), torch.float16)}
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments), 4e-4)


def projection_slices(heads: int) -> tuple[Tensor, Tensor]:
    """Two quarters of a fused projection (2, 5, 4·24), whole or split into heads."""
    parts = torch.randn(2, 5, 96).chunk(4, dim=-1)
    x, gate = parts[1], parts[3]
    return (x, gate) if heads == 1 else (x.unflatten(-1, (heads, -1)), gate.unflatten(-1, (heads, -1)))


@pytest.mark.parametrize(
    "pair",
    [
        projection_slices(1),
        projection_slices(3),
        (torch.randn(2, 3, 5, 8).transpose(1, 2), torch.randn(2, 5, 3, 8)),
        (torch.randn(2, 3, 5, 8).transpose(1, 2), torch.randn(5, 2, 3, 8).transpose(0, 1)),
        (torch.randn(8, 6).t(), torch.randn(6, 8)),
        (torch.randn(1, 8).expand(6, 8), torch.randn(6, 1).expand(6, 8)),
        (torch.randn(7, 9)[1:, 1:], torch.randn(6, 8)),
    ],
    ids=["slices", "heads", "one transposed", "two transposed", "columns", "expanded", "odd start"],
)
def test_strides(pair: tuple[Tensor, Tensor]):
    arguments = {"x": pair[0], "gate": pair[1]}
    found = triton_op.launch_forward(pair[0], None, pair[1])[0]
    agree([found], [norm(pair[0].double(), gate=pair[1].double())])
    agree(outcome(norm, arguments, "triton"), exact(norm, arguments))


def test_parameters_that_are_not_dense():
    x, gate, other = torch.randn(3, 3, 8)
    weight, bias = other[:2, :4].repeat(1, 4)[:, ::2]
    assert (weight.stride(), bias.stride()) == ((2,), (2,))
    for used in ({"weight": weight}, {"weight": weight, "bias": bias, "gate": gate}):
        arguments: dict[str, Any] = {"x": x, **used}
        agree([norm(**arguments, implementation="triton")], [norm(**arguments).double()])
        agree(outcome(norm, arguments, "triton"), exact(norm, arguments))


def test_slices_are_read_in_place():
    x, gate = projection_slices(3)
    where = Rows(x, gate)
    assert where.tensors[0] is x
    assert where.tensors[1] is gate
    assert (where.grouped, where.align) == (True, 8)
    assert where.numbers == (3, *(96 // 8, 8 // 8) * 2)


def test_gradient_of_a_sum():
    """Its incoming gradient is one expanded number."""
    x = torch.randn(4, 16).requires_grad_()
    wide = x.detach().double().requires_grad_()
    found = torch.autograd.grad(norm(x, implementation="triton").sum(), x)
    agree(list(found), list(torch.autograd.grad(norm(wide).sum(), wide)))


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_configuration(operation: str):
    """Tiles that do not divide the rows, one tile a program and persistent grids, all alike."""
    rows, width = 19, 30
    x, other, dy = torch.randn(3, rows, width)
    weight = torch.randn(width) if operation in SUMMING else None
    bias = torch.randn(width) if operation == "affine_backward" else None
    residual, gate = (other if name in operation else None for name in ("add", "gate"))
    expected = None
    for chosen in candidates(operation, 1024):
        chosen = chosen._replace(rows=min(chosen.rows, 8))
        if operation.endswith("backward"):
            found = triton_op.launch_backward(dy, residual, x, gate, weight, bias, chosen=chosen)
        else:
            found = [t for t in triton_op.launch_forward(x, residual, gate, chosen=chosen) if t is not None]
        expected = expected or [t.double() for t in found]
        agree(found, expected)


def test_persistent_programs_take_several_tiles():
    """On the interpreter's one multiprocessor: the sums run through tiles that do not divide the rows."""
    x, dy = torch.randn(2, 19, 30)
    weight = torch.randn(30)
    given = (dy, None, x, None, weight, weight)
    found = triton_op.launch_backward(*given, chosen=configurations.Configuration(2, 4, 3, 2))
    wide = [t.double().requires_grad_() for t in (x, weight, weight)]
    y = norm(wide[0], weight=wide[1], bias=wide[2])
    agree(found, list(torch.autograd.grad(y, wide, dy.double())))


def test_no_rows():
    x = torch.randn(0, 8).requires_grad_()
    weight = torch.randn(8).requires_grad_()
    dx, dweight = torch.autograd.grad(norm(x, weight=weight, implementation="triton").sum(), (x, weight))
    assert dx.shape == (0, 8)
    assert torch.equal(dweight, torch.zeros(8))


def test_calls_past_the_dispatcher_equal_the_operator(monkeypatch: pytest.MonkeyPatch):
    arguments = {"x": torch.randn(3, 24), "gate": torch.randn(3, 24), "weight": torch.randn(24)}
    pair = {"x": torch.randn(3, 24), "residual": torch.randn(3, 24)}
    direct = outcome(norm, arguments, "triton") + outcome(add_norm, pair, "triton")
    monkeypatch.setattr(triton_op, "direct", lambda *a: False)
    for a, b in zip(
        direct, outcome(norm, arguments, "triton") + outcome(add_norm, pair, "triton"), strict=True
    ):
        assert torch.equal(a, b)


def test_gradients_of_gradients_are_refused():
    x = torch.randn(3, 8).requires_grad_()
    (dx,) = torch.autograd.grad(norm(x, implementation="triton").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", slow("aot_eager", "inductor"))
def test_compiles_without_a_break(backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()

    def layer(x, residual, u, weight):
        y, total = add_norm(x, residual, implementation="triton")
        out = norm(y * 2, gate=u, activation="swish", implementation="triton")
        return norm(out + total, weight=weight, implementation="triton")

    values = [torch.randn(4, 3, 16) for _ in range(3)] + [torch.randn(16)]
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        leaves = [v.clone().requires_grad_() for v in values]
        run(*leaves).square().sum().backward()
        found.append([v.grad for v in leaves])
    agree(found[0], [g.double() for g in found[1]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["srmsnorm", "layernorm", "swish"])
def test_operator_contract(kind: str, monkeypatch: pytest.MonkeyPatch):
    """torch's own checks: schema, fake kernel, autograd registration, dynamic shapes."""
    monkeypatch.undo()
    given = tensors(KINDS[kind], (3, 16), torch.float32)
    leaves = {n: v.requires_grad_() if isinstance(v, Tensor) else v for n, v in given.items()}
    x = torch.randn(3, 16).requires_grad_()
    plain = [leaves.get("activation", "none"), leaves.get("centred", False), 1e-6, None]
    torch.library.opcheck(
        torch.ops.tnbench.norm.default, (x, *(leaves.get(n) for n in ("gate", "weight", "bias")), *plain)
    )
    if kind != "swish":
        parameters = (leaves.get("weight"), leaves.get("bias"))
        residual = torch.randn(3, 16).requires_grad_()
        torch.library.opcheck(torch.ops.tnbench.add_norm.default, (x, residual, *parameters, *plain[1:]))
