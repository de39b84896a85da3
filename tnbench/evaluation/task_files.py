"""What tasks consist of: the members of groups and tags, and the files of tasks that are a user's own.

A record of such a task is the answer to a request only as long as none of its files has changed.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tnbench.config import digest
from tnbench.errors import RequestError, first_line

MAGIC = set("*?[")
"""Letters that make a path a pattern."""


def closure(name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of lm-eval's index that a task, group or tag consists of, by name.

    A member that is in no index is None here; one that its group defines itself belongs to the group's file.
    """
    found: dict[str, Any] = {}
    ahead = [name]
    while ahead:
        one = ahead.pop()
        if one not in found:
            found[one] = index.get(one)
            ahead += _members(found[one], index)
    return found


def _members(entry: Any, index: Mapping[str, Any]) -> Iterator[str]:
    if entry is None:
        return
    yield from sorted(entry.tags) if entry.cfg is None else ()
    listed = entry.cfg.get("task") if entry.cfg is not None else None
    for member in listed if isinstance(listed, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict):
            known = [str(member[kind]) for kind in ("group", "task") if str(member.get(kind)) in index]
            yield from known[:1]


def content(name: str, index: Mapping[str, Any], folder: Path | None) -> str | None:
    """12 hex digits of all that tasks under `folder` are made of: their files, the Python files and the local
    data that those name. None where the name stands for tasks of lm-eval alone.

    Raises:
        RequestError: one of the files cannot be read.
    """
    if folder is None:
        return None
    parts: dict[str, Any] = {}
    for one, entry in closure(name, index).items():
        if entry is not None and entry.yaml_path is not None and entry.yaml_path.is_relative_to(folder):
            try:
                parts[one] = _of_file(entry.yaml_path, entry.cfg)
            except (OSError, ValueError, RecursionError) as error:
                raise RequestError(f"task {one} cannot be read: {first_line(error)}") from error
    return digest(parts) if parts else None


def _of_file(path: Path, values: Mapping[str, Any]) -> Any:
    home = str(path.resolve().parent)
    text = json.dumps(values, sort_keys=True, default=str).replace(home, "")
    modules = {module.parent for word in _strings(values) if (module := _module(word))}
    code = [file for place in sorted(modules) for file in sorted(place.glob("*.py"))]
    data = [values.get("dataset_path"), values.get("dataset_kwargs")]
    return [text, [_hash(file) for file in [*code, *_files(_strings(data))]]]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _module(word: str) -> Path | None:
    """The Python file of a function, which lm-eval's index writes as /folder/module.function."""
    path = Path(f"{word.rpartition('.')[0]}.py")
    return path if path.is_absolute() and "\n" not in word and path.is_file() else None


def _files(words: Iterator[str]) -> Iterator[Path]:
    """Local files that words of a data set's description name: itself, a folder's, or a pattern's."""
    for word in words:
        places = sorted(glob.glob(word, recursive=True)) if MAGIC & set(word) else [word]
        for place in map(Path, places):
            yield from sorted(place.rglob("*")) if place.is_dir() else [place]


def _hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def defined(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The names that a folder's task files define, and what is wrong with files that cannot be read, which
    lm-eval leaves out in silence."""
    from lm_eval.tasks._yaml_loader import load_yaml

    names: dict[str, list[Path]] = {}
    problems = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            values = load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever its reader and the files that it includes raise
            problems.append(f"{path} cannot be read: {first_line(error)}")
            continue
        name = values.get("group", values.get("task"))
        if isinstance(name, str):
            names.setdefault(name, []).append(path)
    return names, problems
