"""The decode step: inputs, this package's kernel and torch."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.exact import HeadErrors
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs, copy, normal
from tnbench.profiling.kernels.implementations.linear_attention import log_decay


def inputs(case: Case, device: str) -> Inputs:
    """q, k: (batch, heads, key dim), v: (batch, heads, value dim); state, fp32: (…, key dim, value dim)."""
    shape = case.shape
    stem, key, value = (shape["batch"], shape["heads"]), shape["key_dim"], shape["value_dim"]
    given = normal(case, device, q=(*stem, key), k=(*stem, key), v=(*stem, value))
    generator = torch.Generator(device).manual_seed(case.seed() + 1)
    state = torch.randn(*stem, key, value, device=device, generator=generator)
    return {**given, "state": state}


def _bound(step, case: Case, given: Inputs) -> Bound:
    """The state is handed out too, to be compared: it is the caller's tensor, updated where it lies."""
    decay, state = log_decay(case, given["q"].device.type), given["state"]
    begin = state.clone()
    given["begin"] = begin

    def call() -> tuple[Tensor, ...]:
        return step(given["q"], given["k"], given["v"], decay, state), state

    def reset() -> None:
        state.copy_(begin)

    return Bound(call, ("o", "state"), reset=reset)


def _ours(implementation: str, case: Case, given: Inputs) -> Bound:
    from tnbench.kernels.decode_step import decode_step

    return _bound(partial(decode_step, implementation=implementation), case, given)


@cache
def _compiled_form():
    from tnbench.kernels.decode_step import decode_step

    return torch.compile(partial(decode_step, implementation="reference"), dynamic=False)


def _compiled(case: Case, given: Inputs) -> Bound:
    return _bound(_compiled_form(), case, given)


BINDERS = {
    "triton": partial(_ours, "triton"),
    "torch": partial(_ours, "reference"),
    "torch-compiled": _compiled,
    "copy": copy,
}


def errors(case: Case, found: Inputs, given: Inputs) -> dict[str, float]:
    """Worst-head errors of o and of the new state, on the first and the last row of the batch."""
    sums = {name: HeadErrors() for name in found}
    for row in {0, case.shape["batch"] - 1}:
        part = slice(row, row + 1)
        q, k, v, before = (given[name][part].double() for name in ("q", "k", "v", "begin"))
        decay = log_decay(case, q.device.type)
        factor = 1.0 if decay is None else decay.double().exp().view(-1, 1, 1)
        state = factor * before + k[..., :, None] * v[..., None, :]
        exact = {"o": (q[..., None, :] @ state).squeeze(-2), "state": state}
        for name, error in sums.items():
            # HeadErrors wants (rows, time, heads, dim)
            pair = (x.flatten(2).unsqueeze(1) for x in (found[name][part], exact[name]))
            error.add(*pair)
    return {name: error.worst() for name, error in sums.items()}
