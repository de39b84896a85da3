"""Prepared data: token streams, the windows that training sees, and the windows of an evaluation.

The tokens of a split are one stream, `E d_1 E d_2 E ... d_n E`, where E is end of text. A window of context C
is C + 1 tokens: C inputs and, shifted by one, C targets. Consecutive windows share a token, so that cutting
loses no target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tnbench.data.tokenizers import Tokenizer
from tnbench.errors import RequestError, nearest


@dataclass(frozen=True)
class Split:
    """The token stream of a split and where its documents lie."""

    tokens: np.ndarray
    """(tokens,), uint16 or uint32, memory-mapped, with end of text around every document."""
    boundaries: np.ndarray
    """(documents + 1,), int64: the positions of end of text; document i lies between entries i and i + 1."""
    document_bytes: np.ndarray
    """(documents,), int64: bytes of text in UTF-8."""

    @property
    def documents(self) -> int:
        """Documents, or pieces of documents."""
        return len(self.document_bytes)

    @property
    def text_bytes(self) -> int:
        """Bytes of text in UTF-8."""
        return int(self.document_bytes.sum())


@dataclass(frozen=True)
class EvaluationSet:
    """Text on which every model of the same context is evaluated with the same windows.

    Every token but the first end of text is a target exactly once, and so is every byte of text:

        bits per byte = (sum of the targets' losses in nats) / (ln 2 · text_bytes).
    """

    stream: np.ndarray
    """(tokens + 1,): the token stream."""
    context: int
    """Targets in a full window."""
    text_bytes: int
    """Bytes of text in UTF-8."""
    documents: int
    """Documents, or pieces of documents."""

    @property
    def tokens(self) -> int:
        """Number of targets."""
        return len(self.stream) - 1

    def batches(self, sequences: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, each (at most `sequences`, context), int64.

        Windows do not overlap. What remains at the end, shorter than the context, comes as a last batch of
        one window.
        """
        assert sequences > 0, sequences
        full = self.tokens // self.context
        for first in range(0, full, sequences):
            count = min(sequences, full - first)
            start, size = first * self.context, count * self.context
            part = _int64(self.stream[start : start + size + 1])
            yield part[:-1].view(count, self.context), part[1:].view(count, self.context)
        if full * self.context < self.tokens:
            part = _int64(self.stream[full * self.context :])
            yield part[None, :-1], part[None, 1:]


@dataclass(frozen=True)
class TokenData:
    """A corpus in tokens, ready for training and evaluation."""

    METRICS: ClassVar[tuple[str, ...]] = ("val_loss", "val_loss_bits", "val_bits_per_byte")
    """Names of the recorded values of an evaluation of text."""

    corpus: str
    """The corpus as it was asked for."""
    hash: str
    """12 hex digits that name the content: corpus, tokenizer, and how it was divided; not the context."""
    tokenizer: Tokenizer
    """What made the tokens."""
    splits: dict[str, Split]
    """`train`, `tune`, `report`."""
    folder: Path
    """Where the tokens lie on disk."""
    facts: dict[str, Any]
    """What building it found: hash of the corpus, how it was divided, what was dropped."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    def describe(self) -> dict[str, Any]:
        """For manifests and `tnbench data info`; the same on every machine."""
        splits = {
            name: {
                "documents": split.documents,
                "tokens": len(split.tokens),
                "bytes": split.text_bytes,
                "bytes_per_token": round(split.text_bytes / len(split.tokens), 4),
            }
            for name, split in self.splits.items()
        }
        tokenizer = {
            "name": self.tokenizer.name,
            "hash": self.tokenizer.hash,
            "vocab_size": self.tokenizer.vocab_size,
            "end_of_text": self.tokenizer.end_of_text,
        }
        return {
            "corpus": self.corpus,
            "hash": self.hash,
            **self.facts,
            "tokenizer": tokenizer,
            "splits": splits,
        }

    def check_length(self, context: int) -> None:
        """Every split must fill at least one window.

        Raises:
            RequestError: one has fewer than context + 1 tokens.
        """
        name, split = min(self.splits.items(), key=lambda item: len(item[1].tokens))
        tokens = len(split.tokens)
        if tokens < context + 1:
            raise RequestError(
                f"corpus {self.corpus}: its {name} split has {tokens} tokens, shorter than one context of "
                f"{context}; use a longer corpus or data.context at most {tokens - 1}"
            )

    def _windows(self, context: int) -> int:
        """Training windows in an epoch."""
        self.check_length(context)
        return (len(self.splits["train"].tokens) - 1) // context

    def metrics(self) -> tuple[str, ...]:
        """Names of the recorded values of an evaluation."""
        return self.METRICS

    def uniform(self, metric: str) -> float:
        """A recorded value of an evaluation for a model to which all tokens are equally likely."""
        text, bits = self.splits["tune"], math.log2(self.vocab_size)
        return {
            "val_loss": bits * math.log(2),
            "val_loss_bits": bits,
            "val_bits_per_byte": bits * (len(text.tokens) - 1) / text.text_bytes,
        }[metric]

    def batch(self, seed: int, step: int, sequences: int, context: int) -> Tensor:
        """The training windows of optimizer step `step`, (sequences, context + 1), int64.

        A function of its arguments alone. Each epoch lays windows end to end from an offset of its own and
        takes each once, in an order of its own. The stream is a ring for this: its last and first end of text
        are one. Targets left over at the ring's end, fewer than a window, fall elsewhere in the next epoch.

        Raises:
            RequestError: a split is shorter than one context.
        """
        assert step >= 0, step
        assert sequences > 0, sequences
        tokens = self.splits["train"].tokens
        ring, windows = len(tokens) - 1, self._windows(context)
        numbers = np.arange(step * sequences, (step + 1) * sequences)
        starts = np.empty(sequences, dtype=np.int64)
        for epoch in range(int(numbers[0]) // windows, int(numbers[-1]) // windows + 1):
            here = numbers // windows == epoch
            offset, order = _epoch(seed, epoch, windows, ring)
            starts[here] = offset + order[numbers[here] % windows] * context
        return _int64(tokens[(starts[:, None] + np.arange(context + 1)) % ring])

    def epochs(self, step: int, sequences: int, context: int) -> float:
        """How often the training windows have been seen after `step` optimizer steps."""
        return step * sequences / self._windows(context)

    def evaluation(self, split: str, context: int, max_bytes: int | None = None) -> EvaluationSet:
        """The first documents of a split that together have `max_bytes` bytes of text, all by default.

        Raises:
            RequestError: no such split, or one that is shorter than one context.
        """
        if split not in self.splits:
            raise RequestError(f"no split {split!r}, {nearest(split, self.splits)}")
        self.check_length(context)
        chosen = self.splits[split]
        documents = chosen.documents
        if max_bytes is not None:
            assert max_bytes > 0, max_bytes
            reached = int(np.searchsorted(np.cumsum(chosen.document_bytes), max_bytes)) + 1
            documents = min(documents, reached)
        stream = chosen.tokens[: int(chosen.boundaries[documents]) + 1]
        return EvaluationSet(stream, context, int(chosen.document_bytes[:documents].sum()), documents)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, ring: int) -> tuple[int, np.ndarray]:
    """Where the first window of an epoch starts, and the order of the windows, (windows,), int64."""
    # Raw Philox output is fixed by its definition; numpy's shuffles may change from release to release.
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(windows + 1)
    return int(raw[0] % np.uint64(ring)), np.argsort(raw[1:], kind="stable")


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order in which an epoch takes rows of examples, (rows,), int64."""
    return _epoch(seed, epoch, rows, 1)[1]


def _int64(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))
