"""The token cache: built once, opened by memory map ever after.

`<cache>/data/<hash>/` holds, per split, `<split>.tokens` (the raw stream, uint16 or uint32) and
`<split>.boundaries.npy` and `<split>.bytes.npy` (see `windows.Split`); `tokenizer.json` where one was
trained; and `meta.json` (see `cache`). The folder's name is the data's hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tnbench.config import Component, DataConfig, digest
from tnbench.data import cache, example_store, splits, tokenizers
from tnbench.data.corpora import Corpus, find_corpus
from tnbench.data.progress import Meter
from tnbench.data.tokenizers import Tokenizer
from tnbench.data.windows import Split, TokenData
from tnbench.errors import RequestError

FORMAT = 1
PIECE = 1 << 20  # characters encoded in one go: bounds the memory that a long document takes
GROUP = 4 * PIECE
DIGEST = re.compile(r"[0-9a-f]{12}")
WORD_START = re.compile(r"(?<=\S) (?=\S)")


def prepare(config: DataConfig, *, quiet: bool = False) -> TokenData:
    """Open a corpus in tokens, text or examples, and build it first if need be.

    Args:
        config: corpus, tokenizer, context and text field.
        quiet: no progress bar, and no word about a damaged cache.

    Raises:
        RequestError: an unknown or unreadable corpus or tokenizer, a corpus too short for its context, or a
            cache that cannot be written.
    """
    if isinstance(config.corpus, Component):
        return example_store.prepare(config.corpus, quiet=quiet)
    if (Path(config.corpus).expanduser() / "meta.json").is_file():
        return _prepared(Path(config.corpus).expanduser(), config)
    corpus = find_corpus(config.corpus, config.text_field)
    load = tokenizers.find_tokenizer(config.tokenizer)
    tokenizer = load() if load else None
    corpus_hash = corpus.fingerprint()
    key = {
        "corpus": corpus_hash,
        "text_field": config.text_field,
        "tokenizer": tokenizer.hash if tokenizer else config.tokenizer,
        "rules": [splits.RULE, FORMAT],
    }
    folder = cache.cache_folder() / "data" / digest(key)
    data = cache.opened(
        folder,
        lambda: _open(config, folder, tokenizer),
        lambda: _build(corpus, corpus_hash, config.tokenizer, tokenizer, folder, quiet),
        "the token cache",
        quiet,
    )
    data.check_length(config.context)
    return data


def _prepared(folder: Path, config: DataConfig) -> TokenData:
    """A folder of a token cache, perhaps another machine's, in place of the corpus that it was made of.

    Raises:
        RequestError: it is damaged, has lost its name, or was made with another tokenizer.
    """
    name = f"data.corpus = {config.corpus}"
    wrong = cache.problem(folder)
    if wrong is not None:
        raise RequestError(f"{name}: {wrong}; copy the folder again, or prepare the corpus")
    if not DIGEST.fullmatch(folder.resolve().name):
        raise RequestError(f"{name}: the folder must keep its name in the cache, which is the data's hash")
    made = json.loads((folder / "meta.json").read_bytes()).get("tokenizer")
    if made is None:
        raise RequestError(f"{name}: it holds examples; name their corpus, which is made anew in seconds")
    if made != config.tokenizer:
        raise RequestError(f"{name}: its text is in tokens of {made}; set data.tokenizer={made}")
    load = tokenizers.find_tokenizer(config.tokenizer)
    data = _open(config, folder, load() if load else None)
    data.check_length(config.context)
    return data


def _open(config: DataConfig, folder: Path, tokenizer: Tokenizer | None) -> TokenData:
    meta = json.loads((folder / "meta.json").read_bytes())
    if tokenizer is None:
        tokenizer = tokenizers.load_bpe(config.tokenizer, folder / "tokenizer.json")
    parts = {
        name: Split(
            tokens=np.memmap(folder / f"{name}.tokens", dtype=meta["dtype"], mode="r"),
            boundaries=np.load(folder / f"{name}.boundaries.npy"),
            document_bytes=np.load(folder / f"{name}.bytes.npy"),
        )
        for name in splits.SPLITS
    }
    return TokenData(str(config.corpus), folder.name, tokenizer, parts, folder, meta["facts"])


def _build(
    corpus: Corpus, corpus_hash: str, name: str, tokenizer: Tokenizer | None, folder: Path, quiet: bool
) -> None:
    """Divide, tokenize and write a corpus, then move it to its place."""
    division = splits.divide(corpus.name, corpus.read())
    if corpus.fingerprint() != corpus_hash:
        raise RequestError(f"corpus {corpus.name} changed while it was read; run the command again")

    def fill(temporary: Path) -> dict[str, Any]:
        nonlocal tokenizer
        if tokenizer is None:
            trained = _train(name, division.splits["train"], corpus.name, quiet)
            trained.save(temporary / "tokenizer.json")
            tokenizer = trained
        facts = {
            "corpus_hash": corpus_hash[:12],
            "divided_by": division.by,
            "duplicates_dropped": division.duplicates,
            "unused_bytes": division.unused_bytes,
        }
        dtype = np.uint16 if tokenizer.vocab_size <= 0xFFFF else np.uint32
        total = sum(len(document) for part in division.splits.values() for document in part)
        with Meter(f"tokenizing {corpus.name}", total, quiet=quiet) as meter:
            for split, documents in division.splits.items():
                _write_split(temporary, split, documents, tokenizer, dtype, meter)
        return {"corpus": corpus.name, "tokenizer": name, "dtype": np.dtype(dtype).name, "facts": facts}

    cache.write(folder, fill)


def _train(name: str, documents: list[bytes], corpus: str, quiet: bool) -> tokenizers.Subwords:
    size = tokenizers.bpe_size(name)
    assert size is not None, name
    with Meter(f"training the {name} tokenizer", sum(map(len, documents)), quiet=quiet) as meter:

        def texts() -> Iterator[str]:
            for document in documents:
                yield from _pieces(document.decode())
                meter.advance(len(document))

        return tokenizers.train_bpe(name, size, texts(), corpus)


def _write_split(
    folder: Path, split: str, documents: list[bytes], tokenizer: Tokenizer, dtype: Any, meter: Meter
) -> None:
    boundaries = [0]
    end = np.array([tokenizer.end_of_text], dtype=dtype).tobytes()
    with open(folder / f"{split}.tokens", "wb") as file:
        file.write(end)
        position = 1
        for group in _groups(documents):
            encoded = tokenizer.encode_batch([text for text, _ in group])
            for (_, last), tokens in zip(group, encoded, strict=True):
                file.write(tokens.astype(dtype, copy=False).tobytes())
                position += len(tokens)
                if last:
                    file.write(end)
                    boundaries.append(position)
                    position += 1
            meter.advance(sum(len(text.encode()) for text, _ in group))
    np.save(folder / f"{split}.boundaries.npy", np.array(boundaries, dtype=np.int64))
    np.save(folder / f"{split}.bytes.npy", np.array([len(d) for d in documents], dtype=np.int64))


def _groups(documents: Iterable[bytes]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents and whether each is a document's last, some megabytes at a time."""
    group: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        pieces = list(_pieces(document.decode()))
        for number, piece in enumerate(pieces, start=1):
            group.append((piece, number == len(pieces)))
            size += len(piece)
            if size >= GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces, cut before a single space between words.

    Word-wise tokenizers begin a new word there in any case, so the pieces have the tokens of the whole.
    """
    start = 0
    while len(text) - start > PIECE:
        cut = next(
            (m.start() for m in WORD_START.finditer(text, start + PIECE - 4096, start + PIECE)), start + PIECE
        )
        yield text[start:cut]
        start = cut
    yield text[start:]
