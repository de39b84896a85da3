"""Synthetic tasks of recall: what a model of fixed state can carry, one difficulty at a time.

Every difficulty (`pairs`, `length`, `keys`, `count`, `depth`) takes one value or several. With several, the
rows of each split have all of them in equal number, and errors are reported for each: train on a mixture,
read off the curve. Vary one difficulty at a time; with two, every combination is a level of its own.

Rows of `train`, `tune` and `report` are drawn independently. Shorter rows of a mixture are filled up behind
their end with a token that is never scored, which no causal model sees in time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from tnbench.config import canonical_json
from tnbench.data.corpora import find_corpus
from tnbench.data.draws import Draws
from tnbench.data.examples import ExampleCorpus, Rows
from tnbench.data.splits import divide
from tnbench.errors import RequestError
from tnbench.registry import register

LARGEST_VOCABULARY = 1 << 16
MOST_POSITIONS = 1 << 31
"""Of a split: 10 GiB of rows."""


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Count = Annotated[int, Field(ge=1, le=1 << 15, strict=True)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_several), Field(min_length=1, max_length=32)]
"""One number or several."""
Shares = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1, strict=True)], ...],
    BeforeValidator(_several),
    Field(min_length=1, max_length=32),
]
RowCount = Annotated[int, Field(ge=1, le=10**7, strict=True)]
Vocabulary = Annotated[int, Field(ge=8, le=LARGEST_VOCABULARY, strict=True)]

CHUNK = 1 << 22
"""Random numbers drawn at once, at most: bounds the memory."""


class Task(ExampleCorpus):
    """Base: the levels of difficulty, and rows of each level mixed evenly.

    Args:
        axes: name of each difficulty → its values.
        rows: training rows, at least; every level has the same number.
        held_out: likewise rows of `tune` and of `report`.
        parameters: what else the rows depend on.

    Raises:
        RequestError: a value is given twice, or there is no such row, or there would be too many.
    """

    name: ClassVar[str]
    """The registered name."""
    parts = ("answer",)

    def __init__(
        self, axes: Mapping[str, tuple[Any, ...]], rows: int, held_out: int, **parameters: Any
    ) -> None:
        self.axes, self.count, self.parameters = dict(axes), {"train": rows}, parameters
        self.count |= dict.fromkeys(("tune", "report"), held_out)
        for name, values in axes.items():
            if len(set(values)) < len(values):
                raise RequestError(f"{self.name}: a value of {name} is given twice")
        varied = [name for name, values in axes.items() if len(values) > 1]
        self.settings = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        self.levels = tuple(
            " ".join(f"{name}={setting[name]:g}" for name in varied) for setting in self.settings
        )
        self.context = max(axes["length"])
        if len(set(self.levels)) < len(self.levels):
            raise RequestError(
                f"{self.name}: two values of a difficulty are too near each other to be told apart"
            )
        if self.vocab_size > LARGEST_VOCABULARY:
            raise RequestError(
                f"{self.name}: {self.vocab_size:,} tokens; at most {LARGEST_VOCABULARY:,} are possible"
            )
        most = max(rows, held_out) * self.context
        if most > MOST_POSITIONS:
            raise RequestError(
                f"{self.name}: {max(rows, held_out):,} rows of {self.context} are {most:,} positions; "
                f"at most {MOST_POSITIONS:,} are possible"
            )
        if odd := [length for length in axes["length"] if length % 2]:
            raise RequestError(f"{self.name}: length = {odd[0]}; use an even number")
        for setting in self.settings:
            if trouble := self.obstacle(**setting):
                shown = ", ".join(f"{name} = {value:g}" for name, value in setting.items())
                raise RequestError(f"{self.name}: {shown}: {trouble}")

    def obstacle(self, **setting: Any) -> str:
        """Why there are no rows of a setting; empty where there are."""
        raise NotImplementedError

    @abstractmethod
    def draw(self, draws: Draws, rows: int, split: str, **setting: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one setting: inputs, and targets, −1 where nothing is scored; (rows, length), int64."""

    def width(self, **setting: Any) -> int:
        """Random numbers that a row takes at once, for the size of chunks."""
        return setting["length"]

    def rows(self, split: str) -> Rows:
        levels = len(self.settings)
        each = -(-self.count[split] // levels)
        inputs = np.zeros((each, levels, self.context), np.uint16)
        targets, parts = np.zeros_like(inputs), np.zeros(inputs.shape, np.uint8)
        for level, setting in enumerate(self.settings):
            name = {"task": self.name, "version": self.version, "split": split, **self.parameters, **setting}
            draws, chunk = Draws(canonical_json(name)), max(1, CHUNK // self.width(**setting))
            for first in range(0, each, chunk):
                here = slice(first, min(first + chunk, each))
                made, wanted = self.draw(draws, here.stop - here.start, split, **setting)
                length, scored = made.shape[1], wanted >= 0
                inputs[here, level, :length] = made
                targets[here, level, :length][scored] = wanted[scored]
                parts[here, level, :length] = scored
        shape = (each * levels, self.context)
        mixed = np.tile(np.arange(levels, dtype=np.uint16), each)
        return Rows(inputs.reshape(shape), targets.reshape(shape), parts.reshape(shape), mixed)


@register("examples", "mqar", reference="Arora et al. 2023 (zoology), arXiv 2312.04927")
class MQAR(Task):
    """Multi-query associative recall: key-value pairs, then each key once more, whose value is asked for.

    A row begins with `pairs` different keys, each with a value. Behind them, keys come back at even distances
    from the end of the pairs, drawn without replacement with probability proportional to d^(power − 1); with
    power = 1 all places are equally likely. Where a key comes back, its value is the target, and does not
    follow in the inputs. All other positions hold random tokens, none of which is a key of the row, so that
    the answer is unambiguous. With vocabulary 12, pairs 2, length 10, key 2 with value 8 and key 4 with 7:

        inputs   2  8  4  7 10  6  4  9  2 11
        targets  .  .  .  .  .  .  7  .  8  .
    """

    name = "mqar"

    def __init__(
        self,
        *,
        pairs: Counts = (4, 8, 16),
        length: Counts = (64,),
        vocabulary: Vocabulary = 8192,
        power: Annotated[float, Field(gt=0, le=10, strict=True)] = 0.01,
        rows: RowCount = 100_000,
        held_out: RowCount = 3000,
    ) -> None:
        self.vocab_size, self.power = vocabulary, power
        super().__init__(
            {"pairs": pairs, "length": length}, rows, held_out, vocabulary=vocabulary, power=power
        )

    def obstacle(self, *, pairs: int, length: int) -> str:
        if 4 * pairs > length:
            return f"a pair and its query take 4 positions; use a length of {4 * pairs} or more"
        if pairs > self.vocab_size // 2 - 1:
            return f"the vocabulary of {self.vocab_size} has {self.vocab_size // 2 - 1} keys"
        return ""

    def width(self, *, pairs: int, length: int) -> int:
        return max(self.vocab_size, length)

    def draw(
        self, draws: Draws, rows: int, split: str, *, pairs: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        half, every = self.vocab_size // 2, np.arange(rows)[:, None]
        keys = 1 + draws.distinct(half - 1, pairs, rows)
        values = half + draws.distinct(self.vocab_size - half, pairs, rows)
        places = (length - 2 * pairs) // 2
        distance = draws.weighted(np.arange(1, places + 1) ** (self.power - 1.0), pairs, rows)
        inputs = 1 + draws.below(self.vocab_size - 1, (rows, length))
        is_key = np.zeros((rows, self.vocab_size), bool)
        is_key[every, keys] = True
        inputs[is_key[every, inputs]] += half  # a value in its place
        inputs[:, 0 : 2 * pairs : 2] = keys
        inputs[:, 1 : 2 * pairs : 2] = values
        targets = np.full((rows, length), -1)
        asked = 2 * pairs + 2 * distance
        inputs[every, asked] = keys
        targets[every, asked] = values
        return inputs, targets


@register("examples", "selective-copying", reference="Gu and Dao 2023 (Mamba), arXiv 2312.00752")
class SelectiveCopying(Task):
    """Selective copying: tokens scattered among noise, to be given back in their order at the end.

    `count` symbols lie at random places of the first length − count positions, and noise at all others. The
    last `count` positions hold a marker each, whose targets are the symbols in their order; a symbol that was
    asked for does not follow in the inputs. Ids: marker 0, then the symbols, then the noise.
    """

    name = "selective-copying"

    def __init__(
        self,
        *,
        count: Counts = (4, 8, 16),
        length: Counts = (64,),
        symbols: Annotated[int, Field(ge=2, le=1 << 15, strict=True)] = 16,
        noise: Annotated[int, Field(ge=1, le=1 << 15, strict=True)] = 16,
        rows: RowCount = 100_000,
        held_out: RowCount = 3000,
    ) -> None:
        self.symbols, self.noise, self.vocab_size = symbols, noise, 1 + symbols + noise
        super().__init__({"count": count, "length": length}, rows, held_out, symbols=symbols, noise=noise)

    def obstacle(self, *, count: int, length: int) -> str:
        return "" if 2 * count <= length else f"symbols and markers take {2 * count} positions"

    def draw(
        self, draws: Draws, rows: int, split: str, *, count: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        every, body = np.arange(rows)[:, None], length - count
        symbols = 1 + draws.below(self.symbols, (rows, count))
        inputs = 1 + self.symbols + draws.below(self.noise, (rows, length))
        inputs[every, np.sort(draws.distinct(body, count, rows), axis=1)] = symbols
        inputs[:, body:] = 0
        targets = np.full((rows, length), -1)
        targets[:, body:] = symbols
        return inputs, targets


@register("examples", "in-context-recall", reference="Poli et al. 2024 (MAD), arXiv 2403.17844")
class InContextRecall(Task):
    """In-context recall: key, value, key, value, …; a key that comes again is followed by its value again.

    Per row, `keys` keys are drawn and given a value each; then length / 2 of them come, with repetition.
    Values are scored wherever their key has come before (MAD's multi-query form, which trains on all tokens).
    As in text, the value follows its key in the inputs. Ids: keys are the lower half of the vocabulary.
    """

    name = "in-context-recall"

    def __init__(
        self,
        *,
        keys: Counts = (8,),
        length: Counts = (128,),
        vocabulary: Vocabulary = 32,
        rows: RowCount = 100_000,
        held_out: RowCount = 3000,
    ) -> None:
        self.vocab_size = vocabulary
        super().__init__({"keys": keys, "length": length}, rows, held_out, vocabulary=vocabulary)

    def obstacle(self, *, keys: int, length: int) -> str:
        if keys > self.vocab_size // 2:
            return f"the vocabulary of {self.vocab_size} has {self.vocab_size // 2} keys"
        return "" if length // 2 > keys else f"for a key to come back, use a length above {2 * keys + 1}"

    def width(self, *, keys: int, length: int) -> int:
        return max(self.vocab_size, length * keys)

    def draw(
        self, draws: Draws, rows: int, split: str, *, keys: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        half, every = self.vocab_size // 2, np.arange(rows)[:, None]
        chosen = draws.distinct(half, keys, rows)
        values = half + draws.below(self.vocab_size - half, (rows, keys))
        which = draws.below(keys, (rows, length // 2))
        inputs = np.empty((rows, length), np.int64)
        inputs[:, 0::2], inputs[:, 1::2] = chosen[every, which], values[every, which]
        seen = np.cumsum(which[:, :, None] == np.arange(keys), axis=1)[every, np.arange(length // 2), which]
        targets = np.full((rows, length), -1)
        targets[:, 0::2] = np.where(seen > 1, values[every, which], -1)
        return inputs, targets


@cache
def _text(split: str) -> np.ndarray:
    """A split of the shipped corpus, its documents joined by line breaks, (bytes,), uint8."""
    name = "state-of-the-union"
    return np.frombuffer(b"\n".join(divide(name, find_corpus(name).read()).splits[split]), np.uint8)


@register("examples", "needle", reference="Mohtashami and Jaggi 2023 (passkey), arXiv 2305.16300")
class Needle(Task):
    """Needle in a haystack: a passkey somewhere in a long sequence, asked for at the end.

    The haystack is random bytes, or text: the shipped corpus, of which each split gives its own windows. At
    share `depth` of it (0: at the start, 1: at the end) lies the needle, a mark and `digits` digits. A row
    ends with the question mark and all digits but the last; the digits are the targets of these positions.
    Ids: bytes, needle's mark 256, question mark 257, digits 258 to 267.
    """

    name = "needle"

    def __init__(
        self,
        *,
        depth: Shares = (0.0, 0.25, 0.5, 0.75, 1.0),
        length: Counts = (256,),
        digits: Annotated[int, Field(ge=1, le=64, strict=True)] = 4,
        haystack: Literal["random", "text"] = "random",
        rows: RowCount = 100_000,
        held_out: RowCount = 3000,
    ) -> None:
        self.digits, self.haystack, self.vocab_size = digits, haystack, 268
        super().__init__({"depth": depth, "length": length}, rows, held_out, digits=digits, haystack=haystack)

    def fingerprint(self) -> str:
        return find_corpus("state-of-the-union").fingerprint() if self.haystack == "text" else ""

    def obstacle(self, *, depth: float, length: int) -> str:
        least = 2 * self.digits + 1
        return "" if length > least else f"needle and question take {least} positions"

    def draw(
        self, draws: Draws, rows: int, split: str, *, depth: float, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        k = self.digits
        hay = length - 2 * k - 1
        digits = 258 + draws.below(10, (rows, k))
        if self.haystack == "text":
            text = _text(split)
            starts = draws.below(len(text) - hay, (rows,))
            body = text[starts[:, None] + np.arange(hay)].astype(np.int64)
        else:
            body = draws.below(256, (rows, hay))
        place = round(depth * hay)
        mark, question = np.full((rows, 1), 256), np.full((rows, 1), 257)
        parts = (body[:, :place], mark, digits, body[:, place:], question, digits[:, :-1])
        inputs = np.concatenate(parts, axis=1)
        targets = np.full((rows, length), -1)
        targets[:, length - k :] = digits
        return inputs, targets
