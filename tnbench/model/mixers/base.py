"""What every token mixer offers, and the parts that the composer gives it.

A mixer maps (batch, time, width) to the same shape. `forward` is for whole sequences; `extend` continues
from a state, for any number of tokens, so that prefill and single-step decoding are the same call.
For generation, `allocate` gives a state that `extend` and `decode` write where it lies.
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
    constant_state: ClassVar[bool] = True
    """Whether an allocated state is of one size and one step of one cost, whatever was seen before."""

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
            state: what `initial_state`, `allocate` or the last `extend` returned.
            start: tokens before x.

        Returns:
            (batch, time, width) and the next state: for an allocated one, itself.
        """
        raise NotImplementedError

    def allocate(self, batch: int, capacity: int, like: Tensor) -> Any:
        """A state before the first token that is written where it lies: a tuple of tensors.

        Args:
            batch: sequences.
            capacity: the most tokens that a sequence will have; of no effect where `constant_state`.
            like: gives the device and, for what is kept of the tokens themselves, the dtype.
        """
        raise NotImplementedError

    def decode(self, x: Tensor, state: Any, position: Tensor, tokens: int) -> Tensor:
        """One token of each sequence; `state` is changed where it lies. For inference: no gradients.

        With `constant_state` nothing depends on `tokens`, and a CUDA graph of the call can be replayed for
        token after token.

        Args:
            x: (batch, width).
            state: what `allocate` returned.
            position: (1,) int64 on x's device, tokens seen so far.
            tokens: the same number on the host.

        Returns:
            (batch, width).
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
