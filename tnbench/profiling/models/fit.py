"""The largest context, batch and size that fit a given memory, answered by the memory model without running.

    largest_context(config, parse_budget("80GB"), "train", batch=1, vocab_size=50272)

Peaks rise with tokens almost in a straight line, so that a search by interpolation needs a handful of
predictions where bisection would need twenty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tnbench.config import RunConfig
from tnbench.errors import RequestError, shortened
from tnbench.profiling.models.memory import Memory, Mode, at_context, predict

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
QUESTIONS = ("size", "context", "batch")
"""Of what the largest is asked for."""
CONTEXT_STEP = 256
"""Contexts are multiples of so many tokens."""
LONGEST, WIDEST = 1 << 26, 1 << 20
"""Tokens of context and sequences beyond which nothing is asked."""
CLOSE = 1 / 64
"""Share of an answer by which it may be too small."""


@dataclass(frozen=True)
class Fit:
    """An answer: the largest `question` that fits, and what the memory holds at its peak there."""

    question: str
    """One of `QUESTIONS`."""
    mode: Mode
    size: str
    context: int
    batch: int
    memory: Memory | None
    """None if not even the smallest fits."""

    @property
    def answer(self) -> int | str | None:
        """The largest value; None if not even the smallest fits."""
        return None if self.memory is None else getattr(self, self.question)


def parse_budget(text: str) -> int:
    """Bytes of `80GB`, `24GiB`, `512MB` or a bare number of bytes.

    Raises:
        RequestError: something else, or nothing.
    """
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?I?)(B?)\s*", text.upper())
    units = UNITS | BINARY
    if found is None or found[2] not in units or (found[2] and not found[3]):
        raise RequestError(f"{shortened(text)} is no amount of memory: give it as 80GB, 24GiB or 512MB")
    budget = round(float(found[1]) * units[found[2]])
    if not 0 < budget < 2**62:
        raise RequestError(f"{shortened(text)} is no amount of memory that a machine could have")
    return budget


def largest_context(config: RunConfig, budget: int, mode: Mode, *, batch: int, vocab_size: int) -> int:
    """Tokens of context with which `batch` sequences fit `budget` bytes; 0 if the shortest does not.

    A multiple of `CONTEXT_STEP`, to within `CLOSE` of itself. The device is the configuration's.
    """

    def needs(steps: int) -> int:
        return _memory(config, mode, steps * CONTEXT_STEP, batch, vocab_size).total

    return CONTEXT_STEP * search(needs, budget, LONGEST // CONTEXT_STEP)


def largest_batch(config: RunConfig, budget: int, mode: Mode, *, vocab_size: int) -> int:
    """Sequences of the configuration's context that fit `budget` bytes; 0 if not even one does.

    In training they are those of a micro-batch. To within `CLOSE` of itself.
    """

    def needs(batch: int) -> int:
        return _memory(config, mode, config.data.context, batch, vocab_size).total

    return search(needs, budget, WIDEST)


def largest_size(
    sizes: Mapping[str, RunConfig], budget: int, mode: Mode, *, batch: int, vocab_size: int
) -> str | None:
    """The largest of some sizes that fits `budget` bytes with `batch` sequences of its context.

    Args:
        sizes: configurations by their name, from the smallest.
    """
    low, high = -1, len(sizes)
    names = list(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        config = sizes[names[middle]]
        fits = _memory(config, mode, config.data.context, batch, vocab_size).total <= budget
        low, high = (middle, high) if fits else (low, middle)
    return names[low] if low >= 0 else None


def answers(
    sizes: Mapping[str, RunConfig],
    budget: int,
    mode: Mode,
    *,
    batch: int,
    vocab_size: int,
    questions: Collection[str] = QUESTIONS,
) -> list[Fit]:
    """For each size the largest context at `batch` sequences and the largest batch at its context; before
    them, of several sizes the largest that fits with both as they are.

    Args:
        sizes: configurations by their name, from the smallest.
        budget: bytes.
        mode: `train`, `prefill` or `decode`.
        batch: sequences; in training, of a micro-batch.
        vocab_size: tokens in the vocabulary.
        questions: which of `QUESTIONS` are answered.
    """
    found = []
    if len(sizes) > 1 and "size" in questions:
        name = largest_size(sizes, budget, mode, batch=batch, vocab_size=vocab_size)
        shown = name or next(iter(sizes))
        found.append(_fit("size", name is not None, mode, shown, sizes[shown], batch, vocab_size))
    for name, config in sizes.items():
        if "context" in questions:
            context = largest_context(config, budget, mode, batch=batch, vocab_size=vocab_size)
            longer = at_context(config, context or CONTEXT_STEP)
            found.append(_fit("context", context > 0, mode, name, longer, batch, vocab_size))
        if "batch" in questions:
            most = largest_batch(config, budget, mode, vocab_size=vocab_size)
            found.append(_fit("batch", most > 0, mode, name, config, most or 1, vocab_size))
    return found


def search(needs: Callable[[int], int], budget: int, most: int) -> int:
    """The largest n in 1 … most with needs(n) <= budget, to within `CLOSE` of itself; 0 if there is none.

    Args:
        needs: does not fall with n.
    """
    low, at_low = 1, needs(1)
    if at_low > budget:
        return 0
    if low == most or (at_most := needs(most)) <= budget:
        return most
    high, at_high = most, at_most
    sides = 0  # how often in a row the answer was found on the lower (< 0) or the upper side
    while high - low > max(1, int(CLOSE * low)):
        margin = max(1, int(CLOSE * low))
        line = low + (budget - at_low) * (high - low) // (at_high - at_low)
        # Below the line's answer and then above it: two points close to it hold it between them.
        guess = line - margin // 2 if sides <= 0 else line + margin // 2
        if abs(sides) > 2:
            guess = (low + high) // 2 if high < 4 * low else int((low * high) ** 0.5)
            sides = 0
        guess = min(max(guess, low + 1), high - 1)
        value = needs(guess)
        if value <= budget:
            low, at_low, sides = guess, value, max(1, sides + 1)
        else:
            high, at_high, sides = guess, value, min(-1, sides - 1)
    return low


def _fit(
    question: str, fits: bool, mode: Mode, size: str, config: RunConfig, batch: int, vocab_size: int
) -> Fit:
    context = config.data.context
    memory = _memory(config, mode, context, batch, vocab_size) if fits else None
    return Fit(question, mode, size, context, batch, memory)


def _memory(config: RunConfig, mode: Mode, context: int, batch: int, vocab_size: int) -> Memory:
    at = at_context(config, context)
    return predict(at, vocab_size, mode, batch=batch, device=config.training.device)
