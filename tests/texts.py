"""Texts, corpora and requests for data, as the tests of the data use them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnbench.config import DataConfig
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WORDS = ["the", "of", "and", "to", "in", "that", "state", "union", "congress", "law", "people", "日本", "é"]


def prose(seed: int, size: int) -> str:
    """About `size` bytes of words in lines, another text for each seed."""
    rng = np.random.default_rng(seed)
    lines = []
    while sum(map(len, lines)) < size:
        words = [*rng.choice(WORDS, 9), str(rng.integers(10**6))]
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return path


def write_task(folder: Path, documents: list[dict[str, Any]]) -> None:
    """A new folder with a task of choices for lm-eval, `mine`, and its questions."""
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (folder / "mine.yaml").write_text(TASK.format(data=folder / "data.jsonl"))


def config(corpus: Path | str, **values: Any) -> DataConfig:
    return DataConfig(corpus=str(corpus), **{"context": 32, **values})


def complaint(**values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        prepare(config(**values))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def texts_of(data: TokenData, split: str) -> list[str]:
    """The documents of a split, from its tokens."""
    part = data.splits[split]
    return [data.tokenizer.decode(part.tokens[a + 1 : b].tolist()) for a, b in pairwise(part.boundaries)]
