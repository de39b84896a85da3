"""One optimizer step: for training, for estimates of how long it takes, and for comparisons of speed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tnbench.config import TrainingConfig
from tnbench.training.environment import autocast
from tnbench.training.optimizer import clip


def optimizer_step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Tensor,
    training: TrainingConfig,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    micro_sequences: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward and backward over all micro-batches, clipping, and the optimizer's update.

    Args:
        model: tokens (batch, time) to logits (batch, time, vocabulary).
        optimizer: over the model's parameters, its learning rate set.
        batch: (sequences, context + 1), on the model's device.
        training: precision and clipping.
        forward: the compiled model; by default the model itself.
        micro_sequences: sequences per forward and backward pass, a divisor of the batch's; all by default.

    Returns:
        The batch's mean loss in nats per token and the gradient norm before clipping: scalars on the device.
    """
    sequences = len(batch)
    micro = micro_sequences or sequences
    total = torch.zeros((), device=batch.device)
    for tokens in batch.split(micro):
        with autocast(training.device, training.precision):
            logits = (forward or model)(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss = loss * (micro / sequences)
        loss.backward()
        total += loss.detach()
    norm = clip(model.parameters(), training.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return total, norm
