"""How long a run will take on this machine: a few real steps of each variant and an evaluation, timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from tnbench.ablation.eval_queue import Asked
from tnbench.ablation.suite import Suite, Variant
from tnbench.evaluation.by_position import read_tokens
from tnbench.model import LanguageModel
from tnbench.training.environment import autocast, settings
from tnbench.training.optimizer import adamw
from tnbench.training.step import inputs_and_targets, optimizer_step
from tnbench.training.trainer import CURVE_BYTES, FINAL_BYTES

TIMED_STEPS = 3
LARGEST = 4e12
"""FLOPs of a timed step beyond which a CPU is not asked for an estimate: they would take minutes."""
TRIAL_TOKENS = 4096
"""At most so many tokens in a timed step."""


def seconds_per_run(suite: Suite, variant: Variant) -> float | None:
    """Optimizer steps and evaluations of one run, from the median of a few; None where it would be long.

    Compilation, checkpoints and the start of the process are left out.
    """
    training, context = variant.config.training, variant.config.data.context
    sequences = max(1, min(training.micro_batch_tokens or training.batch_tokens, TRIAL_TOKENS) // context)
    if 3 * variant.flops_per_token * sequences * context > LARGEST and training.device == "cpu":
        return None
    data = suite.data_of(variant)
    tokens = data.batch(0, 0, sequences, context).to(training.device)
    with settings(training):
        model = LanguageModel(variant.config.model, data.vocab_size, context).to(training.device)
        optimizer = adamw(model, training)
        step = _typical(lambda: optimizer_step(model, optimizer, tokens, training), training.device)
        model.eval()
        with torch.inference_mode(), autocast(training.device, training.precision):
            forward = _typical(lambda: model(inputs_and_targets(tokens)[0]), training.device)
    evaluated = training.evaluations * data.evaluation("tune", context, max_bytes=CURVE_BYTES).tokens
    evaluated += data.evaluation("report", context, max_bytes=FINAL_BYTES).tokens
    trained = training.total_steps * training.batch_tokens
    return (step * trained + forward * evaluated) / (sequences * context)


def seconds_per_evaluation(suite: Suite, variant: Variant, asked: Asked) -> float | None:
    """Reading all that a run is asked, from a forward pass; None where that would be long, or texts are made.

    The start of lm-eval, and what questions share, are left out.
    """
    assert suite.evals
    training, context = variant.config.training, variant.config.data.context
    sequences = max(1, TRIAL_TOKENS // context)
    if variant.flops_per_token * sequences * context > LARGEST and training.device == "cpu":
        return None
    data = suite.data_of(variant)
    text = data.splits["report"]
    read = sum(one.bytes_read for one in asked.questions.values()) * len(text.tokens) / text.text_bytes
    if math.isnan(read):
        return None
    if suite.evals.by_position:
        read += read_tokens(len(text.tokens), suite.evals.length(suite.planned(variant, 0).subject))
    tokens = data.batch(0, 0, sequences, context).to(training.device)
    with settings(training):
        model = LanguageModel(variant.config.model, data.vocab_size, context).to(training.device).eval()
        with torch.inference_mode(), autocast(training.device, training.precision):
            forward = _typical(lambda: model(inputs_and_targets(tokens)[0]), training.device)
    return forward * read / (sequences * context)


def _typical(work: Callable[[], object], device: str) -> float:
    """Median seconds after one call that is not counted."""
    times = []
    for _ in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
