"""The norms: inputs, this package's kernels, torch and Liger.

Liger's RMSNorm takes no weight for SRMSNorm (the same operator); its LayerNorm and its fused sum with RMSNorm
always have one. It writes dx into a tensor of its own here (`in_place=False`): the gradient it is given may
be used elsewhere.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs, Unsupported, copy, normal

EPS = 1e-6


def inputs(case: Case, device: str) -> Inputs:
    """x, u (norm_gate) or r (add_norm), and gradients: (rows, width); the form's weight, bias: (width,)."""
    rows, width, form = case.shape["rows"], case.shape["width"], case.shape["form"]
    names = {"norm": ("x",), "norm_gate": ("x", "u"), "add_norm": ("x", "r")}[case.operator]
    if case.trains:
        names += ("dy", "ds") if case.operator == "add_norm" else ("dy",)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (rows, width))
    weights = {"srmsnorm": (), "rmsnorm": ("weight",), "layernorm": ("weight", "bias")}[form]
    return normal(case, device, **shapes, **dict.fromkeys(weights, (width,)))


def leaves(given: Inputs) -> Inputs:
    return {name: x for name, x in given.items() if name not in ("dy", "ds")}


def bound(case: Case, given: Inputs, call: Callable[[], Tensor | tuple[Tensor, ...]]) -> Bound:
    """With the names of the operator: y, and the sum s = x + r of add_norm."""
    outputs = ("y", "s") if case.operator == "add_norm" else ("y",)
    gradients = {name: given[f"d{name}"] for name in outputs} if case.trains else {}

    def tuples() -> tuple[Tensor, ...]:
        found = call()
        return found if isinstance(found, tuple) else (found,)

    return Bound(tuples, outputs, leaves(given), gradients)


def options(case: Case, given: Inputs) -> dict[str, Any]:
    """What the form means to this package's norms."""
    centred = case.shape["form"] == "layernorm"
    return {"weight": given.get("weight"), "bias": given.get("bias"), "centred": centred, "eps": EPS}


def _triton(case: Case, given: Inputs) -> Bound:
    from tnbench.kernels.normalisation import add_norm, norm

    chosen = options(case, given)
    if case.operator == "add_norm":
        return bound(case, given, lambda: add_norm(given["x"], given["r"], implementation="triton", **chosen))
    gate = given.get("u")
    return bound(case, given, lambda: norm(given["x"], gate=gate, implementation="triton", **chosen))


def _unfused(case: Case, given: Inputs) -> Bound:
    from tnbench.kernels.normalisation import norm

    chosen = options(case, given)
    return bound(case, given, lambda: norm(given["x"], implementation="triton", **chosen) * given["u"])


def _eager_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, centred: bool) -> Tensor:
    if centred:
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def _torch(case: Case, given: Inputs) -> Bound:
    """torch's own functions, each on its own."""
    rest = (given.get("weight"), given.get("bias"), case.shape["form"] == "layernorm")

    def call() -> Tensor | tuple[Tensor, ...]:
        if case.operator == "add_norm":
            total = given["x"] + given["r"]
            return _eager_norm(total, *rest), total
        y = _eager_norm(given["x"], *rest)
        return y * given["u"] if "u" in given else y

    return bound(case, given, call)


@cache
def _compiled_form(name: str) -> Callable:
    from tnbench.kernels.normalisation import reference

    return torch.compile(getattr(reference, name), dynamic=False)


def _compiled(case: Case, given: Inputs) -> Bound:
    chosen = options(case, given)
    if case.operator == "add_norm":
        return bound(case, given, lambda: _compiled_form("add_norm")(given["x"], given["r"], **chosen))
    return bound(case, given, lambda: _compiled_form("norm")(given["x"], gate=given.get("u"), **chosen))


def _liger(case: Case, given: Inputs) -> Bound:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    x, weight, bias = given["x"], given.get("weight"), given.get("bias")
    if case.shape["form"] == "layernorm":
        return bound(case, given, lambda: LigerLayerNormFunction.apply(x, weight, bias, EPS))
    return bound(case, given, lambda: LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False, None))


def _liger_add(case: Case, given: Inputs) -> Bound:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    if case.shape["form"] != "rmsnorm":
        raise Unsupported(f"its fused sum has RMSNorm with a weight, not {case.shape['form']}")
    x, r, weight = given["x"], given["r"], given["weight"]
    return bound(
        case, given, lambda: LigerFusedAddRMSNormFunction.apply(x, r, weight, EPS, 0.0, "llama", False)
    )


_SHARED = {"triton": _triton, "torch": _torch, "torch-compiled": _compiled, "copy": copy}

BINDERS: dict[str, dict[str, Callable[[Case, Inputs], Bound]]] = {
    "norm": _SHARED | {"liger": _liger},
    "norm_gate": _SHARED | {"unfused": _unfused},
    "add_norm": _SHARED | {"liger": _liger_add},
}

BLOCK = 1024
"""Rows that are compared with float64 at a time."""


def errors(case: Case, found: Inputs, given: Inputs) -> dict[str, float]:
    """‖x − x64‖ / ‖x64‖ of outputs and gradients; of those with a row for each row, the worst 1,024 rows."""
    from tnbench.kernels.normalisation import reference

    worst: dict[str, float] = {}
    whole: dict[str, Tensor] = {}
    for start in range(0, case.shape["rows"], BLOCK):
        rows = slice(start, start + BLOCK)
        exact = {name: (x[rows] if x.ndim == 2 else x).detach().double() for name, x in given.items()}
        own = {name: x.requires_grad_(case.trains) for name, x in leaves(exact).items()}
        chosen = options(case, own)
        if case.operator == "add_norm":
            outputs: dict[str, Tensor] = dict(
                zip(("y", "s"), reference.add_norm(own["x"], own["r"], **chosen), strict=True)
            )
        else:
            outputs = {"y": reference.norm(own["x"], gate=own.get("u"), **chosen)}
        if case.trains:
            into = [exact[f"d{name}"] for name in outputs]
            gradients = torch.autograd.grad(list(outputs.values()), list(own.values()), into)
            outputs |= {f"d{name}": x for name, x in zip(own, gradients, strict=True)}
        for name, x in found.items():
            right = outputs[name].detach()
            if x.ndim == 1:
                whole[name] = whole.get(name, 0) + right
            else:
                worst[name] = _larger(worst.get(name, 0.0), _relative(x[rows], right))
    return worst | {name: _relative(found[name], right) for name, right in whole.items()}


def _relative(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def _larger(a: float, b: float) -> float:
    """The larger error, and NaN if one is."""
    return b if not b <= a else a
