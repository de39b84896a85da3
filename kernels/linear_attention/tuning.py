"""What the linear attention offers to tnbench.kernels.tune: the problems of its benchmark and the
configurations to try."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tnbench.kernels.devices import machine
from tnbench.kernels.linear_attention import plans
from tnbench.kernels.linear_attention.configurations import Configuration, Launch, Shape, from_json, to_json
from tnbench.kernels.linear_attention.configurations import key as row
from tnbench.kernels.linear_attention.reference import quadratic
from tnbench.kernels.linear_attention.triton_op import _backward, _forward

Case = dict[str, Any]
TOLERANCE = 5e-3  # relative, worst head, bf16


def cases() -> list[Case]:
    """bf16, with geometric slopes, for inference and for training."""
    return [
        {"batch": batch, "heads": heads, "dim": dim, "time": time, "training": training}
        for dim in (128, 64)
        for batch, heads in ((4, 16), (1, 8), (4, 8), (8, 16))
        for time in (8192, 32768, 2048, 1024, 65536)
        for training in (False, True)
        if batch * heads * time <= 1 << 22
    ]


def key(case: Case) -> str:
    capability, processors = machine(torch.cuda.current_device())
    heads = case["batch"] * case["heads"]
    return row(Shape(capability, processors, True, case["dim"], heads, case["time"], case["training"]))


def kind(case: Case) -> Case:
    return {"dim": case["dim"], "training": case["training"]}


def candidates(case: Case) -> list[dict]:
    """Numbers of programs and spans, tiles, stages and ways of loading that are worth a try."""
    capability, processors = machine(torch.cuda.current_device())
    if capability < 90:
        walks = [Launch(64, tile, 4, stages) for tile in (32, 64) for stages in (1, 2)]
        sums = [Launch(64, 64, 4, 2)]
    else:
        deep = Launch(64, 64, 4, 3, tma=True, deep=True)
        walks = [
            deep,
            deep._replace(stages=4),
            Launch(64, 64, 4, 2, tma=True),
            Launch(64, 32, 4, 3, tma=True),
        ]
        walks += [Launch(64, 64, 4, 3), Launch(64, 32, 4, 3)]
        sums = [deep, Launch(128, 64, 8, 3, tma=True, deep=True), Launch(128, 32, 4, 3, tma=True, deep=True)]
        sums += [Launch(64, 32, 4, 3)]
    return [
        to_json(Configuration(waves * processors, spans, summing, walk, walk))
        for walk in walks
        for summing in sums
        for waves in (1, 2, 4)
        for spans in (1, 2, 4)
    ]


def problem(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, do and log λ."""
    torch.manual_seed(0)
    shape = (case["batch"], case["time"], case["heads"], case["dim"])
    q, k, v, do = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    heads = case["heads"]
    return q, k, v, do, -(2.0 ** (-8.0 * torch.arange(1, heads + 1, device="cuda") / heads))


def call(case: Case, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    q, k, v, do, rate = inputs

    def forward() -> tuple[Tensor, ...]:
        return (_forward(q, k, v, rate, None, None, 1.0, False, False, False)[0],)

    def both() -> tuple[Tensor, ...]:
        out, _, ends = _forward(q, k, v, rate, None, None, 1.0, False, False, True)
        return out, *_backward(do, None, q, k, v, rate, None, None, ends, 1.0, False, False, False)[:3]

    return both if case["training"] else forward


def compile(case: Case, candidate: dict) -> None:
    """With and without segments. Raises ArithmeticError if the results are wrong."""
    plans.override = from_json(candidate)
    for time in (200, 1100):
        small = {**case, "batch": 1, "heads": 4, "time": time}
        found = call(small, problem(small))()
        for got, want in zip(found, _wanted(case["dim"], time), strict=False):
            off = _norms(got.double() - want) / _norms(want)
            if not bool((off < TOLERANCE).all()):
                raise ArithmeticError(f"wrong by {off.max().item():.1e}")


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(0, 1, 3))


@lru_cache
def _wanted(dim: int, time: int) -> list[Tensor]:
    case = {"batch": 1, "heads": 4, "dim": dim, "time": time}
    *inputs, do, rate = (x.double() for x in problem(case))
    leaves = [x.requires_grad_() for x in inputs]
    q, k, v = leaves
    out, _ = quadratic(q, k, v, rate)
    return [out.detach(), *torch.autograd.grad(out, leaves, do)]


def calls(case: Case) -> Callable[[dict], Callable[[], tuple[Tensor, ...]]]:
    run = call(case, problem(case))

    def chosen(candidate: dict) -> Callable[[], tuple[Tensor, ...]]:
        plans.override = from_json(candidate)
        return run

    return chosen
