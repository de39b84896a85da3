"""The shipped cloze task: which word ends a sentence of the State of the Union addresses?

Sentences come from the `report` split of the default corpus, which no run trains on. The three wrong words
have as many letters as the right one and are about as frequent in the training split, so that neither length
nor frequency tells them apart: without the context a model is right one time in four.

    python -m tnbench.evaluation.cloze        writes the file again, byte for byte the same
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tnbench.data.corpora import find_corpus
from tnbench.data.splits import divide

CORPUS = "state-of-the-union"
PATH = Path(__file__).resolve().parent / "shipped" / "cloze.jsonl"
ITEMS = 500
CONTEXT = 240
"""Bytes of text before the word, at least, where the document has them."""
RARE = 25
"""Words with fewer occurrences in the training split are neither asked for nor offered."""
SENTENCE = re.compile(r"[A-Z][^.!?\n]{40,300}? ([a-z]{5,11})[.](?=\s)")


def build() -> Iterator[dict[str, object]]:
    """The items: `context`, `choices` (with the space before the word), `label`."""
    splits = divide(CORPUS, find_corpus(CORPUS).read()).splits
    counts = Counter(re.findall(r"[a-z]+", " ".join(part.decode() for part in splits["train"])))
    words = sorted((word for word in counts if counts[word] >= RARE), key=lambda word: (counts[word], word))
    found = [item for document in splits["report"] for item in _of(document.decode(), counts, words)]
    found.sort(key=lambda item: _order(str(item["context"])))
    seen: set[object] = set()
    kept = []
    for item in found:  # each sentence once, and no word too often
        choices, label = item["choices"], item["label"]
        assert isinstance(choices, list)
        assert isinstance(label, int)
        if choices[label] in seen:
            continue
        seen.add(choices[label])
        kept.append(item)
    yield from kept[:ITEMS]


def _of(document: str, counts: Counter[str], words: list[str]) -> Iterator[dict[str, object]]:
    for match in SENTENCE.finditer(document):
        word = match[1]
        if counts[word] < RARE:
            continue
        begin = max(0, match.start() - CONTEXT)
        context = document[begin : match.start(1) - 1]
        if begin:
            context = context[context.find(" ") + 1 :]
        context = " ".join(context.split())
        near = [other for other in words if len(other) == len(word) and other != word]
        near = [other for other in near if other not in match[0]]
        near.sort(key=lambda other: (abs(counts[other] - counts[word]), _order(word + other)))
        if len(near) < 3:
            continue
        choices = sorted([word, *near[:3]], key=lambda other: _order(context + other))
        yield {
            "context": context,
            "choices": [f" {choice}" for choice in choices],
            "label": choices.index(word),
        }


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text() -> str:
    """The file."""
    return "".join(json.dumps(item) + "\n" for item in build())


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
