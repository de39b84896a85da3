"""The noise floor of a suite: how much one paired difference varies where there is nothing to find."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tnbench.report.results import SuiteResults

PRIOR = 0.01
"""Standard deviation of one run's loss, relative to the loss, where nothing has been measured: what 0.1m
models show after 0.64 million tokens (results/reference/noise-floor). Larger models and longer runs are
quieter: 0.0006 for GPT-2 124M (modded-nanogpt, record of 2025-01-04, 80 runs)."""
ASSUMED_LOSS = {"val_bits_per_byte": 2.0, "val_loss_nats": 4.0, "val_loss_bits": 5.8, "train_loss_nats": 4.0}
"""The loss that goes with the prior, in the metric's unit; there is none for examples."""


@dataclass(frozen=True)
class NoiseFloor:
    """The standard deviation of one paired difference between equal variants."""

    sd: float
    """In the metric's unit; NaN where it is not known."""
    source: str
    """Where it comes from, in words."""


def noise_floor(results: SuiteResults) -> NoiseFloor:
    """From the suite's A/A rows, else from the seeds of its base, else from the prior.

    An A/A row gives paired differences as they are. Seeds of the base give the spread s of single runs, and
    √2 · s for a difference: what pairing may take off is not counted on.
    """
    rows = [one for one in results.summaries if one.variant in results.repeats and one.difference]
    base = results.values(results.base)
    pairs = []
    for one in rows:
        again = results.values(one.variant)
        shared = base.index.intersection(again.index)
        if len(shared) >= 2:
            pairs.append(again[shared].to_numpy() - base[shared].to_numpy())
    if pairs:
        freedom = sum(len(row) - 1 for row in pairs)
        variance = sum(((row - row.mean()) ** 2).sum() for row in pairs) / freedom
        count = sum(map(len, pairs))
        return NoiseFloor(float(np.sqrt(variance)), f"{count} paired differences of the suite's A/A rows")
    if len(base) >= 2:
        return NoiseFloor(
            math.sqrt(2) * float(base.std(ddof=1)),
            f"{len(base)} seeds of the base, pairing not counted on",
        )
    if results.metric not in ASSUMED_LOSS:
        return NoiseFloor(math.nan, "no repeats yet, and nothing that was measured for this metric")
    loss = ASSUMED_LOSS[results.metric]
    return NoiseFloor(
        math.sqrt(2) * PRIOR * loss,
        f"no repeats yet: a prior of {100 * PRIOR:g} % of a loss of {loss:g}, as measured on 0.1m models; "
        f"larger models are quieter",
    )
