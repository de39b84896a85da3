"""The token cache: built once, opened by memory map ever after.

`<cache>/data/<hash>/` holds, per split, `<split>.tokens` (the raw stream, uint16 or uint32) and
`<split>.boundaries.npy` and `<split>.bytes.npy` (see `windows.Split`); `tokenizer.json` where one was
trained; and `meta.json`, which names them all with their sizes. The folder's name is the data's hash. It is
written under another name and renamed when it is complete, so a folder of that name is a whole one, whoever
else builds it at the same time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tnbench.config import DataConfig, digest
from tnbench.data import splits, tokenizers
from tnbench.data.corpora import Corpus, find_corpus
from tnbench.data.progress import Meter
from tnbench.data.tokenizers import Tokenizer
from tnbench.data.windows import Split, TokenData
from tnbench.errors import RequestError
from tnbench.records import sync

FORMAT = 1
PIECE = 1 << 20  # characters encoded in one go: bounds the memory that a long document takes
GROUP = 4 * PIECE
ABANDONED = 24 * 3600  # seconds after which an unfinished folder is taken for a dead process's
WORD_START = re.compile(r"(?<=\S) (?=\S)")


def cache_folder() -> Path:
    """`$TNBENCH_CACHE`, else `$XDG_CACHE_HOME/tnbench`, else `~/.cache/tnbench`."""
    if own := os.environ.get("TNBENCH_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "tnbench"


def prepare(config: DataConfig, *, quiet: bool = False) -> TokenData:
    """Open a corpus in tokens, and build it first if need be.

    Args:
        config: corpus, tokenizer, context and text field.
        quiet: no progress bar, and no word about a damaged cache.

    Raises:
        RequestError: an unknown or unreadable corpus or tokenizer, a corpus too short for its context, or a
            cache that cannot be written.
    """
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
    folder = cache_folder() / "data" / digest(key)
    for _ in range(3):  # more than once only where other processes rebuild the same damaged folder
        problem = _problem(folder)
        if problem is None:
            try:
                data = _open(config, folder, tokenizer)
            except FileNotFoundError:
                continue
            data.check_length(config.context)
            return data
        if folder.exists() and not quiet:
            print(
                f"tnbench: the token cache {folder} is damaged ({problem}): building it again",
                file=sys.stderr,
            )
        _build(corpus, corpus_hash, config.tokenizer, tokenizer, folder, quiet)
    raise RequestError(f"the token cache {folder} changes while it is used: remove it, or set TNBENCH_CACHE")


def _problem(folder: Path) -> str | None:
    """What is wrong with a cached folder, judged by the files' sizes alone."""
    try:
        sizes = json.loads((folder / "meta.json").read_bytes())["files"]
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {(error.strerror or str(error)).lower()}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "meta.json cannot be read"
    return None


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
    return TokenData(config.corpus, folder.name, tokenizer, parts, folder, meta["facts"])


def _build(
    corpus: Corpus, corpus_hash: str, name: str, tokenizer: Tokenizer | None, folder: Path, quiet: bool
) -> None:
    """Divide, tokenize and write a corpus, then move it to its place."""
    division = splits.divide(corpus.name, corpus.read())
    if corpus.fingerprint() != corpus_hash:
        raise RequestError(f"corpus {corpus.name} changed while it was read; run the command again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = _fresh(folder)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        if tokenizer is None:
            tokenizer = _train(name, division.splits["train"], corpus.name, quiet)
            tokenizer.save(temporary / "tokenizer.json")
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
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        meta = {
            "corpus": corpus.name,
            "tokenizer": name,
            "dtype": np.dtype(dtype).name,
            "facts": facts,
            "files": files,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        _install(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _install(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to its place, unless another process has put a good one there."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
        if _problem(folder) is None:
            return
        aside = _fresh(folder)
        try:
            os.rename(folder, aside / "damaged")
            os.rename(temporary, folder)
        except OSError:
            if _problem(folder) is not None:  # nobody else has put a good one there either
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _fresh(folder: Path) -> Path:
    """A new hidden folder beside a folder; unlike tempfile's, readable by whoever shares the cache."""
    path = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    path.mkdir()
    return path


def _sweep(root: Path) -> None:
    """Remove what processes that died left behind long ago."""
    for path in root.glob(".*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _unwritable(error: OSError) -> RequestError:
    reason = (error.strerror or str(error)).lower()
    return RequestError(
        f"cannot write the token cache {cache_folder()}: {reason}; name another folder with TNBENCH_CACHE"
    )
