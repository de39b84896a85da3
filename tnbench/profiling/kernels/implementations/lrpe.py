"""LRPE: inputs, this package's kernels and torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.exact import HeadErrors
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs, copy, normal

OUTPUTS = ("qr", "kr")
"""The turned q and k."""

LEAVES = ("q", "k", "theta")


def inputs(case: Case, device: str) -> Inputs:
    """q, k: (batch, time, heads, dim); theta, fp32: (heads, angles), 10000^(-j/angles); dqr, dkr."""
    shape, form = case.shape, case.shape["form"]
    stem, dim = (shape["batch"], shape["length"], shape["heads"]), shape["key_dim"]
    sizes = {"q": (*stem, dim), "k": (*stem, dim)}
    if case.trains:
        wide = (*stem, 2 * dim if form == "cosine" else dim)
        sizes |= {f"d{name}": wide for name in OUTPUTS}
    angles = dim if form == "cosine" else dim // 2
    theta = 10000.0 ** (-torch.arange(angles, device=device) / angles)
    return {**normal(case, device, **sizes), "theta": theta.expand(shape["heads"], angles).contiguous()}


def _bind(choose: Callable[[], Callable], case: Case, given: Inputs) -> Bound:
    turn = choose()

    def call() -> tuple[Tensor, ...]:
        return turn(given["q"], given["k"], given["theta"], form=case.shape["form"])

    gradients = {name: given[f"d{name}"] for name in OUTPUTS} if case.trains else {}
    return Bound(call, OUTPUTS, {name: given[name] for name in LEAVES}, gradients)


def _triton() -> Callable:
    from tnbench.kernels.lrpe import rotate

    return partial(rotate, implementation="triton")


def _reference() -> Callable:
    from tnbench.kernels.lrpe import reference

    return reference.rotate


@cache
def _compiled() -> Callable:
    return torch.compile(_reference(), dynamic=False)


BINDERS = {
    "triton": partial(_bind, _triton),
    "torch": partial(_bind, _reference),
    "torch-compiled": partial(_bind, _compiled),
    "copy": copy,
}


def errors(case: Case, found: Inputs, given: Inputs) -> dict[str, float]:
    """Worst-head errors, and that of θ's gradient as a whole; one row of the batch after the other."""
    heads = {name: HeadErrors() for name in found if name != "dtheta"}
    dtheta: Tensor | float = 0.0
    for row in range(case.shape["batch"]):
        own = {name: given[name][row : row + 1].detach().double() for name in ("q", "k")}
        own["theta"] = given["theta"].detach().double()
        for x in own.values():
            x.requires_grad_(case.trains)
        turned = _reference()(own["q"], own["k"], own["theta"], form=case.shape["form"])
        exact: dict[str, Tensor] = dict(zip(OUTPUTS, turned, strict=True))
        if case.trains:
            into = [given[f"d{name}"][row : row + 1].double() for name in OUTPUTS]
            gradients = torch.autograd.grad(turned, [own[name] for name in LEAVES], into)
            exact |= {f"d{name}": x for name, x in zip(LEAVES, gradients, strict=True)}
            dtheta = dtheta + exact["dtheta"]
        for name, head in heads.items():
            head.add(found[name][row : row + 1], exact[name].detach())
    worst = {name: head.worst() for name, head in heads.items()}
    if "dtheta" in found:
        assert isinstance(dtheta, Tensor)
        worst["dtheta"] = float((found["dtheta"].double() - dtheta).norm() / dtheta.norm())
    return worst
