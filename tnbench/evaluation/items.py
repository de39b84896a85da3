"""What an evaluation says of single questions, and what follows from it for a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class Item:
    """One question and its answer."""

    id: int
    """Its number in the task's documents."""
    hash: str
    """Of the document: the same question has the same hash in every evaluation."""
    scores: dict[str, float]
    """Metric → the question's value."""
    choices: int | None = None
    """Answers to choose from."""
    gold_nats: float | None = None
    """−log p of the right answer."""
    gold_bytes: int | None = None
    """Its length."""
    answer: Any = None
    """What the model said: the likelihoods of the choices in nats, or a text."""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if value is not None}


def of_samples(samples: Sequence[Mapping[str, Any]], kind: str, task: Any = None) -> list[Item]:
    """Items of lm-eval's samples of one task, in the order of its documents.

    A task with several filters has a sample of a document for each of them: they are one item.

    Args:
        samples: with `doc`, `doc_id`, `doc_hash`, `arguments`, `resps`, `target`, `filter`, and the metrics
            by name.
        kind: the task's output type: `multiple_choice`, `loglikelihood`, `loglikelihood_rolling` or
            `generate_until`.
        task: lm-eval's, which knows the choices and which of them is right.
    """
    found: dict[int, Item] = {}
    for sample in samples:
        item = _item(sample, kind, task)
        known = found.setdefault(item.id, item)
        known.scores.update(item.scores)
    return sorted(found.values(), key=lambda item: item.id)


def _item(sample: Mapping[str, Any], kind: str, task: Any) -> Item:
    names = [name for name in sample.get("metrics", ()) if isinstance(sample.get(name), int | float)]
    scores = {label(name, sample.get("filter")): float(sample[name]) for name in names}
    known = {"id": int(sample["doc_id"]), "hash": str(sample["doc_hash"])[:12], "scores": scores}
    texts = [tuple(pair) for pair in arguments(sample["arguments"])]
    if kind == "multiple_choice":
        if hasattr(task, "doc_to_choice"):
            choices, right = choices_of(task, sample["doc"])
        else:  # a task in Python, with continuations for choices
            choices, right = [str(pair[1]) for pair in texts], sample["target"]
        nats = [float(answer[0][0]) for answer in sample["resps"][: len(choices)]]
        gold = index_of(right, choices)
        found = {} if gold is None else _right(nats[gold], str(texts[gold][1]))
        several = isinstance(right, list)  # right ones: guessing is right more often
        return Item(**known, choices=None if several else len(nats), answer=nats, **found)
    if kind == "loglikelihood":
        nats = float(sample["resps"][0][0][0])
        return Item(**known, answer=nats, **_right(nats, str(texts[0][1])))
    if kind == "loglikelihood_rolling":
        answer = sample["resps"][0][0]
        nats = float(answer[0] if isinstance(answer, tuple | list) else answer)
        return Item(**known, answer=nats, **_right(nats, str(texts[0][0])))
    return Item(**known, answer=sample["resps"][0][0])


def label(metric: str, filtered: Any) -> str:
    """A metric's name; with that of the filter, where an answer was cut out before it was scored."""
    return metric if filtered in (None, "none") else f"{metric} ({filtered})"


def arguments(given: Any) -> list[Any]:
    """Pairs of texts, whichever way lm-eval writes them."""
    if isinstance(given, Mapping):
        return [tuple(one.values()) if isinstance(one, Mapping) else one for one in given.values()]
    return list(given)


def _right(nats: float, text: str) -> dict[str, Any]:
    return {"gold_nats": -nats, "gold_bytes": len(text.encode())}


def choices_of(task: Any, document: Any) -> tuple[list[str], Any]:
    """The choices of a question, and which of them is right: an index or a text, or a list of several.

    A task whose choices stand in the contexts (WinoGrande) has one continuation for all, and the index where
    others have the question's text.
    """
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    return list(task.doc_to_choice(document)), right


def index_of(right: Any, choices: Sequence[str]) -> int | None:
    """The index of the right choice, as lm-eval's own accuracy finds it; None where there are several, or it
    is not among them."""
    if isinstance(right, int):
        return right if 0 <= right < len(choices) else None
    return choices.index(right) if right in choices else None


@dataclass(frozen=True)
class Summary:
    """A task in a few numbers."""

    items: int
    chance: float | None
    """Accuracy of guessing."""
    gold_bits_per_byte: float | None
    """Of all right answers together: bits over bytes."""
    gold_bits_per_byte_stderr: float | None


def summarise(items: Sequence[Item]) -> Summary:
    """Chance level, and bits per byte of the right answers with its standard error.

    The standard error is that of a ratio of means over items (delta method).
    """
    choices = [item.choices for item in items]
    chance = float(np.mean([1 / n for n in choices if n])) if choices and all(choices) else None
    pairs = [(item.gold_nats, item.gold_bytes) for item in items]
    if not pairs or any(nats is None or not size for nats, size in pairs):
        return Summary(len(items), chance, None, None)
    bits, sizes = np.array(pairs, dtype=float).T
    bits = bits / NATS_PER_BIT
    ratio = bits.sum() / sizes.sum()
    error = math.nan
    if len(pairs) > 1:
        error = float(np.std(bits - ratio * sizes, ddof=1) / math.sqrt(len(pairs)) / sizes.mean())
    return Summary(len(items), chance, float(ratio), error)
