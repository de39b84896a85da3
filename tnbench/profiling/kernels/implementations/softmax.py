"""Softmax attention through torch's scaled_dot_product_attention: another operator of the same shape."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs
from tnbench.profiling.kernels.implementations.linear_attention import leaves, output_gradients


def _bind(backend: SDPBackend, case: Case, given: Inputs) -> Bound:
    """Takes (batch, heads, time, dim): a transposed view of the inputs, which a model has for free."""

    def call() -> tuple[Tensor]:
        q, k, v = (given[name].transpose(1, 2) for name in ("q", "k", "v"))
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (out.transpose(1, 2),)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


BINDERS = {
    "softmax-cudnn": partial(_bind, SDPBackend.CUDNN_ATTENTION),
    "softmax-flash": partial(_bind, SDPBackend.FLASH_ATTENTION),
    "softmax-efficient": partial(_bind, SDPBackend.EFFICIENT_ATTENTION),
    "softmax-math": partial(_bind, SDPBackend.MATH),
}
