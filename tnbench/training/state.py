"""What is known of a run in progress, beside its tensors; and when training has failed by its numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

HIGH, ROW, AT_ONCE = 1.5, 20, 10.0
"""A loss is high above HIGH times its level at the start; ROW such steps, or AT_ONCE times, diverge."""


@dataclass
class LossWatch:
    """Tells divergence from the losses and gradient norms so far. It is a result of the run, not an error."""

    first_loss: float | None = None
    """Loss of the first step, in nats per token."""
    high_steps: int = 0
    """Steps in a row, up to now, whose loss was high."""

    def reason(self, loss: float, gradient_norm: float, vocabulary: int) -> str | None:
        """Why the run has diverged with this step, or None. `loss` is in nats per token.

        The level at the start is the first loss, or ln(vocabulary) if that is higher.
        """
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

    def to_json(self) -> dict[str, Any]:
        """As JSON values; floats come back exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> State:
        """The inverse of `to_json`."""
        return cls(**{**values, "watch": LossWatch(**values["watch"])})
