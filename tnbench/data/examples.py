"""Corpora of examples: rows of one length in which some tokens are scored.

Running text is scored at every token. An example asks a question: its row is inputs, and beside them targets
at the positions that are scored. A position belongs to one *part* (`answer`; `pixel` and `class`), for which
losses and errors are reported apart, and a row belongs to one *level* of difficulty (`pairs=8`).

A registered corpus of examples is a class that knows its vocabulary, its length, its parts and its levels,
and makes the rows of a split (`ExampleCorpus`). Its rows depend on its parameters and its version alone, not
on the seeds of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tnbench.config import NO_TOKENIZER
from tnbench.data.windows import TokenData, epoch_order
from tnbench.errors import RequestError, nearest

UNSCORED = -100
"""Target at a position that is not scored: what torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Rows:
    """The examples of a split."""

    inputs: np.ndarray
    """(rows, context), uint16."""
    targets: np.ndarray
    """(rows, context), uint16: what is to be predicted; of no meaning where nothing is scored."""
    parts: np.ndarray
    """(rows, context), uint8: 0 where nothing is scored, else one more than the part's index."""
    levels: np.ndarray
    """(rows,), uint16: index of the row's level."""

    def __len__(self) -> int:
        return len(self.levels)

    def slice(self, first: int, end: int) -> Rows:
        """The rows from `first` to before `end`."""
        part = slice(first, end)
        return Rows(self.inputs[part], self.targets[part], self.parts[part], self.levels[part])

    def check(self, corpus: ExampleCorpus) -> None:
        """Raises ValueError where the arrays do not fit each other or the corpus."""
        rows = len(self.levels)
        for name, array in (("inputs", self.inputs), ("targets", self.targets), ("parts", self.parts)):
            if array.shape != (rows, corpus.context):
                raise ValueError(f"{name} {array.shape}: expected {(rows, corpus.context)}")
        scored = self.parts > 0
        if not rows or not scored.any(axis=1).all():
            raise ValueError("every row must have a scored position, and there must be one row at least")
        largest = max(int(self.inputs.max()), int(self.targets[scored].max()))
        if largest >= corpus.vocab_size:
            raise ValueError(f"token {largest} is beyond the vocabulary of {corpus.vocab_size}")
        if int(self.parts.max()) > len(corpus.parts) or int(self.levels.max()) >= len(corpus.levels):
            raise ValueError("a part or level that the corpus does not have")


class ExampleCorpus:
    """Base of registered corpora of examples. Keyword-only arguments of the constructor are its parameters.

    Its constructor raises RequestError where the parameters do not go together.
    """

    version: ClassVar[int] = 1
    """Raised whenever the same parameters would give other rows."""
    parts: ClassVar[tuple[str, ...]]
    """Names of the parts: of `answer`, `class`, `pixel` and `sample`."""
    vocab_size: int
    """Token ids are below it; at most 65,536."""
    context: int
    """Positions in a row."""
    levels: tuple[str, ...] = ("",)
    """Names of the levels of difficulty; a single one has the empty name."""

    def fingerprint(self) -> str:
        """Hash of the data that the rows are made of; empty where they are drawn."""
        return ""

    def rows(self, split: str) -> Rows:
        """The rows of `train`, `tune` or `report`; the same whenever they are made.

        Rows of all levels are mixed evenly, so that the first n have every level alike.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class NoTokenizer:
    """Stands where a text has its tokenizer: the ids of examples are no text."""

    vocab_size: int
    name: str = NO_TOKENIZER
    hash: str = NO_TOKENIZER


@dataclass(frozen=True)
class ExampleSet:
    """Rows on which every model is evaluated."""

    rows: Rows
    parts: tuple[str, ...]
    levels: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Positions that a model reads."""
        return self.rows.inputs.size

    @property
    def documents(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def batches(self, sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Inputs, targets and parts, each (at most `sequences`, context), and levels (rows,), int64."""
        assert sequences > 0, sequences
        for first in range(0, len(self.rows), sequences):
            some = self.rows.slice(first, first + sequences)
            yield _int64(some.inputs), _int64(some.targets), _int64(some.parts), _int64(some.levels)


@dataclass(frozen=True)
class ExampleData(TokenData):
    """A corpus of examples, ready for training and evaluation; `splits` is empty, the data are in `rows`."""

    rows: dict[str, Rows]
    """`train`, `tune`, `report`."""
    parts: tuple[str, ...]
    """Names of the scored parts."""
    levels: tuple[str, ...]
    """Names of the levels of difficulty."""
    context: int
    """Positions in a row."""

    def describe(self) -> dict[str, Any]:
        """For manifests and `tnbench data info`; the same on every machine."""
        splits = {
            name: {"rows": len(rows), "tokens": rows.inputs.size, "scored": int((rows.parts > 0).sum())}
            for name, rows in self.rows.items()
        }
        tokenizer = {"name": NO_TOKENIZER, "hash": NO_TOKENIZER, "vocab_size": self.vocab_size}
        named = {"corpus": self.corpus, "hash": self.hash, **self.facts, "tokenizer": tokenizer}
        return {**named, "parts": list(self.parts), "levels": list(self.levels), "splits": splits}

    def check_length(self, context: int) -> None:
        """Raises RequestError if `context` is not the length of the rows."""
        if context != self.context:
            raise RequestError(f"corpus {self.corpus}: its rows have {self.context} positions, not {context}")

    def metrics(self) -> tuple[str, ...]:
        """Names of the recorded values of an evaluation."""
        of_parts = [f"val_{part}_{kind}" for part in self.parts for kind in ("bits", "error")]
        return ("val_loss", "val_loss_bits", *of_parts)

    def uniform(self, metric: str) -> float:
        """A recorded value of an evaluation for a model to which all tokens are equally likely."""
        bits = float(np.log2(self.vocab_size))
        if metric.endswith("_error"):
            return 1 - 1 / self.vocab_size
        return bits * float(np.log(2)) if metric == "val_loss" else bits

    def batch(self, seed: int, step: int, sequences: int, context: int) -> Tensor:
        """The rows of optimizer step `step`, (sequences, 2, context), int64: inputs, and targets.

        Targets are `UNSCORED` where nothing is scored. A function of its arguments alone: each epoch takes
        each row once, in an order of its own.
        """
        self.check_length(context)
        rows = self.rows["train"]
        numbers = np.arange(step * sequences, (step + 1) * sequences)
        chosen = np.empty(sequences, dtype=np.int64)
        for epoch in range(int(numbers[0]) // len(rows), int(numbers[-1]) // len(rows) + 1):
            here = numbers // len(rows) == epoch
            chosen[here] = epoch_order(seed, epoch, len(rows))[numbers[here] % len(rows)]
        targets = rows.targets[chosen].astype(np.int64)
        targets[rows.parts[chosen] == 0] = UNSCORED
        return torch.stack((_int64(rows.inputs[chosen]), torch.from_numpy(targets)), dim=1)

    def epochs(self, step: int, sequences: int, context: int) -> float:
        """How often the training rows have been seen after `step` optimizer steps."""
        return step * sequences / len(self.rows["train"])

    def evaluation(self, split: str, context: int, max_bytes: int | None = None) -> ExampleSet:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The first rows of a split that together have `max_bytes` positions, all by default.

        Raises:
            RequestError: no such split, or rows of another length.
        """
        if split not in self.rows:
            raise RequestError(f"no split {split!r}, {nearest(split, self.rows)}")
        self.check_length(context)
        all_rows = self.rows[split]
        count = len(all_rows) if max_bytes is None else max(1, max_bytes // context)
        return ExampleSet(all_rows.slice(0, count), self.parts, self.levels)


def _int64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
