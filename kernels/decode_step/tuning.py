"""What the decode step offers to tnbench.kernels.tune: states that fill the card and states that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tnbench.kernels.decode_step import configurations, decode_step, triton_op
from tnbench.kernels.decode_step.configurations import FULL, Configuration
from tnbench.kernels.devices import machine
from tnbench.kernels.tune import require_right

Case = dict[str, Any]


def cases() -> list[Case]:
    """φ and LRPE in the rotation form, bf16, square states (of 256 rows: 128 columns, the cosine form's)."""
    return [
        {"batch": batch, "heads": 16, "rows": rows, "columns": min(rows, 128)}
        for rows in (128, 64, 256, 32, 512)
        for batch in (256, 64, 1, 8)
    ]


def key(case: Case) -> str:
    device = machine(torch.cuda.current_device())
    size = 4 * case["batch"] * case["heads"] * case["rows"] * case["columns"]
    return configurations.key(case["rows"], size >= FULL * device.processors, device.architecture)


def kind(case: Case) -> Case:
    return {"rows": case["rows"]}


def candidates(case: Case) -> list[dict[str, int]]:
    return [c._asdict() for c in configurations.candidates(case["rows"])]


def problem(batch: int, heads: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """q, k, v, log λ, the state, θ, positions."""
    torch.manual_seed(0)
    q, k = torch.randn(2, batch, heads, rows, device="cuda", dtype=torch.bfloat16)
    v = torch.randn(batch, heads, columns, device="cuda", dtype=torch.bfloat16)
    state = torch.randn(batch, heads, rows, columns, device="cuda")
    theta, rate = torch.rand(heads, rows // 2, device="cuda"), -torch.rand(heads, device="cuda")
    return q, k, v, rate, state, theta, torch.arange(batch, device="cuda", dtype=torch.int32)


def call(given: tuple[Tensor, ...], chosen: Configuration | None) -> Callable[[], Tensor]:
    """The Triton kernel with a configuration, or the definition in float64."""
    q, k, v, rate, state, theta, position = given
    form = "reference" if chosen is None else "triton"

    def run() -> Tensor:
        triton_op.override = chosen
        try:
            return decode_step(
                q, k, v, rate, state, feature_map="swish", theta=theta, position=position, form="rotation",
                implementation=form,
            )  # fmt: skip
        finally:
            triton_op.override = None

    return run


def compile(case: Case, candidate: dict[str, int]) -> None:
    """On few states. Raises ArithmeticError if the results are wrong."""
    given = problem(2, 3, case["rows"], case["columns"])
    found = call(given, Configuration(**candidate))(), given[4]
    require_right(found, _wanted(case["rows"], case["columns"]))


@lru_cache(1)
def _wanted(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    *exact, position = problem(2, 3, rows, columns)
    exact = (*(x.double() for x in exact), position)
    return call(exact, None)(), exact[4]


def calls(case: Case) -> Callable[[dict[str, int]], Callable[[], Tensor]]:
    given = problem(case["batch"], case["heads"], case["rows"], case["columns"])
    return lambda candidate: call(given, Configuration(**candidate))
