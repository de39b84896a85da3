"""Linear attention: inputs, and the implementations of this package, each bound to them."""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs, Unsupported, normal

LONGEST_RECURRENT = 256
LONGEST_COMPILED = 1 << 15


def log_decay(case: Case, device: str) -> Tensor | None:
    """log λ of each head: slopes 2^(-8h/H), h = 1 … H (`geometric`), or no decay at all (`none`)."""
    heads, decay = case.shape["heads"], case.shape.get("decay", "geometric")
    if decay == "none":
        return None
    if decay != "geometric":
        raise Unsupported(f"decay {decay!r}: known are geometric, none")
    return torch.tensor([-(2.0 ** (-8 * (h + 1) / heads)) for h in range(heads)], device=device)


def inputs(case: Case, device: str) -> Inputs:
    """q, k: (batch, time, heads, key dim); v and, for gradients, do: (batch, time, heads, value dim)."""
    shape = case.shape
    stem = (shape["batch"], shape["length"], shape["heads"])
    keys, values = (*stem, shape["key_dim"]), (*stem, shape["value_dim"])
    sizes = {"q": keys, "k": keys, "v": values}
    return normal(case, device, **sizes, **({"do": values} if case.trains else {}))


def leaves(given: Inputs) -> Inputs:
    return {name: given[name] for name in ("q", "k", "v")}


def output_gradients(given: Inputs) -> Inputs:
    return {"o": given["do"]} if "do" in given else {}


def _ours(name: str, case: Case, given: Inputs) -> Bound:
    """q, k, v as a projection leaves them: (batch, time, heads, dim)."""
    from tnbench.kernels.linear_attention import linear_attention

    decay = log_decay(case, given["q"].device.type)

    def call() -> tuple[Tensor]:
        return (linear_attention(given["q"], given["k"], given["v"], decay, implementation=name)[0],)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


def _recurrent(case: Case, given: Inputs) -> Bound:
    length = case.shape["length"]
    if length > LONGEST_RECURRENT:
        raise Unsupported(f"runs token by token, is measured up to {LONGEST_RECURRENT} tokens, not {length}")
    return _ours("recurrent", case, given)


def _lightning1(case: Case, given: Inputs) -> Bound:
    from tnbench.kernels.linear_attention.lightning1 import lightning1

    decay = log_decay(case, given["q"].device.type)
    return Bound(
        lambda: (lightning1(given["q"], given["k"], given["v"], decay),),
        ("o",),
        leaves(given),
        output_gradients(given),
    )


@cache
def _compiled_form(chunk: int):
    from tnbench.kernels.linear_attention import chunked

    return torch.compile(partial(chunked, chunk=chunk), dynamic=False)


def compiled_chunk(length: int) -> int:
    """Tokens of a chunk: few chunks, since the compiler unrolls the loop over them."""
    return min(512, max(64, 1 << max(0, math.ceil(math.log2(length / 32)))))


def _compiled(case: Case, given: Inputs) -> Bound:
    length = case.shape["length"]
    if length > LONGEST_COMPILED:
        raise Unsupported(
            f"the compiler unrolls the loop over chunks, for minutes beyond {LONGEST_COMPILED} tokens"
        )
    form, decay = _compiled_form(compiled_chunk(length)), log_decay(case, given["q"].device.type)

    def call() -> tuple[Tensor]:
        return (form(given["q"], given["k"], given["v"], decay)[0],)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


BINDERS = {
    "triton": partial(_ours, "triton"),
    "lightning1": _lightning1,
    "chunked": partial(_ours, "chunked"),
    "chunked-compiled": _compiled,
    "recurrent": _recurrent,
    "quadratic": partial(_ours, "quadratic"),
}
