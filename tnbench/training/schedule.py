"""Learning-rate schedules: the factor of the peak learning rate, step by step.

A schedule takes the step (from 0), the run's steps and its warm-up steps, and gives the shape after the
warm-up. The warm-up is common to all: a straight line from peak / warm-up at step 0 to the peak.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from tnbench import registry
from tnbench.config import TrainingConfig
from tnbench.registry import register

Fraction = Annotated[float, Field(ge=0, le=1)]


@register("schedule", "wsd", reference="arXiv 2405.18392")
def warmup_stable_decay(step: int, steps: int, warmup: int, *, decay: Fraction = 0.2) -> float:
    """Warm-up, stable, decay: the peak, then 1 − sqrt(n/N), n = 0, 1, …, over the last N = decay · steps.

    Hägele et al. find 1 − sqrt better than a straight line to zero, and 20 % enough to match the cosine.
    """
    length = round(decay * steps)
    begun = step - (steps - length)
    return 1.0 if begun < 0 else 1 - math.sqrt(begun / length)


@register("schedule", "cosine", reference="arXiv 1608.03983, eq. 5")
def cosine(step: int, steps: int, warmup: int, *, floor: Fraction = 0.1) -> float:
    """Half a cosine from the peak at the end of the warm-up towards `floor` · peak after the last step."""
    progress = max(0, step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


@register("schedule", "constant")
def constant(step: int, steps: int, warmup: int) -> float:
    """The peak learning rate to the end."""
    return 1.0


def learning_rate(training: TrainingConfig, step: int) -> float:
    """The learning rate of a step, counted from 0.

    A decay that begins within the warm-up goes on from where the two lines meet: the lower one counts.
    """
    steps, warmup = training.total_steps, training.warmup_steps
    shape = registry.find("schedule", training.schedule.name, "training.schedule").target
    factor = shape(step, steps, warmup, **training.schedule.parameters)
    if step < warmup:
        factor = min(factor, (step + 1) / warmup)
    return training.learning_rate * factor
