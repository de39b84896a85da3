"""Decays: the logarithm of the factor λ per head that linear attention multiplies its past with.

All take `heads`, the layer's index from 0 at the bottom, and the number of layers, and return (heads,)
values of at most 0, or None where nothing decays. The slope of a head is s = −log λ.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from tnbench.errors import RequestError
from tnbench.registry import register

Factor = Annotated[float, Field(gt=0, le=1)]


class Decay(nn.Module):
    """Base: a fixed log decay per head, kept out of the state dict."""

    log_decay: Tensor

    def __init__(self, slopes: list[float] | None) -> None:
        super().__init__()
        self.decays = slopes is not None
        if slopes is not None:
            self.register_buffer("log_decay", -torch.tensor(slopes, dtype=torch.float32), persistent=False)

    def forward(self) -> Tensor | None:
        """Log decay per head, (heads,), fp32."""
        return self.log_decay if self.decays else None


def alibi_slopes(heads: int) -> list[float]:
    """s_h = 2^(−8h/H), h = 1..H; for other than powers of two, ALiBi's interleaving (arXiv 2108.12409).

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    if power < heads:
        slopes += [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: heads - power]
    return slopes


def _layer_factor(layer: int, layers: int) -> float:
    """1 − l/(L−1) + 1e-5, the decay temperature of the official code."""
    return 1 - layer / max(layers - 1, 1) + 1e-5


@register("decay", "none")
class NoDecay(Decay):
    """No decay: λ = 1."""

    def __init__(self, heads: int, layer: int, layers: int) -> None:
        super().__init__(None)


@register("decay", "official", reference="OpenNLPLab/TransnormerLLM; arXiv 2307.14995, eq. 2 as coded")
class OfficialDecay(Decay):
    """λ = exp(−2^(−8h/H) (1 − l/(L−1) + 1e-5)), h = 1..H: ALiBi slopes, as in the official code.

    The factor with the layer l = 0..L−1 is the decay temperature; without it, it is 1. The official code
    divides by zero for L = 1, where the factor is taken to be that of the first layer.
    """

    def __init__(self, heads: int, layer: int, layers: int, *, temperature: bool = True) -> None:
        factor = _layer_factor(layer, layers) if temperature else 1.0
        super().__init__([slope * factor for slope in alibi_slopes(heads)])


@register("decay", "all-layers")
class AllLayersDecay(Decay):
    """λ = exp(−2^(−8h/H) (1 − l/L)), h = 1..H, l = 0..L−1: as official, but the last layer decays too."""

    def __init__(self, heads: int, layer: int, layers: int) -> None:
        super().__init__([slope * (1 - layer / layers) for slope in alibi_slopes(heads)])


@register("decay", "printed", reference="arXiv 2307.14995, eq. 2 as printed")
class PrintedDecay(Decay):
    """λ = exp(−(8h/H) (1 − l/L)), h = 0..H−1, l = 1..L: the formula in the paper's text.

    Head 0 never forgets, and neither does the last layer (the paper says that its λ is 1).
    """

    def __init__(self, heads: int, layer: int, layers: int, *, temperature: bool = True) -> None:
        factor = 1 - (layer + 1) / layers if temperature else 1.0
        super().__init__([8 * h / heads * factor for h in range(heads)])


@register("decay", "retnet", reference="arXiv 2307.08621, eq. 8")
class RetNetDecay(Decay):
    """λ = 1 − 2^(−5−h), h = 0..H−1, the same in every layer."""

    def __init__(self, heads: int, layer: int, layers: int) -> None:
        super().__init__([-math.log1p(-(2.0 ** (-5 - h))) for h in range(heads)])


@register("decay", "log-spaced", reference="Doraemonzzz/xmixers")
class LogSpacedDecay(Decay):
    """λ = exp(−(1/n_h) (1 − l/(L−1) + 1e-5)), memory lengths n_h log-spaced over the heads."""

    def __init__(
        self,
        heads: int,
        layer: int,
        layers: int,
        *,
        shortest: Annotated[float, Field(gt=0)] = 2.0,
        longest: Annotated[float, Field(gt=0)] = 256.0,
        temperature: bool = True,
    ) -> None:
        if longest < shortest:
            raise RequestError(f"decay log-spaced: longest = {longest:g} is below shortest = {shortest:g}")
        factor = _layer_factor(layer, layers) if temperature else 1.0
        step = math.log(longest / shortest) / max(heads - 1, 1)
        super().__init__([factor / (shortest * math.exp(step * h)) for h in range(heads)])


@register("decay", "fixed")
class FixedDecay(Decay):
    """A given λ for all heads, or a list with one λ per head, the same in every layer."""

    def __init__(self, heads: int, layer: int, layers: int, *, value: Factor | list[Factor] = 0.99) -> None:
        values = list(value) if isinstance(value, list | tuple) else [value] * heads
        if len(values) != heads:
            raise RequestError(
                f"model.decay.value lists {len(values)} values for {heads} heads; give one, or one per head"
            )
        super().__init__([-math.log(item) for item in values])


@register("decay", "learned")
class LearnedDecay(nn.Module):
    """λ = exp(−exp(a)), a learned per head, starting at the official decay of the layer.

    The paper reports unstable gradients and NaN for learned λ; this form at least keeps 0 < λ < 1.
    """

    decays = True

    def __init__(self, heads: int, layer: int, layers: int, *, temperature: bool = True) -> None:
        super().__init__()
        start = OfficialDecay(heads, layer, layers, temperature=temperature)
        self.log_slope = nn.Parameter((-start.log_decay).log())

    def forward(self) -> Tensor:
        """Log decay per head, (heads,), fp32."""
        return -self.log_slope.exp()
