"""One optimizer step: for training, for estimates of how long it takes, and for comparisons of speed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from tnbench.config import TrainingConfig
from tnbench.data.examples import UNSCORED
from tnbench.model import LanguageModel
from tnbench.model.lm import BlockCall
from tnbench.training import losses
from tnbench.training.environment import autocast
from tnbench.training.optimizer import clip

Objective = Callable[[Tensor, Tensor], Tensor]
"""(inputs, targets), both (batch, time), to the mean loss in nats per token, a scalar in fp32."""


def inputs_and_targets(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Both (sequences, context), of windows of text (sequences, context + 1) or examples (…, 2, context)."""
    return (batch[:, 0], batch[:, 1]) if batch.ndim == 3 else (batch[:, :-1], batch[:, 1:])


def objective(model: LanguageModel, training: TrainingConfig, *, examples: bool = False) -> Objective:
    """The loss of a model as a run computes it: in its precision, form of the loss, and compilation.

    `compile: true` is one graph of model and loss, without a break; Liger's loss, which waits for the GPU by
    itself, stays outside of it. `compile: blocks` compiles what a block does, once for all blocks that differ
    in their numbers alone, and leaves embedding, final norm and loss as they are.

    Args:
        model: on the run's device; its mode (`train`, `eval`) and `activation_checkpointing` hold as they are
            at each call.
        training: precision, loss, compile, and the size of micro-batches, which `loss: auto` goes by.
        examples: the loss is the mean over the targets that are not `UNSCORED`, and logits are computed at
            these positions alone. On a GPU the host waits for their number.
    """
    form = losses.form(training, model.vocab_size)
    whole = training.compile is True
    blocks: BlockCall | None = None
    if training.compile == "blocks":
        blocks = torch.compile(model.apply_block, fullgraph=True, dynamic=False)

    def hidden(inputs: Tensor) -> Tensor:
        with autocast(training.device, training.precision):
            return model.hidden(inputs, apply=blocks)

    def at_scored(inputs: Tensor, targets: Tensor) -> Tensor:
        found, scored = hidden(inputs), targets != UNSCORED
        found, targets = found[scored], targets[scored]
        if form != "logits":
            return of_hidden(found, model.output_weight, targets)
        with autocast(training.device, training.precision):
            logits = F.linear(found, model.output_weight)
        return F.cross_entropy(logits.float(), targets)

    def by_logits(inputs: Tensor, targets: Tensor) -> Tensor:
        with autocast(training.device, training.precision):
            logits = model(inputs, apply=blocks) if blocks else model(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def by_chunks(inputs: Tensor, targets: Tensor) -> Tensor:
        return losses.chunked_cross_entropy(hidden(inputs), model.output_weight, targets)

    if examples:
        of_hidden = losses.liger_cross_entropy() if form == "liger" else losses.chunked_cross_entropy
        return at_scored
    if form == "liger":
        before = torch.compile(hidden, fullgraph=True, dynamic=False) if whole else hidden
        fused = losses.liger_cross_entropy()
        return lambda inputs, targets: fused(before(inputs), model.output_weight, targets)
    compute = by_logits if form == "logits" else by_chunks
    return torch.compile(compute, fullgraph=True, dynamic=False) if whole else compute


def optimizer_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Tensor,
    training: TrainingConfig,
    *,
    loss: Objective | None = None,
    micro_sequences: int | None = None,
    scaler: GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward and backward over all micro-batches, clipping, and the optimizer's update.

    On a GPU nothing here waits for it. With a `scaler`, a step whose gradients are not finite leaves the
    weights as they are, and the next has a smaller loss scale.

    Args:
        model: a LanguageModel, or with `loss` any module.
        optimizer: over the model's parameters, its learning rate set.
        batch: windows (sequences, context + 1) or examples (sequences, 2, context), on the model's device.
        training: clipping, and what `objective` takes.
        loss: what is minimised, (inputs, targets) to a scalar; by default `objective`, not compiled.
        micro_sequences: sequences per forward and backward pass, a divisor of the batch's; all by default.
        scaler: the loss scale of fp16 (`loss_scale`).

    Returns:
        The batch's mean loss in nats per scored token and the gradient norm before clipping: scalars on the
        device.
    """
    if loss is None:
        assert isinstance(model, LanguageModel)
        eager = training.model_copy(update={"compile": False})
        loss = objective(model, eager, examples=batch.ndim == 3)
    sequences = len(batch)
    micro = micro_sequences or sequences
    total = torch.zeros((), device=batch.device)
    for part in batch.split(micro):
        inputs, targets = inputs_and_targets(part)
        share = loss(inputs, targets) * _weight(part, batch)
        (scaler.scale(share) if scaler else share).backward()
        total += share.detach()
    if scaler:
        scaler.unscale_(optimizer)
    norm = clip(model.parameters(), training.gradient_clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad()
    return total, norm


def loss_scale(training: TrainingConfig) -> GradScaler | None:
    """For fp16, whose smallest number is 6e-8: 2^16 at first, halved where gradients overflow, doubled after
    2,000 steps in which they do not (arXiv 1710.03740, section 3.2). None for other precisions."""
    return GradScaler(training.device) if training.precision == "fp16" else None


def _weight(part: Tensor, batch: Tensor) -> float | Tensor:
    """A micro-batch's share of the scored tokens."""
    if batch.ndim == 2 or len(part) == len(batch):
        return len(part) / len(batch)
    scored, everywhere = ((tokens[:, 1] != UNSCORED).sum() for tokens in (part, batch))
    return scored / everywhere
