"""The chunked cross entropy against float64: values, gradients, chunks, dtypes; which form is taken."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tnbench.errors import RequestError
from tnbench.resolution import resolve
from tnbench.training import losses
from tnbench.training.environment import require_device
from tnbench.training.losses import chunked_cross_entropy

TOKENS, WIDTH, VOCABULARY = 13, 24, 101
TARGETS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(1))
TARGETS[0], TARGETS[-1] = 0, VOCABULARY - 1


def in_chunks(hidden: Tensor, weight: Tensor) -> Tensor:
    return chunked_cross_entropy(hidden, weight, TARGETS, rows=5)


def operands(dtype: torch.dtype = torch.float64, weight: torch.dtype | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    hidden, matrix = torch.randn(TOKENS, WIDTH) / 3, torch.randn(VOCABULARY, WIDTH)
    return [hidden.to(dtype).requires_grad_(), matrix.to(weight or dtype).requires_grad_()]


def outcome(loss: Any, leaves: list[Tensor]) -> list[Tensor]:
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, torch.tensor(0.7, dtype=value.dtype))]


def exact(leaves: list[Tensor]) -> list[Tensor]:
    """By torch's own cross entropy, in float64, of the very same values."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    return outcome(lambda hidden, weight: F.cross_entropy(hidden @ weight.T, TARGETS), wide)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 4, TOKENS - 1, TOKENS, 100])
@pytest.mark.parametrize(
    ("dtype", "weight", "limit"),
    [
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 6e-3),
        (torch.bfloat16, torch.bfloat16, 6e-3),
    ],
)
def test_loss_and_gradients(rows: int, dtype: torch.dtype, weight: torch.dtype, limit: float) -> None:
    leaves = operands(dtype, weight)
    found = outcome(lambda h, w: chunked_cross_entropy(h, w, TARGETS, rows=rows), leaves)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [gradient.dtype for gradient in found[1:]] == [dtype, weight]
    rounded = exact([leaf.detach().to(dtype) for leaf in leaves])
    assert all(distance(a, b) <= limit for a, b in zip(found, rounded, strict=True))


def test_weight_gradient_is_summed_in_fp32() -> None:
    """Many chunks in bf16: summed in bf16, small parts would be lost beside what is there."""
    torch.manual_seed(0)
    hidden = torch.randn(2048, 8).bfloat16()
    weight, aims = torch.zeros(5, 8, requires_grad=True), torch.zeros(2048, dtype=torch.long)
    (found,) = torch.autograd.grad(chunked_cross_entropy(hidden, weight, aims, rows=8), weight)
    wide = weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(hidden.double() @ wide.T, aims), wide)
    assert distance(found, expected) < 3e-3  # probabilities of 1/5 are rounded to bf16: 2^-9 at most


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight = torch.full((3, 1), 200.0), torch.tensor([[1.0], [2.0], [-3.0]])
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]))
    assert loss.item() == pytest.approx((200 + 0 + 1000) / 3)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(
        in_chunks,
        tuple(leaf.detach()[:, :4].clone().requires_grad_() for leaf in operands()),
    )


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_well_formed(dtype: torch.dtype, gradients: bool) -> None:
    hidden, weight = (x.detach().requires_grad_(gradients) for x in operands(dtype, torch.float32))
    torch.library.opcheck(torch.ops.tnbench.linear_cross_entropy, (hidden, weight, TARGETS, 5, gradients))


def test_compiled_without_graph_breaks() -> None:
    leaves = operands(torch.float32)
    found = outcome(torch.compile(in_chunks, fullgraph=True, backend="aot_eager"), leaves)
    plain = outcome(in_chunks, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.slow
def test_compiled_elementwise_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, by the CPU's compiler, alone and within a compiled function."""
    plain = outcome(in_chunks, operands(torch.float32))
    monkeypatch.setattr(losses, "_cross_entropy", losses._compiled())
    for form in (in_chunks, torch.compile(in_chunks, fullgraph=True)):
        found = outcome(form, operands(torch.float32))
        assert all(distance(a, b.double()) < 1e-6 for a, b in zip(found, plain, strict=True))


def test_one_chunk_of_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    linear = F.linear

    def watched(*given: Tensor) -> Tensor:
        assert not any(logits() is not None for logits in made)
        out = linear(*given)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(losses.F, "linear", watched)
    in_chunks(*operands(torch.float32))
    assert len(made) == 3


def test_only_wanted_gradients_are_computed() -> None:
    """6 t · width · vocabulary FLOPs with gradients, a third without."""
    product = 2 * TOKENS * WIDTH * VOCABULARY
    hidden, weight = operands(torch.float32)
    for context, expected in ((torch.enable_grad(), 3 * product), (torch.no_grad(), product)):
        with context, FlopCounterMode(display=False) as counter:
            chunked_cross_entropy(hidden, weight, TARGETS)
        assert counter.get_total_flops() == expected


def test_second_derivatives_are_refused() -> None:
    hidden, weight = operands()
    (first,) = torch.autograd.grad(in_chunks(hidden, weight), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_shapes_that_do_not_fit() -> None:
    hidden, weight = operands()
    with pytest.raises(ValueError, match=r"targets \(…\), got \(13, 24\), \(101, 24\), \(12,\)"):
        chunked_cross_entropy(hidden, weight, TARGETS[1:])


def test_chunks_are_few_equal_and_bounded() -> None:
    for tokens, vocabulary in ((32768, 50272), (131072, 50272), (5, 7), (1000, 2**28), (32768, 128256)):
        rows = losses.chunk_rows(tokens, vocabulary)
        chunks = -(-tokens // rows)
        assert rows % losses.ROWS == 0
        assert (rows - losses.ROWS) * vocabulary < losses.LARGEST
        assert chunks <= -(-tokens * vocabulary // losses.LARGEST)


# which form


def training(**keys: Any) -> Any:
    return resolve({"training.steps": 1, **{f"training.{k}": v for k, v in keys.items()}}).training


def test_auto_follows_from_the_configuration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: name)  # Liger seems to be installed
    large = {"batch_tokens": 32768}
    assert losses.form(training(**large), 50272) == "logits"
    assert losses.form(training(**large, device="cuda"), 50272) == "chunked"
    assert losses.form(training(**large, device="cuda", micro_batch_tokens=1024), 50272) == "logits"
    assert losses.form(training(**large, device="cuda"), 256) == "logits"
    for name in ("logits", "chunked", "liger"):
        assert losses.form(training(**large, loss=name), 50272) == name


def test_loss_is_part_of_the_run() -> None:
    configs = [resolve({"training.steps": 1, "training.loss": name}) for name in ("logits", "chunked")]
    assert configs[0].identity() != configs[1].identity()


def test_liger_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"need a GPU; set training\.loss=chunked"):
        require_device(resolve({"training.steps": 1, "training.loss": "liger"}))
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install"):
        losses.require(training(loss="liger", device="cuda"))
