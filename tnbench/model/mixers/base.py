"""What every token mixer offers, and the parts that the composer gives it.

A mixer maps (batch, time, width) to the same shape. `forward` is for whole sequences; `extend` continues
from a state, for any number of tokens, so that prefill and single-step decoding are the same call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from tnbench.model.decays import NoDecay
from tnbench.model.feature_maps import FeatureMap, Identity
from tnbench.model.norms import NoNorm
from tnbench.model.positions import NoPosition, Position


@dataclass
class Parts:
    """The components that a token mixer may be composed of; what is left out is absent."""

    position: Position = field(default_factory=lambda: NoPosition(0, 0, 0))
    decay: nn.Module = field(default_factory=lambda: NoDecay(0, 0, 0))
    feature_map: FeatureMap = field(default_factory=Identity)
    inner_norm: type[nn.Module] | Any = NoNorm
    """Called with the width to normalise."""
    gate: bool = False
    implementation: str = "auto"


PARTS = ("position", "decay", "feature_map", "inner_norm", "gate")


class TokenMixer(nn.Module):
    """Base of the token mixers.

    Every subclass takes (width, heads, parts) and declares what it refuses, its recurrent state and its cost.
    """

    refuses: ClassVar[dict[str, str]] = {}
    """Parts that the mixer cannot use, each with the reason that the user is told."""
    needs_positive: ClassVar[bool] = False
    """Whether the feature map must not give negative values."""

    def __init__(self, width: int, heads: int, parts: Parts | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads = {heads} does not divide width = {width}")
        self.width, self.heads, self.head_dim = width, heads, width // heads
        self.parts = parts or Parts()

    @classmethod
    def refusals(cls, **parameters: Any) -> dict[str, str]:
        """What a mixer with these parameters refuses: `refuses`, unless a subclass knows better."""
        return cls.refuses

    def initial_state(self, batch: int, like: Tensor) -> Any:
        """The state before the first token, on the device of `like`."""
        raise NotImplementedError

    def extend(self, x: Tensor, state: Any, start: int) -> tuple[Tensor, Any]:
        """Continue a sequence.

        Args:
            x: (batch, time, width), tokens start, start + 1, …
            state: what `initial_state` or the last `extend` returned.

        Returns:
            (batch, time, width) and the next state.
        """
        raise NotImplementedError

    def state_size(self, context: int) -> int:
        """Values that the state holds per sequence after at most `context` tokens (its largest size)."""
        raise NotImplementedError

    def flops_per_token(self, context: int) -> float:
        """FLOPs of the matrix products per token, with projections: the mean over decoding `context` tokens.

        A multiply-add counts as two. Linear attention is counted as its recurrence, softmax attention as half
        the square.
        """
        raise NotImplementedError


def projection_flops(*layers: nn.Linear) -> float:
    """2 · in · out for each linear layer, per token."""
    return float(sum(2 * layer.weight.numel() for layer in layers))
