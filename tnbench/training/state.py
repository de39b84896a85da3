"""What is known of a run in progress, beside its tensors; and when training has failed by its numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

HIGH, ROW, AT_ONCE = 1.5, 20, 10.0
"""A loss is high above HIGH times its level at the start; ROW such steps, or AT_ONCE times, diverge."""
SKIPPED = 30
"""So many steps in a row without finite numbers diverge in fp16: its loss scale went from 2^16 to 2^-14."""
WINDOW, FEW, DEVIATIONS = 100, 20, 7.0
"""A spike lies more than DEVIATIONS standard deviations above the mean of the last WINDOW values, or FEW."""


@dataclass
class Spikes:
    """Counts values, none below zero, that stand out above those before; what is not finite counts apart."""

    recent: list[float] = field(default_factory=list)
    spikes: int = 0
    not_finite: int = 0
    largest: float = 0.0
    """Of the finite values."""

    def add(self, value: float) -> None:
        """Take in the next value."""
        if not math.isfinite(value):
            self.not_finite += 1
            return
        self.largest = max(self.largest, value)
        n = len(self.recent)
        if n >= FEW:
            mean = sum(self.recent) / n
            deviation = math.sqrt(sum((one - mean) ** 2 for one in self.recent) / n)
            self.spikes += value > mean + DEVIATIONS * deviation
        self.recent = [*self.recent, value][-WINDOW:]

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {"spikes": self.spikes, "not_finite": self.not_finite, "largest": self.largest}


@dataclass
class LossWatch:
    """Tells divergence from the losses and gradient norms so far. It is a result of the run, not an error."""

    first_loss: float | None = None
    """Loss of the first step, in nats per token."""
    high_steps: int = 0
    """Steps in a row, up to now, whose loss was high."""
    skipped_steps: int = 0
    """Steps in a row, up to now, that fp16 could not take."""

    def reason(
        self, loss: float, gradient_norm: float, vocabulary: int, *, skips: bool = False
    ) -> str | None:
        """Why the run has diverged with this step, or None. `loss` is in nats per token.

        The level at the start is the first loss, or ln(vocabulary) if that is higher. Where a step without
        finite numbers `skips` the update, it takes `SKIPPED` of them in a row.
        """
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        self.skipped_steps = 0 if finite else self.skipped_steps + 1
        if skips and not finite:
            if self.skipped_steps < SKIPPED:
                return None
            return f"{SKIPPED} steps in a row had to be skipped: no loss scale keeps gradients finite in fp16"
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"gradient norm is {gradient_norm}"
        if self.first_loss is None:
            self.first_loss = loss
        level = max(self.first_loss, math.log(vocabulary))
        self.high_steps = self.high_steps + 1 if loss > HIGH * level else 0
        if loss > AT_ONCE * level:
            return f"loss is {loss:.4g} nats, above {AT_ONCE:g} times its level at the start ({level:.4g})"
        if self.high_steps >= ROW:
            return f"loss above {HIGH:g} times its level at the start ({level:.4g} nats) for {ROW} steps"
        return None


@dataclass
class State:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    """Optimizer steps done."""
    evaluated: int = 0
    """The step of the last point on the validation curve."""
    training_seconds: float = 0.0
    """In optimizer steps, over all attempts as far as they were kept."""
    evaluation_seconds: float = 0.0
    """On the validation curve and the figures at the end, likewise."""
    peak_memory_bytes: int = 0
    """The most memory that an attempt held."""
    micro_batches: list[list[int]] = field(default_factory=list)
    """[steps done before, tokens]: the size of the micro-batches, and from which step on it held."""
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Split → how much text the evaluation after the last step saw, and its values."""
    watch: LossWatch = field(default_factory=LossWatch)
    losses: Spikes = field(default_factory=Spikes)
    gradient_norms: Spikes = field(default_factory=Spikes)

    def stability(self) -> dict[str, Any]:
        """Spikes and numbers that were not finite: of the losses, and of the gradient norms unclipped."""
        return {"loss": self.losses.summary(), "gradient_norm": self.gradient_norms.summary()}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; floats come back exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> State:
        """The inverse of `to_json`."""
        nested = {"watch": LossWatch, "losses": Spikes, "gradient_norms": Spikes}
        return cls(
            **{**values, **{key: made(**values[key]) for key, made in nested.items() if key in values}}
        )
