"""FLOPs of a call: by formula and by torch's counter, and what the hardware promises a second.

By formula, linear attention counts as its recurrence and causal softmax as half the square
(`LanguageModel.flops_per_token`); a training step is three forward passes. Torch's counter sees each product
of an eager call as it is computed: chunks of linear attention with the scores inside them, the whole square
of softmax attention, one FLOP for each multiplication and one for each addition in both.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tnbench.config import RunConfig
from tnbench.model import LanguageModel
from tnbench.training.environment import autocast

Shape = tuple[int, ...]

DENSE_BF16 = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)
"""Dense bf16 FLOP/s by the manufacturer's data sheets, for the first name that a GPU's contains."""


def _attention(query: Shape, key: Shape, value: Shape, *rest: object, **options: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *rest: object, **options: object
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention that the counter does not know by itself."""


def dense_peak(device: str, precision: str) -> float | None:
    """FLOP/s that the data sheet promises; None for other processors and precisions.

    >>> dense_peak("NVIDIA H100 80GB HBM3", "bf16")
    989000000000000.0
    """
    if precision == "fp32":
        return None
    words = device.split()
    return next((peak for name, peak in DENSE_BF16 if set(name.split()) <= set(words)), None)


def by_formula(model: LanguageModel, mode: str, context: int, batch: int) -> float:
    """FLOPs of one call: a training step, a prefill, or one decoded token after `context` others."""
    if mode == "decode":
        before = (context - 1) * model.flops_per_token(context - 1) if context > 1 else 0.0
        return batch * (context * model.flops_per_token(context) - before)
    forward = batch * context * model.flops_per_token(context)
    if mode == "train":
        return 3 * forward
    head = 2.0 * model.config.width * model.vocab_size
    return forward - batch * (context - 1) * head  # logits of the last token alone


def by_counter(config: RunConfig, vocabulary: int, mode: str, batch: int, device: str) -> float | None:
    """The same call counted by torch on tensors without content, eagerly and on one sequence.

    None for decode, whose step changes its state in place and is not traced.
    """
    if mode == "decode":
        return None
    context = config.data.context
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model = LanguageModel(config.model, vocabulary, context)
        tokens = torch.zeros(1, context, dtype=torch.long)
        with autocast(device, config.training.precision), counter:
            if mode == "train":
                model(tokens).float().sum().backward()
            else:
                with torch.no_grad():
                    model.eval()
                    model.prefill(tokens, last_only=True)
    return float(batch * counter.get_total_flops())
