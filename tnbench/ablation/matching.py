"""Matching: the free widths of a variant are solved for, so that it costs what the base costs.

A variant that has one matrix less, another mixer or wider keys also has other parameters, FLOPs and state
than the base, and a difference between the two may come from that alone. A match takes this out: it keeps
what the variant is about, and changes widths until the cost lies within a tolerance of the base's. The cost
is always read off a model without memory (torch's meta device), by the methods that the plan and the records
use; no formula of it is kept here.

*Which widths.* By parameters or FLOPs: the inner dimension of the channel mixer, which touches no token
mixer; where that does not reach, the model's width with its heads kept; then both. By state: the number of
heads at the same width, which is the head dim; then the width with the heads. Keys that the variant itself
sets are what is being studied, and stay.

*Which values.* The cost grows with each of these sizes, so the one that meets the base is bracketed between
multiples of 8, which kernels want; only where neither end is within the tolerance, multiples of 4, 2 and 1
are tried between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from tnbench.config import ModelConfig, RunConfig, Strict, check
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.report.words import short

STEPS = (8, 4, 2, 1)
"""Multiples in which widths and head dims are tried."""
HEAD_DIMS = 8
"""At most so many head dims are tried beside the variant's own."""


class Match(Strict):
    """What the variants of a suite have in common with its base, and how closely."""

    by: Literal["parameters", "flops", "state"]
    """Non-embedding parameters, forward FLOPs per token, or values of recurrent state per sequence."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Largest allowed |value / base - 1|."""


@dataclass(frozen=True)
class Matched:
    """A variant that costs what the base costs."""

    config: RunConfig
    """The variant with its solved widths."""
    changed: dict[str, int]
    """Dotted keys and their solved values; empty if the variant met the base as it was."""
    residual: float
    """(value - base) / base."""


def quantity(config: RunConfig, vocab_size: int, by: str) -> float:
    """What a configuration is matched by, at its own `data.context`.

    Args:
        by: `parameters` (non-embedding), `flops` (forward, per token, output layer included) or `state`
            (values of recurrent state per sequence).

    Raises:
        RequestError: components that do not go together.
    """
    return _measure(config, vocab_size, by, config.data.context)


def _measure(config: RunConfig, vocab_size: int, by: str, context: int) -> float:
    with torch.device("meta"):
        model = LanguageModel(config.model, vocab_size, config.data.context)
    if by == "parameters":
        return model.parameter_counts()["non_embedding"]
    return model.flops_per_token(context) if by == "flops" else model.state_size(context)


def matched(
    config: RunConfig,
    base: RunConfig,
    *,
    vocab_size: int,
    base_vocab_size: int,
    held: Collection[str],
    match: Match,
) -> Matched:
    """Solve for the free widths of a variant.

    Args:
        config: the variant as its diff makes it; returned as it is if it meets the base already.
        base: what it is to cost as much as.
        vocab_size, base_vocab_size: tokens in their vocabularies.
        held: dotted keys that the variant itself sets, which are not free.

    Raises:
        RequestError: no free width brings the variant within the tolerance; the message says why.
    """
    target = quantity(base, base_vocab_size, match.by)
    if match.by == "state":
        _comparable(config, vocab_size, base, base_vocab_size)
        if target == 0:
            return Matched(config, {}, 0.0)
    search = _Search(config, vocab_size, target, match)
    if search.meets({}):
        return search.matched({})
    free = [key for key in _keys(match) if f"model.{key}" not in held]
    found = _by_head_dim(search, free) if match.by == "state" else _by_width(search, free)
    if found is None:
        raise RequestError(f"cannot be matched by {match.by}: {_reason(search, free)}")
    return search.matched(found)


def _keys(match: Match) -> tuple[str, str]:
    return ("heads", "width") if match.by == "state" else ("channel_width", "width")


def _comparable(config: RunConfig, vocab_size: int, base: RunConfig, base_vocab_size: int) -> None:
    """Refuse states that cannot be equal beyond one context."""
    ours, theirs = (
        [_measure(c, size, "state", times * c.data.context) for times in (1, 2)]
        for c, size in ((config, vocab_size), (base, base_vocab_size))
    )
    if (ours[0] == 0) != (theirs[0] == 0):
        raise RequestError(
            f"cannot be matched by state: {'it' if ours[0] == 0 else 'the base'} has no recurrent state"
        )
    if ours[0] * theirs[1] != ours[1] * theirs[0]:
        mixer, other = (", ".join(dict.fromkeys(m.name for m in c.model.mixer)) for c in (config, base))
        raise RequestError(
            f"cannot be matched by state: it holds {short(ours[0])} values after {config.data.context} "
            f"tokens and {short(ours[1])} after twice as many (mixer {mixer}), the base {short(theirs[0])} "
            f"and {short(theirs[1])} (mixer {other}); a state that grows with the context equals one that "
            f"does not at a single context only"
        )


Widths = dict[str, int]
SIZES = ("channel_width", "width", "heads")


class _Search:
    """Builds the variant with other widths, and remembers what each costs."""

    def __init__(self, config: RunConfig, vocab_size: int, target: float, match: Match) -> None:
        self.config, self.vocab_size, self.target, self.match = config, vocab_size, target, match
        self.tried: dict[tuple[int, ...], float | None] = {}

    def _widened(self, widths: Widths) -> RunConfig:
        model = check(ModelConfig, {**dict(self.config.model), **widths}, "model")
        return self.config.model_copy(update={"model": model})

    def value(self, widths: Widths) -> float | None:
        """The cost with these widths in place of the variant's; None where they cannot be built."""
        key = tuple(({**dict(self.config.model), **widths})[name] for name in SIZES)
        if key not in self.tried:
            try:
                self.tried[key] = quantity(self._widened(widths), self.vocab_size, self.match.by)
            except RequestError:
                self.tried[key] = None
        return self.tried[key]

    def distance(self, widths: Widths) -> float:
        """|value / base - 1|, infinite where it cannot be built."""
        value = self.value(widths)
        return float("inf") if value is None else abs(value - self.target) / self.target

    def meets(self, widths: Widths) -> bool:
        """Whether these widths lie within the tolerance."""
        return self.distance(widths) <= self.match.tolerance

    def matched(self, widths: Widths) -> Matched:
        """The variant with widths that meet the base."""
        value = self.value(widths)
        assert value is not None
        old = self.config.model
        changed = {f"model.{key}": new for key, new in widths.items() if new != getattr(old, key)}
        return Matched(self._widened(widths), changed, (value - self.target) / self.target)

    def nearest(self, options: list[Widths]) -> Widths | None:
        """Of widths in the order of their cost, those that cost most nearly what the base does."""
        low, high = -1, len(options)
        while high - low > 1:
            middle = (low + high) // 2
            value = self.value(options[middle])
            if value is None:
                del options[middle]
                high -= 1
            else:
                low, high = (middle, high) if value < self.target else (low, middle)
        return min(options[max(low, 0) : high + 1], key=self.distance, default=None)

    def solve(
        self, at: Callable[[int], Widths], start: int, steps: tuple[int, ...] = STEPS
    ) -> tuple[Widths | None, list[int]]:
        """The size whose widths `at(size)` meet the base, where the cost grows with the size.

        Args:
            at: the widths that belong to a size.
            start: where to begin.
            steps: multiples to try, each twice the next.

        Returns:
            the widths, or None; and the sizes on both sides of the base's cost, coarse ones first.
        """
        low, high = self._bracket(at, start, steps[0])
        near: list[int] = []
        for step in steps:
            if step < steps[0]:
                middle = low + step
                value = self.value(at(middle))
                if value is None or high is None:
                    break
                low, high = (middle, high) if value < self.target else (low, middle)
            ends = sorted({low, high} - {0, None}, key=lambda size: self.distance(at(size)))
            near += [size for size in ends if size not in near]
            if ends and self.meets(at(ends[0])):
                return at(ends[0]), near
        return None, near

    def _bracket(self, at: Callable[[int], Widths], start: int, step: int) -> tuple[int, int | None]:
        """Neighbouring multiples of `step`, the first below the base's cost (0 if none is), the other not.

        The other is None where no size reaches that cost, or a size on the way cannot be built.
        """
        low, high = 0, None
        costs: dict[int, float] = {}
        size = max(1, round(start / step)) * step
        while high is None or high - low > step:
            value = self.value(at(size))
            if value is None or (high is None and value == costs.get(low)):
                return low, None
            costs[size] = value
            low, high = (size, high) if value < self.target else (low, size)
            if high is None:
                size = 2 * low
            elif low == 0 or len(costs) % 3 == 0:  # now and then a bisection: it bounds the number of steps
                size = (low + high) // 2
            else:
                share = (self.target - costs[low]) / (costs[high] - costs[low])
                size = low + round(share * (high - low))
            if high is not None:
                size = min(max(round(size / step) * step, low + step), high - step)
        return low, high


def _by_width(search: _Search, free: list[str]) -> Widths | None:
    """The channel mixer's inner dimension, the model's width with its heads kept, or both."""
    model = search.config.model

    def wide(head_dim: int) -> Widths:
        return {"width": model.heads * head_dim}

    if "channel_width" in free:
        found, _ = search.solve(lambda inner: {"channel_width": inner}, model.channel_width)
        if found:
            return found
    if "width" not in free:
        return None
    found, near = search.solve(wide, model.head_dim)
    if found or "channel_width" not in free:
        return found
    for head_dim in near:
        widths = wide(head_dim)
        found, _ = search.solve(lambda inner, w=widths: {**w, "channel_width": inner}, model.channel_width)
        if found:
            return found
    return None


def _by_head_dim(search: _Search, free: list[str]) -> Widths | None:
    """The number of heads at the same width, or the width: with the heads where they are free too."""
    model = search.config.model
    if "heads" in free:
        counts = [heads for heads in range(model.width, 0, -1) if model.width % heads == 0]
        for step in STEPS:
            best = search.nearest([{"heads": n} for n in counts if model.width // n % step == 0])
            if best and search.meets(best):
                return best
    if "width" not in free:
        return None
    value = search.value({})
    assert value, "what has no state has been refused"
    for head_dim in [model.head_dim, *_head_dims(model.head_dim)] if "heads" in free else []:
        guess = search.target / value * (model.head_dim / head_dim) ** 2 * model.heads  # only where to begin
        found, _ = search.solve(lambda n, d=head_dim: {"width": n * d, "heads": n}, round(guess), steps=(1,))
        if found:
            return found
    return search.solve(lambda head_dim: {"width": model.heads * head_dim}, model.head_dim)[0]


def _head_dims(head_dim: int) -> list[int]:
    """Head dims within a factor of two, the friendliest and nearest first."""
    within = range(max(1, head_dim // 2), 2 * head_dim + 1)
    friendly = [[d for d in within if d % step == 0] for step in STEPS]
    ordered = [d for group in friendly for d in sorted(group, key=lambda d: abs(d - head_dim))]
    return [d for d in dict.fromkeys(ordered) if d != head_dim][:HEAD_DIMS]


def _reason(search: _Search, free: list[str]) -> str:
    """Why no widths were found."""
    names = [f"model.{key}" for key in _keys(search.match)]
    held = [name for name in names if name.removeprefix("model.") not in free]
    costs = {widths: value for widths, value in search.tried.items() if value is not None}
    nearest = min(costs, key=lambda widths: abs(costs[widths] - search.target))
    value, old = costs[nearest], search.config.model
    solved = {key: size for key, size in zip(SIZES, nearest, strict=True) if size != getattr(old, key)}
    where = " and ".join(f"model.{key} = {size}" for key, size in solved.items())
    reason = f"{short(value)} against the base's {short(search.target)}"
    if min(costs.values()) <= search.target <= max(costs.values()):
        off = 100 * abs(value - search.target) / search.target
        reason = f"nearest is {off:.2g} % off {f'with {where}' if where else 'as it is'}"
        reason += f" (tolerance {100 * search.match.tolerance:.2g} %)"
    elif where:
        reason += f" even with {where}"
    elif len(held) < len(names):
        reason += ", and no other width can be built or changes it"
    if held:
        reason += f"; {' and '.join(held)} {'is' if len(held) == 1 else 'are'} set by the variant or --set"
    return reason
