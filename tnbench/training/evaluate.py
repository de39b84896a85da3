"""The loss of a model on a held-out text, and its bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tnbench.data import EvaluationSet
from tnbench.training.environment import autocast


@dataclass(frozen=True)
class Evaluation:
    """Loss over an evaluation set."""

    nats: float
    """Sum of −log p over all target tokens, in nats."""
    tokens: int
    """Target tokens."""
    text_bytes: int
    """UTF-8 bytes of the text."""

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def loss_bits(self) -> float:
        """Mean bits per token, the unit of the paper's losses."""
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable across tokenizers."""
        return self.nats / math.log(2) / self.text_bytes

    def values(self) -> Iterator[tuple[str, float, str]]:
        """Name, value and unit of what is recorded."""
        yield "val_loss", self.loss, "nats"
        yield "val_loss_bits", self.loss_bits, "bits"
        yield "val_bits_per_byte", self.bits_per_byte, "bits per byte"


def evaluate(
    model: nn.Module,
    texts: EvaluationSet,
    *,
    sequences: int,
    device: str = "cpu",
    precision: str = "fp32",
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Sum −log p of every target of `texts`, in float64, the model in evaluation mode.

    The logits come from the same precision as in training, and the losses from fp32 logits. The result
    depends on `sequences`, the windows per forward pass, in its last bits only.

    Args:
        model: tokens (batch, time) to logits (batch, time, vocabulary), on `device`.
        texts: gives batches of (inputs, targets), each (batch, time).
        sequences: windows per forward pass.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`.
        between: called before each forward pass; what it raises ends the evaluation.
    """
    training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    try:
        with torch.inference_mode():
            for inputs, targets in texts.batches(sequences):
                if between:
                    between()
                with autocast(device, precision):
                    logits = model(inputs.to(device))
                each = F.cross_entropy(
                    logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="none"
                )
                nats += each.double().sum()
                tokens += targets.numel()
    finally:
        model.train(training)
    assert tokens == texts.tokens, f"{tokens} targets seen of {texts.tokens}"
    return Evaluation(nats.item(), tokens, texts.text_bytes)
