"""What the norms offer to tnbench.kernels.tune: their operations at the widths of models, and what to try."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tnbench.kernels.devices import machine
from tnbench.kernels.normalisation import configurations, reference, triton_op
from tnbench.kernels.normalisation.configurations import OPERATIONS, SUMMING, Configuration
from tnbench.kernels.tune import require_right

Case = dict[str, Any]
LARGEST = 1 << 28  # elements of a tensor


def cases() -> list[Case]:
    """bf16, from few to many rows."""
    return [
        {"operation": operation, "width": width, "rows": rows}
        for operation in OPERATIONS
        for width in (1024, 2048, 4096, 8192, 16384)
        for rows in (16384, 4096, 65536)
        if rows * width <= LARGEST and (operation != "affine_backward" or width <= 8192)
    ]


def key(case: Case) -> str:
    architecture = machine(torch.cuda.current_device()).architecture
    return f"{architecture} {case['operation']} {case['width']}"


def kind(case: Case) -> Case:
    return {"operation": case["operation"], "width": case["width"]}


def candidates(case: Case) -> list[dict[str, int]]:
    return [c._asdict() for c in configurations.candidates(case["operation"], case["width"])]


def problem(operation: str, rows: int, width: int) -> tuple[Tensor | None, ...]:
    """x, r or dr', u, w, b, dy: those that the operation has."""
    torch.manual_seed(0)
    x, other, dy = (torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    weight, bias = torch.rand(2, width, device="cuda") + 0.5
    return (
        x,
        other if "add" in operation else None,
        other if "gate" in operation else None,
        weight if operation in SUMMING else None,
        bias if operation == "affine_backward" else None,
        dy,
    )


def call(operation: str, given: tuple[Tensor | None, ...], chosen: Configuration) -> list[Tensor]:
    """Everything that the operation returns."""
    x, residual, gate, weight, bias, dy = given
    assert x is not None
    assert dy is not None
    if operation.endswith("backward"):
        centred = bias is not None
        return triton_op.launch_backward(dy, residual, x, gate, weight, bias, centred=centred, chosen=chosen)
    found = triton_op.launch_forward(x, residual, gate, chosen=chosen)
    return [t for t in found if t is not None]


def compile(case: Case, candidate: dict[str, int]) -> None:
    """On few rows. Raises ArithmeticError if the results are wrong."""
    operation, width = case["operation"], case["width"]
    found = call(operation, problem(operation, 643, width), Configuration(**candidate))
    require_right(found, _wanted(operation, width))


@lru_cache(1)
def _wanted(operation: str, width: int) -> list[Tensor]:
    given = problem(operation, 643, width)
    leaves = [None if t is None else t.double().requires_grad_() for t in given]
    x, residual, gate, weight, bias, dy = leaves
    assert x is not None
    assert dy is not None
    if not operation.endswith("backward"):
        if residual is None:
            return [reference.norm(x, gate=gate).detach()]
        # r' is rounded before it is normed.
        total = (x + residual).detach()
        return [reference.norm(total.bfloat16().double()), total]
    y = reference.norm(x, gate=gate, weight=weight, bias=bias, centred=bias is not None)
    used = [t for t in (x, gate, weight, bias) if t is not None]
    dx, *others = torch.autograd.grad(y, used, dy.detach())
    return [dx if residual is None else dx + residual.detach(), *others]


def calls(case: Case) -> Callable[[dict[str, int]], Callable[[], list[Tensor]]]:
    given = problem(case["operation"], case["rows"], case["width"])
    return lambda candidate: lambda: call(case["operation"], given, Configuration(**candidate))
