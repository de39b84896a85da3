"""AdamW with weight decay on matrices alone, and gradient clipping that tells the norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from tnbench.config import TrainingConfig
from tnbench.model import LanguageModel


def parameter_groups(model: LanguageModel, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which decay, and the rest, which does not.

    The rest: vectors (norms, biases), embeddings, learned positions, LRPE angles, learned decays.
    """
    spared = model.undecayed_parameters()
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim >= 2 and name not in spared]
    rest = [p for name, p in named.items() if p.ndim < 2 or name in spared]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def adamw(model: LanguageModel, training: TrainingConfig) -> AdamW:
    """AdamW (arXiv 1711.05101) over the model's parameters, in one fused kernel per step.

    The fused kernel repeats bit for bit, on CPU as on CUDA, and it also does so after a resume.
    """
    groups = parameter_groups(model, training.weight_decay)
    betas = (training.beta1, training.beta2)
    return AdamW([g for g in groups if g["params"]], lr=training.learning_rate, betas=betas, fused=True)


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients down to the norm `largest` (0: never); returns the norm before, a scalar."""
    kept = [p for p in parameters if p.grad is not None]
    norm = get_total_norm([p.grad for p in kept if p.grad is not None])
    if largest:
        clip_grads_with_norm_(kept, largest, norm)
    return norm
