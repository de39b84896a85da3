"""How the next token is drawn from logits.

The filters compose in this order, each on what the one before has left: the temperature divides the logits;
top-k keeps the k most probable tokens; top-p keeps the fewest of those, from the most probable on, that
together reach the share p of what top-k left; what is kept is normalised and drawn from.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny
"""Temperatures below it are 0 to fp32."""


def check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError for values that no distribution has."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature = {temperature:g}: give 0, for the most probable token, or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top-k = {top_k}: give at least 1 token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top-p = {top_p:g}: give a share above 0 and at most 1")


def distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What the next token is drawn from.

    Args:
        logits: (batch, vocabulary).
        temperature: 0 leaves the most probable token alone.
        top_k: tokens kept, None for all.
        top_p: share kept, None for all.

    Returns:
        Probabilities (batch, vocabulary), fp32.

    Raises:
        ValueError: values that no distribution has.

    >>> logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    >>> distribution(logits, top_k=3, top_p=0.8)  # 0.5/0.9 = 0.56, and with 0.25/0.9 it is 0.83
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """
    check(temperature, top_k, top_p)
    if temperature < SMALLEST:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    scores = logits.float()
    # From the largest down, so that no temperature makes it overflow.
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kept, places = scores.topk(top_k)
        scores = torch.full_like(scores, -math.inf).scatter(-1, places, kept)
    shares = torch.softmax(scores, dim=-1)
    if top_p is None or top_p == 1:
        return shares
    ordered, places = shares.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ordered.cumsum(-1)[..., :-1], (1, 0))
    ordered = ordered.masked_fill(before >= top_p, 0)
    return torch.zeros_like(shares).scatter(-1, places, ordered / ordered.sum(-1, keepdim=True))


class Sampler:
    """Draws tokens from logits, on their device and without waiting for it.

    Every row of a batch has a generator of its own, so that its draws do not depend on how many rows stand
    beside it.

    Args:
        batch: rows.
        temperature, top_k, top_p: as in `distribution`.
        seed: row n draws with the seed `seed` + n.
        device: that of the logits.

    Raises:
        ValueError: values that no distribution has.
    """

    def __init__(
        self,
        batch: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check(temperature, top_k, top_p)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._generators = [torch.Generator(device).manual_seed(seed + row) for row in range(batch)]

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """Tokens (batch,), int64, for logits (batch, vocabulary)."""
        if self.temperature < SMALLEST:
            return logits.argmax(-1)
        shares = distribution(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        # argmax of p / Exp(1) is distributed as p; torch.multinomial waits for the device to check its input.
        noise = torch.empty_like(shares)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return (shares / noise.clamp_min_(torch.finfo(noise.dtype).tiny)).argmax(-1)
