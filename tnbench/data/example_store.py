"""Examples in the cache: made once, opened by memory map ever after.

`<cache>/data/<hash>/` holds, per split, `<split>.inputs`, `.targets` (uint16), `.parts` (uint8) and `.levels`
(uint16), the raw arrays of `examples.Rows`, and `meta.json` (see `cache`). The hash is that of the corpus'
name, version, parameters and source data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np

from tnbench import registry
from tnbench.config import Component, digest
from tnbench.data import cache
from tnbench.data.examples import ExampleCorpus, ExampleData, NoTokenizer, Rows
from tnbench.data.progress import Meter
from tnbench.data.splits import SPLITS

FORMAT = 1
ARRAYS = {"inputs": "<u2", "targets": "<u2", "parts": "u1", "levels": "<u2"}


def prepare(component: Component, *, quiet: bool = False) -> ExampleData:
    """Open a registered corpus of examples, and make it first if need be.

    Args:
        component: its name and parameters.
        quiet: no progress bar, and no word about a damaged cache.

    Raises:
        RequestError: parameters that do not go together, source data that are not there, or a cache that
            cannot be written.
    """
    corpus: ExampleCorpus = registry.find("examples", component.name).target(**component.parameters)
    source = corpus.fingerprint()
    identity = {"examples": component.model_dump(mode="json"), "version": corpus.version, "source": source}
    folder = cache.cache_folder() / "data" / digest({**identity, "format": FORMAT})
    return cache.opened(
        folder,
        lambda: _open(component, corpus, folder),
        lambda: cache.write(folder, lambda place: _fill(component, corpus, digest(identity), place, quiet)),
        "the cached examples",
        quiet,
    )


def _open(component: Component, corpus: ExampleCorpus, folder: Path) -> ExampleData:
    meta = json.loads((folder / "meta.json").read_bytes())
    rows = {}
    for split in SPLITS:
        arrays = {
            name: np.memmap(folder / f"{split}.{name}", dtype=dtype, mode="r")
            for name, dtype in ARRAYS.items()
        }
        inputs, targets, parts = (
            arrays[name].reshape(-1, corpus.context) for name in ("inputs", "targets", "parts")
        )
        rows[split] = Rows(inputs, targets, parts, arrays["levels"])
    return ExampleData(
        corpus=str(component),
        hash=folder.name,
        tokenizer=cast(Any, NoTokenizer(corpus.vocab_size)),
        splits={},
        folder=folder,
        facts=meta["facts"],
        rows=rows,
        parts=corpus.parts,
        levels=corpus.levels,
        context=corpus.context,
    )


def _fill(
    component: Component, corpus: ExampleCorpus, identity: str, folder: Path, quiet: bool
) -> dict[str, Any]:
    content = hashlib.sha256()
    with Meter(f"making {component.name}", len(SPLITS), quiet=quiet) as meter:
        for split in SPLITS:
            rows = corpus.rows(split)
            rows.check(corpus)
            for name, dtype in ARRAYS.items():
                array = getattr(rows, name).astype(dtype)
                content.update(array.tobytes())
                array.tofile(folder / f"{split}.{name}")
            meter.advance(1)
    facts = {"corpus_hash": identity, "content_hash": content.hexdigest()[:12]}
    return {"corpus": str(component), "facts": facts}
