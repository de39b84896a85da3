"""Cross entropy of the output layer, in nats per token, without all of the logits in memory.

With t tokens and a vocabulary of V, the logits are t · V values, and so are their fp32 copies and gradients:
at 32,768 tokens and V = 50,272 about 16 GB, more than a model of 385M with its optimizer. Their gradient is
known as soon as they are (softmax − one-hot, over t), so that `chunked_cross_entropy` multiplies it with the
weight and the hidden state at once, chunk by chunk of tokens, and keeps dh and dW alone.

Which form computes the loss follows from the configuration and nothing else: `auto` never takes a library
because it happens to be installed, or a run would have other numbers on another machine.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from tnbench.config import TrainingConfig
from tnbench.errors import RequestError

LARGEST = 1 << 28
"""Logits in a chunk, at most (to a few rows): 512 MB in bf16."""
ROWS = 256
"""Chunks are multiples of so many tokens, which are whole tiles of a matrix product."""
SMALL = 256 << 20
"""Bytes of fp32 logits below which `auto` keeps them."""


def form(training: TrainingConfig, vocabulary: int) -> str:
    """`logits`, `chunked` or `liger`: what `training.loss` stands for; by its configured micro-batches."""
    if training.loss != "auto":
        return training.loss
    if training.precision == "fp16":
        return "logits"
    tokens = training.micro_batch_tokens or training.batch_tokens
    return "chunked" if training.device == "cuda" and 4 * tokens * vocabulary >= SMALL else "logits"


def require(training: TrainingConfig) -> None:
    """Raises RequestError where Liger's loss cannot run, or the loss scale of fp16 would come too late."""
    if training.precision == "fp16" and training.loss in ("chunked", "liger"):
        raise RequestError(
            f"training.loss = {training.loss} with training.precision = fp16: it computes gradients before "
            "they are scaled, and they would vanish; set training.loss=logits or auto"
        )
    if training.loss != "liger":
        return
    if training.device != "cuda":
        raise RequestError("training.loss = liger: its kernels need a GPU; set training.loss=chunked")
    if importlib.util.find_spec("liger_kernel") is None:
        raise RequestError(
            "training.loss = liger: liger-kernel is not installed; pip install 'liger-kernel>=0.8,<0.9', or "
            "set training.loss=chunked"
        )


def chunk_rows(tokens: int, vocabulary: int) -> int:
    """Tokens in a chunk: as few and equal chunks as `LARGEST` allows, in multiples of `ROWS`."""
    chunks = math.ceil(tokens * vocabulary / LARGEST)
    return ROWS * math.ceil(tokens / chunks / ROWS)


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: int | None = None
) -> Tensor:
    """Mean −log softmax(h Wᵀ)[target]; differentiable, once, in h and W.

    Logits and their gradients are in hidden's dtype (as autocast would have them), sums over the vocabulary
    and W's gradient in fp32 (fp64 for fp64). At most one chunk of logits is alive.

    Args:
        hidden: (…, width).
        weight: (vocabulary, width), of hidden's dtype or its fp32 master copy.
        targets: (…), integers from 0 to vocabulary − 1.
        rows: tokens in a chunk; `chunk_rows` by default.

    Returns:
        A scalar in fp32 (fp64 for fp64), in nats.

    Raises:
        ValueError: shapes that do not fit.
    """
    if hidden.shape[:-1] != targets.shape or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            "hidden must be (…, width), weight (vocabulary, width) and targets (…), got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    rows = rows or chunk_rows(targets.numel(), weight.shape[0])
    return _operator(hidden.flatten(0, -2), weight, targets.flatten(), rows, wanted)[0]


def liger_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Liger's fused linear cross entropy, of the arguments of `chunked_cross_entropy`."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore

    compute = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return compute(weight.to(hidden.dtype), hidden.flatten(0, -2), targets.flatten())

    return loss


@torch.library.custom_op("tnbench::linear_cross_entropy", mutates_args=())
def _operator(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dh, dW) for hidden (t, width), weight (vocabulary, width), targets (t,); without gradients the
    latter are empty."""
    tokens, wide = len(hidden), _wide(hidden.dtype)
    loss = hidden.new_zeros((), dtype=wide)
    dhidden = torch.empty_like(hidden) if gradients else hidden.new_empty(0)
    dweight = torch.zeros_like(weight, dtype=wide) if gradients else weight.new_empty(0)
    elementwise = _compiled() if hidden.is_cuda else _cross_entropy
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.to(hidden.dtype)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], matrix)
            at_target = logits.gather(-1, targets[part, None])
            loss += elementwise(logits, at_target, targets[part], 1 / tokens, gradients).sum()
            if gradients:  # the logits are their gradients now
                torch.mm(logits, matrix, out=dhidden[part])
                _accumulate(dweight, logits, hidden[part])
            del logits  # before the next ones
    return loss, dhidden, dweight.to(weight.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _cross_entropy(
    logits: Tensor, at_target: Tensor, targets: Tensor, scale: float, gradients: bool
) -> Tensor:
    """scale · −log p[target], (n, 1), of logits (n, vocabulary), which become its gradient if that is wanted.

    `at_target`, the logits (n, 1) of the targets, is an argument because reading them in here would keep the
    compiler from writing gradients in the kernel that sums.
    """
    values = logits.to(_wide(logits.dtype))
    top = values.amax(-1, keepdim=True)
    powers = (values - top).exp()
    total = powers.sum(-1, keepdim=True)
    losses = (top + total.log() - at_target) * scale
    if gradients:
        hit = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
        logits.copy_((powers / total - hit.to(powers.dtype)) * scale)
    return losses


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]:
    """`_cross_entropy` as one kernel over the rows of a chunk."""
    return torch.compile(_cross_entropy, fullgraph=True)


def _accumulate(dweight: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
    """dW += dlogitsᵀ h, summed in dW's dtype."""
    if dweight.dtype == dlogits.dtype:
        dweight.addmm_(dlogits.T, hidden)
    elif dweight.is_cuda:
        torch.addmm(dweight, dlogits.T, hidden, out_dtype=dweight.dtype, out=dweight)
    else:
        dweight.addmm_(dlogits.T.to(dweight.dtype), hidden.to(dweight.dtype))


@_operator.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = hidden.new_empty((), dtype=_wide(hidden.dtype))
    if not gradients:
        return loss, hidden.new_empty(0), weight.new_empty(0)
    return loss, torch.empty_like(hidden), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


@once_differentiable
def _backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Both gradients are there: they are scaled with the loss's own, which is 1 but for micro-batches."""
    dhidden, dweight = (
        saved * dloss.to(saved.dtype) if needed else None
        for saved, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return dhidden, dweight, None, None, None


_operator.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.tnbench.linear_cross_entropy)
def _flops(hidden: Any, weight: Any, targets: Any, rows: int, gradients: bool, **_: Any) -> int:
    """2 t · width · vocabulary for the logits, and twice that for both gradients."""
    return 2 * hidden[0] * hidden[1] * weight[0] * (3 if gradients else 1)
