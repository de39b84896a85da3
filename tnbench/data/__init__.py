"""Text as token files and windows, and examples as rows.

    data = prepare(DataConfig(corpus="state-of-the-union", tokenizer="bytes", context=256))
    data.batch(seed=0, step=0, sequences=16, context=256)          # (16, 257)
    data.evaluation("report", context=256).batches(sequences=16)   # inputs and targets, each target once

A corpus (`corpora`) is divided into three splits that share no document, or where it has too few, no block
of text (`splits`): `train`, `tune` (for choosing hyperparameters) and `report` (for the reported numbers).
Tokenizers (`tokenizers`) see only the training split when they are trained. The tokens are cached on disk
and memory-mapped (`store`), and cut into windows on the fly (`windows`).

Examples (`examples`) are rows of one length in which some tokens are scored: synthetic `tasks`, and other
`domains` than text. They are made from their parameters and cached likewise (`example_store`).
"""

from __future__ import annotations

from tnbench.data.cache import cache_folder
from tnbench.data.corpora import Corpus, find_corpus, shipped
from tnbench.data.examples import ExampleData, ExampleSet
from tnbench.data.splits import SPLITS
from tnbench.data.store import prepare
from tnbench.data.tokenizers import Tokenizer
from tnbench.data.windows import EvaluationSet, Split, TokenData

__all__ = [
    "SPLITS",
    "Corpus",
    "EvaluationSet",
    "ExampleData",
    "ExampleSet",
    "Split",
    "TokenData",
    "Tokenizer",
    "cache_folder",
    "find_corpus",
    "prepare",
    "shipped",
]
