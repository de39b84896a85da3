"""Three splits that share no text: `train`, `tune` and `report`.

`tune` is for choosing hyperparameters and for validation curves, `report` for the numbers that are reported.
Each gets about a twentieth of the text. Whole documents are assigned where that is possible, in an order
that their own hashes give, so that it depends on nothing but the corpus; exact duplicates are dropped first.
A corpus of few documents is cut into blocks instead, spread over the whole text, with unused text between
blocks of different splits.

The division comes before the tokenizer, so every tokenizer is evaluated on the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tnbench.errors import RequestError

SPLITS = ("train", "tune", "report")
HELD_OUT = ("tune", "report")
RULE = 1
"""Version of the rule, part of the data's hash."""

SHARE = 20  # one part in 20 for each held-out split
SEGMENT = 1 << 18  # bytes of text with one block of each held-out split in it
GAP = 1 << 10  # bytes left unused between blocks of different splits
REACH = 128  # bytes within which a cut looks for the end of a line or a word
SMALLEST = 8 * GAP


@dataclass(frozen=True)
class Division:
    """A corpus in three parts."""

    splits: dict[str, list[bytes]]
    """Documents, or pieces of documents, by split."""
    by: str
    """`documents` or `blocks`."""
    duplicates: int
    """Documents dropped because they equal another one."""
    unused_bytes: int
    """Text between the blocks."""


def divide(name: str, documents: Iterable[bytes]) -> Division:
    """Divide a corpus.

    Raises:
        RequestError: no text at all, or less than 8 KiB of it and too few documents.
    """
    distinct: dict[bytes, bytes] = {}
    count = 0
    for document in documents:
        count += 1
        distinct.setdefault(hashlib.sha256(document).digest(), document)
    if not distinct:
        raise RequestError(f"corpus {name} is empty: no document with text in it")
    splits, by = _by_documents(distinct), "documents"
    if splits is None:
        splits, by = _by_blocks(name, list(distinct.values())), "blocks"
    used = sum(len(document) for part in splits.values() for document in part)
    total = sum(map(len, distinct.values()))
    return Division(splits, by, count - len(distinct), total - used)


def _by_documents(distinct: dict[bytes, bytes]) -> dict[str, list[bytes]] | None:
    """Whole documents; None if a held-out split would be far from its share."""
    total = sum(map(len, distinct.values()))
    order = sorted(distinct, key=lambda digest: hashlib.sha256(b"tnbench split\0" + digest).digest())
    splits: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    filled = dict.fromkeys(HELD_OUT, 0)
    for digest in order:
        document = distinct[digest]
        for name in HELD_OUT:
            after = filled[name] + len(document)
            if filled[name] * SHARE < total and after * SHARE <= 2 * total:
                filled[name] = after
                splits[name].append(document)
                break
        else:
            splits["train"].append(document)
    if any(2 * size * SHARE < total for size in filled.values()):
        return None
    return splits


def _by_blocks(name: str, documents: list[bytes]) -> dict[str, list[bytes]]:
    """Blocks of the concatenated documents; none reaches over a document's end."""
    ends = np.cumsum([len(document) for document in documents])
    total = int(ends[-1])
    if total < SMALLEST:
        raise RequestError(
            f"corpus {name} has {total:,} bytes of text in {len(documents)} document(s): too little for a "
            f"training and two validation splits; use at least {SMALLEST:,}"
        )
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for split, low, high in _blocks(total):
        for index in range(int(np.searchsorted(ends, low, side="right")), len(documents)):
            document = documents[index]
            start = int(ends[index]) - len(document)
            if start >= high:
                break
            piece = document[_cut(document, low - start, 1) : _cut(document, high - start, -1)]
            if piece.strip():
                splits[split].append(piece)
    return splits


def _blocks(total: int) -> list[tuple[str, int, int]]:
    """(split, first byte, byte after the last) over a text: train, tune, train, report, and again."""
    blocks = []
    segments = max(1, total // SEGMENT)
    for segment in range(segments):
        low, high = segment * total // segments, (segment + 1) * total // segments
        held_out = (high - low) // SHARE
        middle = (low + high) // 2
        blocks += [
            ("train", low + (GAP if segment else 0), middle - GAP),
            ("tune", middle, middle + held_out),
            ("train", middle + held_out + GAP, high - held_out - GAP),
            ("report", high - held_out, high),
        ]
    return blocks


def _cut(document: bytes, position: int, direction: int) -> int:
    """The nearest good place to cut: after a line, else after a word, else between two characters.

    It lies in the given direction (1: at or behind the position, -1: at or before it): blocks only shrink.
    """
    if position <= 0 or position >= len(document):
        return min(max(position, 0), len(document))
    for mark in (b"\n", b" "):
        if direction > 0:
            found = document.find(mark, position - 1, position + REACH)
        else:
            found = document.rfind(mark, max(position - REACH, 0), position)
        if found >= 0:
            return found + 1
    while 0 < position < len(document) and document[position] & 0xC0 == 0x80:
        position += direction
    return position
