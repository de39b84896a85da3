"""How long a run will take on this machine: a few real steps of each variant, timed."""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from tnbench.ablation.suite import Suite, Variant
from tnbench.model import LanguageModel
from tnbench.training.environment import autocast, settings

TIMED_STEPS = 3
LARGEST = 150_000_000
"""Parameters beyond which a model is not built on a CPU for the sake of an estimate."""
TRIAL_TOKENS = 4096
"""At most so many tokens in a timed step."""


def seconds_per_run(suite: Suite, variant: Variant) -> float | None:
    """Training time of one run, from the median of a few forward and backward passes; None for huge models.

    Training alone: the optimizer's step, compilation, evaluations and start-up are left out.
    """
    training, context = variant.config.training, variant.config.data.context
    if variant.parameters["total"] > LARGEST and training.device == "cpu":
        return None
    sequences = max(1, min(training.micro_batch_tokens or training.batch_tokens, TRIAL_TOKENS) // context)
    tokens = suite.data_of(variant).batch(0, 0, sequences, context).to(training.device)
    with settings(training):
        model = LanguageModel(variant.config.model, suite.data_of(variant).vocab_size, context).to(
            training.device
        )
        times = []
        for _ in range(TIMED_STEPS + 1):
            started = time.perf_counter()
            with autocast(training.device, training.precision):
                logits = model(tokens[:, :-1])
            F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
            if training.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    per_token = statistics.median(times[1:]) / (sequences * context)
    return per_token * training.total_steps * training.batch_tokens
