"""Where text comes from: shipped corpora, files, folders, and data sets of the Hugging Face hub.

Every corpus is a sequence of documents in UTF-8 and a hash of its content. What a file is, its name tells:

| ending | documents |
|---|---|
| `.txt`, `.md`, none | the file is one document |
| `.jsonl` | one a line, in the field `text_field` |

each also compressed, with `.gz` or `.xz` behind it.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tnbench.data import hub
from tnbench.errors import RequestError, nearest

SHIPPED = Path(__file__).resolve().parent / "shipped"
TEXT, LINES, COMPRESSED = (".txt", ".md"), ".jsonl", (".gz", ".xz")
ENDINGS = ".txt, .md or .jsonl, also with .gz or .xz behind it"


@dataclass(frozen=True)
class Corpus:
    """A sequence of documents."""

    name: str
    """As it was asked for."""
    fingerprint: Callable[[], str]
    """Hash of everything that the documents follow from, without reading them as text."""
    read: Callable[[], Iterator[bytes]]
    """The documents, UTF-8, none of them empty."""


def shipped() -> dict[str, Path]:
    """The corpora that come with the package, by name."""
    return {path.name.removesuffix(".jsonl.xz"): path for path in sorted(SHIPPED.glob("*.jsonl.xz"))}


def find_corpus(name: str, text_field: str = "text") -> Corpus:
    """The corpus of a name; nothing is read yet.

    Raises:
        RequestError: nothing of that name exists, or it is of no known kind. The corpus' own functions
            raise it for what cannot be read: permissions, broken compression, bad UTF-8, malformed JSON.
    """
    if name.startswith("hf:"):
        return _hub_corpus(name, text_field)
    path = shipped().get(name) or Path(name).expanduser()
    try:
        if path.is_dir():
            files = _files_of(name, path)
        elif path.is_file():
            if _kind(path) is None and path.suffix:
                raise RequestError(
                    f"corpus {name}: cannot tell what it holds; its name must end in {ENDINGS}"
                )
            files = {path.name: path}
        elif path.exists():
            raise RequestError(f"corpus {name}: neither a file nor a folder")
        else:
            raise RequestError(f"data.corpus = {name!r}: {_unknown(name)}")
    except OSError as error:
        raise RequestError(f"corpus {name}: {_reason(error)}") from error
    whole = path.is_file()  # a single file is known by its kind and content, not by its name
    return Corpus(name, partial(_hash_files, files, whole), partial(_read_files, files, text_field))


def _unknown(name: str) -> str:
    if "/" in name or name.startswith(("~", ".")) or _kind(Path(name)):
        return "no such file or folder"
    near = nearest(name, shipped())
    return (
        near
        if near.startswith("did")
        else f"{near}; or give a text file, a folder, or hf:REPOSITORY[:CONFIG]"
    )


def _kind(path: Path) -> str | None:
    """`text` or `lines` by the name's ending, None for other endings and for none at all."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "text" if last in TEXT else "lines" if last == LINES else None


def _files_of(name: str, folder: Path) -> dict[str, Path]:
    """The corpus files below a folder by relative name, sorted, without hidden ones."""
    found = {}
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if _kind(path) and path.is_file() and not any(part.startswith(".") for part in relative.parts):
            found[relative.as_posix()] = path
    if not found:
        raise RequestError(f"corpus {name}: the folder holds no file whose name ends in {ENDINGS}")
    return dict(sorted(found.items()))


def _hash_files(files: dict[str, Path], whole: bool) -> str:
    total = hashlib.sha256()
    for name, path in files.items():
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise RequestError(f"corpus {path}: {_reason(error)}") from error
        label = (
            f"{_kind(path) or 'text'}{path.suffix if path.suffix in COMPRESSED else ''}" if whole else name
        )
        total.update(f"{label}\0".encode() + content)
    return total.hexdigest()


def _read_files(files: dict[str, Path], text_field: str) -> Iterator[bytes]:
    for path in files.values():
        content = _content(path)
        documents = _json_lines(path, content, text_field) if _kind(path) == "lines" else [content]
        yield from (document for document in documents if document.strip())


def _content(path: Path) -> bytes:
    """A file's decompressed bytes, proven to be UTF-8."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        text = str(error)
        raise RequestError(
            f"corpus {path}: broken {path.suffix} file: {text[0].lower()}{text[1:]}"
        ) from error
    except OSError as error:
        raise RequestError(f"corpus {path}: {_reason(error)}") from error
    try:
        content.decode()
    except UnicodeDecodeError as error:
        value = content[error.start]
        raise RequestError(
            f"corpus {path}: not UTF-8 at byte {error.start} (0x{value:02x}); convert the file to UTF-8"
        ) from error
    return content.removeprefix(codecs.BOM_UTF8)


def _json_lines(path: Path, content: bytes, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            reason = getattr(error, "msg", str(error))
            raise RequestError(f"corpus {path}: line {number} is not JSON: {reason}") from error
        if not isinstance(record, dict):
            raise RequestError(f"corpus {path}: line {number} is not a JSON object")
        if text_field not in record:
            fields = ", ".join(record) or "none"
            raise RequestError(
                f"corpus {path}: line {number} has no field {text_field!r} (fields: {fields}); "
                "name another with data.text_field"
            )
        text = record[text_field]
        if not isinstance(text, str):
            kind = type(text).__name__
            raise RequestError(f"corpus {path}: line {number}: field {text_field!r} is no string but {kind}")
        try:
            yield text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"corpus {path}: line {number}: half a surrogate pair is no text") from error


def _hub_corpus(name: str, text_field: str) -> Corpus:
    repository, _, configuration = name.removeprefix("hf:").partition(":")
    if not repository:
        raise RequestError(f"data.corpus = {name!r}: write hf:REPOSITORY or hf:REPOSITORY:CONFIG")
    source = hub.DataSet(name, repository, configuration or None, text_field)
    return Corpus(name, source.fingerprint, source.read)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
