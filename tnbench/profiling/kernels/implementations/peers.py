"""Linear attention of other projects, each bound to the same inputs.

Layouts: flash-linear-attention and xopes take (batch, time, heads, dim), as a projection leaves it.
lightning-attn and mlstm-kernels want (batch, heads, time, dim) and would copy anything else on every call;
they are handed that layout, and its gradient, before the clock starts, which errs in their favour.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import math

import torch
from torch import Tensor

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import DTYPES, Bound, Inputs, Unsupported
from tnbench.profiling.kernels.implementations.linear_attention import leaves, log_decay, output_gradients


def _fla_chunk(case: Case, given: Inputs) -> Bound:
    """By `g_gamma`, a constant decay: a decay per token, `g`, has no backward on Hopper (Triton 3.6)."""
    from fla.ops.simple_gla import chunk_simple_gla

    decay = log_decay(case, given["q"].device.type)

    def call() -> tuple[Tensor]:
        return (chunk_simple_gla(given["q"], given["k"], given["v"], g_gamma=decay, scale=1.0)[0],)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


def _fla_fused(case: Case, given: Inputs) -> Bound:
    from fla.ops.simple_gla import fused_chunk_simple_gla

    decay = log_decay(case, given["q"].device.type)

    def call() -> tuple[Tensor]:
        out = fused_chunk_simple_gla(given["q"], given["k"], given["v"], g_gamma=decay, scale=1.0)
        return (out[0].to(given["v"].dtype),)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


def _heads_first(given: Inputs) -> Inputs:
    return {name: x.transpose(1, 2).contiguous() for name, x in given.items()}


def _time_first(name: str, x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _lightning2(case: Case, given: Inputs) -> Bound:
    """Slopes s = -log λ as (heads, 1, 1) fp32; tiles of the whole head dim, 16, 32, 64 or 128."""
    from lightning_attn.ops.triton.lightning_attn2 import lightning_attn2

    key, value = case.shape["key_dim"], case.shape["value_dim"]
    if not all(dim in (16, 32, 64, 128) for dim in (key, value)):
        raise Unsupported(f"takes head dims 16, 32, 64 and 128, not {key} and {value}")
    decay = log_decay(case, given["q"].device.type)
    if decay is None:
        raise Unsupported("version 0.0.5 has no path without decay that runs")
    slopes, laid = (-decay).view(-1, 1, 1), _heads_first(given)
    return Bound(
        lambda: (lightning_attn2(laid["q"], laid["k"], laid["v"], slopes),),
        ("o",),
        leaves(laid),
        output_gradients(laid),
        _time_first,
    )


def _mlstm(case: Case, given: Inputs) -> Bound:
    """The mLSTM with sigmoid gates is this operator where the input gate is open and the forget gate
    constant.

    sigmoid(i) = 1 to the last bit of fp32 at i = 40, and log sigmoid(f) = -s at f = -log(expm1(s)). Without
    its normaliser what is left is the operator with scale d^(-1/2), a fixed factor. Its gradients of the
    gates cannot be left out.
    """
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging.fwbw import mlstm_siging_chunkwise__xl_chunk

    shape = case.shape
    batch, heads, length, key = shape["batch"], shape["heads"], shape["length"], shape["key_dim"]
    chunk = 128
    if length % chunk:
        raise Unsupported(f"takes multiples of {chunk} tokens, not {length}")
    if any(dim & (dim - 1) for dim in (key, shape["value_dim"])):
        raise Unsupported(f"takes head dims that are powers of two, not {key} and {shape['value_dim']}")
    decay, laid = log_decay(case, given["q"].device.type), _heads_first(given)
    gate = (
        torch.full((heads,), 40.0, device=given["q"].device)
        if decay is None
        else -torch.log(torch.expm1(-decay))
    )
    forget = gate.view(1, -1, 1).expand(batch, heads, length).contiguous()
    entry = torch.full_like(forget, 40.0)

    def call() -> tuple[Tensor]:
        out = mlstm_siging_chunkwise__xl_chunk(
            laid["q"], laid["k"], laid["v"], entry, forget, normalize=False, chunk_size=chunk,
            autocast_kernel_dtype=DTYPES[case.dtype],
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return (out,)

    return Bound(call, ("o",), leaves(laid), output_gradients(laid), _time_first, scale=1 / math.sqrt(key))


def _xopes(case: Case, given: Inputs) -> Bound:
    """From source only: the package of that name on PyPI is empty."""
    from xopes.ops.lightning_attn.constant_decay import lacd_parallel_triton

    decay = log_decay(case, given["q"].device.type)

    def call() -> tuple[Tensor]:
        return (lacd_parallel_triton(q=given["q"], k=given["k"], v=given["v"], ld=decay)[0],)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


BINDERS = {
    "fla-chunk": _fla_chunk,
    "fla-fused": _fla_fused,
    "lightning2": _lightning2,
    "mlstm": _mlstm,
    "xopes": _xopes,
}
