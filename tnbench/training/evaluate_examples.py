"""The loss and the errors of a model on held-out examples, by part and by level of difficulty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tnbench.data import ExampleSet
from tnbench.model import LanguageModel
from tnbench.training.environment import autocast


@dataclass(frozen=True)
class ExampleEvaluation:
    """Sums over an evaluation set, by part and level."""

    parts: tuple[str, ...]
    levels: tuple[str, ...]
    sums: np.ndarray
    """(parts, levels, 3), float64: scored tokens, their −log p in nats, and wrong answers among them.

    An answer is the most probable token, the first one where several are.
    """
    tokens: int
    """Positions that the model has read."""

    @property
    def nats(self) -> float:
        """Sum of −log p over the scored tokens."""
        return float(self.sums[..., 1].sum())

    def values(self, *, by_level: bool) -> Iterator[tuple[str, float, str]]:
        """Name, value and unit of what is recorded.

        The loss is the mean over all scored tokens, bits per token of a part likewise. A part's error is the
        share of its tokens that were predicted wrong; of several levels, the mean over levels, so that each
        counts alike however many tokens it scores.

        Args:
            by_level: also the errors and bits of each level, where there are several: `NAME@LEVEL`.
        """
        loss = self.nats / float(self.sums[..., 0].sum())
        yield "val_loss", loss, "nats"
        yield "val_loss_bits", loss / math.log(2), "bits"
        for part, sums in zip(self.parts, self.sums, strict=True):
            sums = sums[sums[:, 0] > 0]
            yield f"val_{part}_bits", float(sums[:, 1].sum() / sums[:, 0].sum()) / math.log(2), "bits"
            yield f"val_{part}_error", float((sums[:, 2] / sums[:, 0]).mean()), "share"
        if by_level and len(self.levels) > 1:
            for part, sums in zip(self.parts, self.sums, strict=True):
                for level, (count, nats, wrong) in zip(self.levels, sums, strict=True):
                    if count:
                        yield f"val_{part}_bits@{level}", float(nats / count) / math.log(2), "bits"
                        yield f"val_{part}_error@{level}", float(wrong / count), "share"


def evaluate_examples(
    model: LanguageModel,
    examples: ExampleSet,
    *,
    sequences: int,
    device: str = "cpu",
    precision: str = "fp32",
    between: Callable[[], None] | None = None,
) -> ExampleEvaluation:
    """Sums in float64 over every scored token, the model in evaluation mode.

    Args:
        model: on `device`.
        examples: the rows.
        sequences: rows per forward pass; losses depend on it in their last bits only.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`.
        between: called before each forward pass; what it raises ends the evaluation.
    """
    training = model.training
    model.eval()
    cells = len(examples.parts) * len(examples.levels)
    sums = torch.zeros(cells, 3, dtype=torch.float64, device=device)
    try:
        with torch.inference_mode():
            for batch in examples.batches(sequences):
                if between:
                    between()
                inputs, targets, parts, levels = (tensor.to(device) for tensor in batch)
                scored = parts > 0
                with autocast(device, precision):
                    logits = F.linear(model.hidden(inputs)[scored], model.output_weight)
                wanted = targets[scored]
                nats = F.cross_entropy(logits.float(), wanted, reduction="none")
                wrong = logits.argmax(-1) != wanted
                cell = ((parts - 1) * len(examples.levels) + levels[:, None])[scored]
                sums += _summed(cell, cells, nats, wrong)
    finally:
        model.train(training)
    shaped = sums.cpu().numpy().reshape(len(examples.parts), len(examples.levels), 3)
    return ExampleEvaluation(examples.parts, examples.levels, shaped, examples.tokens)


def _summed(cell: Tensor, cells: int, nats: Tensor, wrong: Tensor) -> Tensor:
    """(cells, 3): how many, their nats and their wrong answers, by a product that repeats to the bit."""
    values = torch.stack((torch.ones_like(nats), nats, wrong.to(nats.dtype)), dim=1).double()
    return F.one_hot(cell, cells).T.double() @ values
