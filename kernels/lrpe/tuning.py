"""What LRPE offers to tnbench.kernels.tune: both directions of the cosine form with learned angles."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tnbench.kernels.devices import machine
from tnbench.kernels.lrpe import configurations, reference, triton_op
from tnbench.kernels.lrpe.configurations import Configuration
from tnbench.kernels.tune import require_right

Case = dict[str, Any]
HEAD_DIM = 128


def cases() -> list[Case]:
    """bf16, slices of a fused projection."""
    return [
        {"direction": direction, "batch": batch, "time": 4096, "heads": heads}
        for direction in ("forward", "backward")
        for batch, heads in ((4, 8), (1, 8), (4, 16), (16, 8))
    ]


def key(case: Case) -> str:
    return f"{machine(torch.cuda.current_device()).architecture} {case['direction']}"


def kind(case: Case) -> Case:
    return {"direction": case["direction"]}


def candidates(case: Case) -> list[dict[str, int]]:
    return [c._asdict() for c in configurations.candidates(case["direction"])]


def problem(batch: int, time: int, heads: int) -> tuple[Tensor, ...]:
    """q, k, θ, dq', dk'."""
    torch.manual_seed(0)
    projection = torch.randn(batch, time, 4 * heads * HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    q, k = (x.unflatten(-1, (heads, HEAD_DIM)) for x in projection.chunk(4, dim=-1)[:2])
    dq, dk = torch.randn(2, batch, time, heads, 2 * HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    channel = torch.arange(heads * HEAD_DIM, device="cuda", dtype=torch.float32)
    return q, k, (10000 ** (-2 * channel / len(channel))).view(heads, HEAD_DIM), dq, dk


def call(direction: str, given: tuple[Tensor, ...], chosen: Configuration) -> list[Tensor]:
    q, k, theta, dq, dk = given
    if direction == "forward":
        return list(triton_op.launch_forward(q, k, theta, 0, "cosine", chosen))
    return triton_op.launch_backward(dq, dk, q, k, theta, 0, "cosine", True, chosen)


def compile(case: Case, candidate: dict[str, int]) -> None:
    """On few tokens. Raises ArithmeticError if the results are wrong."""
    found = call(case["direction"], problem(2, 301, 8), Configuration(**candidate))
    require_right(found, _wanted(case["direction"]))


@lru_cache(1)
def _wanted(direction: str) -> list[Tensor]:
    q, k, theta, *incoming = (x.double().requires_grad_() for x in problem(2, 301, 8))
    out = reference.rotate(q, k, theta)
    if direction == "forward":
        return [x.detach() for x in out]
    return list(torch.autograd.grad(out, (q, k, theta), [x.detach() for x in incoming]))


def calls(case: Case) -> Callable[[dict[str, int]], Callable[[], list[Tensor]]]:
    given = problem(case["batch"], case["time"], case["heads"])
    return lambda candidate: lambda: call(case["direction"], given, Configuration(**candidate))
