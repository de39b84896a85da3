"""Sampling against distributions by hand."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor

from tnbench.evaluation import sampling
from tnbench.evaluation.sampling import Sampler, distribution

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


FOUR = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        # p² / Σ p², as 1 / 0.5 = 2: 0.25, 0.0625, 0.0225, 0.01 over 0.345
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 1}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.1}, [1, 0, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        # after top-k the first two have 0.75 / 0.9 = 0.83: before it they have 0.75, and 0.8 needs a third
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),
        # after the temperature the first has 0.72 and suffices: before it has 0.5
        ({"temperature": 0.5, "top_p": 0.7}, [1, 0, 0, 0]),
    ],
)
def test_distributions_by_hand(options: dict[str, Any], expected: list[float]):
    shuffled = torch.tensor([2, 0, 3, 1])
    for logits, wanted in ((FOUR, expected), (FOUR[:, shuffled] + 7, [expected[n] for n in shuffled])):
        found = distribution(logits, **options)
        torch.testing.assert_close(found, torch.tensor([wanted]).float(), rtol=1e-5, atol=1e-7)


def test_hard_logits():
    """Ties at the k-th place, −inf, 16 bits, and temperatures at which exponentials would overflow."""
    assert distribution(torch.zeros(1, 5), top_k=2).count_nonzero() == 2
    assert distribution(torch.zeros(1, 5), top_p=0.5).count_nonzero() == 3
    barred = torch.tensor([[0.0, -torch.inf, 0.0]])
    hard: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"temperature": 1e-30}]
    for options in hard:
        assert distribution(barred, **options)[0, 1] == 0
    for temperature in (1e-30, 1e30):
        assert distribution(1000 * FOUR, temperature=temperature).isfinite().all()
    assert distribution(FOUR.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.8}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 2.0, "top_k": 3, "top_p": 0.9}],
)
def test_draws_have_the_distribution(options: dict[str, Any]):
    """Ten draws for each of 500 seeds in a row: the standard error of a frequency is at most 0.007."""
    sample = Sampler(500, **options)
    shares = distribution(FOUR, **options)[0]
    counts = torch.bincount(torch.cat([sample(FOUR.expand(500, -1)) for _ in range(10)]), minlength=4)
    assert (counts / 5000 - shares).abs().max() < 0.03
    assert not counts[shares == 0].any()


def test_seeds_decide_the_draws_and_rows_do_not_meet():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    def draws(seed: int, rows: slice) -> Tensor:
        part = logits[rows]
        sample = Sampler(len(part), seed=seed)
        return torch.stack([sample(part) for _ in range(20)])

    whole = draws(5, slice(3))
    assert torch.equal(whole, draws(5, slice(3)))
    assert torch.equal(whole[:, :1], draws(5, slice(1)))
    assert torch.equal(whole[:, 1:2], draws(6, slice(1, 2)))
    assert not torch.equal(whole, draws(6, slice(3)))


def test_greedy_draws_nothing():
    assert Sampler(2, temperature=0)(FOUR.expand(2, -1).flip(-1)).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature = -1: give 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_k": 0}, "top-k = 0: give at least 1"),
        ({"top_p": 0.0}, "top-p = 0: give a share"),
        ({"top_p": 1.5}, "top-p = 1.5"),
    ],
)
def test_no_such_distribution(options: dict[str, Any], says: str):
    for call in (lambda: Sampler(1, **options), lambda: distribution(FOUR, **options)):
        with pytest.raises(ValueError, match=says):
            call()


def test_the_example_in_the_docstring():
    tried = doctest.testmod(sampling, extraglobs={"torch": torch})
    assert tried.attempted
    assert not tried.failed
