"""The files of a checkpoint in OpenNLPLab's layout, read without executing anything that they hold."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tnbench.data import hub
from tnbench.errors import RequestError, first_line, shortened, shown

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, the first that is there."""
HUB = "hf:"
POINTER = b"version https://git-lfs.github.com/spec"


def locate(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself, or a local copy of the hub's `hf:NAME`.

    From the hub come configuration, tokenizer and weights (`.bin` only where there are no safetensors), and
    no code.

    Raises:
        RequestError: there is no such folder, or the hub or its repository cannot be reached.
    """
    text = str(name)
    if text.startswith(HUB) and len(text) > len(HUB):
        return _fetch(text, text.removeprefix(HUB))
    folder = Path(name).expanduser()
    if not text.strip():
        raise RequestError("an empty name: give the folder of a checkpoint, or hf:NAME")
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError:  # too long for a name
        there = is_folder = False
    if not is_folder:
        raise RequestError(
            f"no checkpoint {shortened(text)}: {'it is a file' if there else 'no such folder'}"
        )
    return folder


def _fetch(name: str, repository: str) -> Path:
    import huggingface_hub

    with hub.reach(repository, "model") as reached:
        try:
            for weights in ("*.safetensors", "*.bin"):
                wanted = ["*.json", "tokenizer.model", weights]
                folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
                if next(folder.glob(weights), None) is not None:
                    break
        except Exception as error:
            raise hub.failure(f"checkpoint {name}", reached, error) from error
    return folder


def require_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        RequestError: it cannot be read, is empty, or stands for a file that git-lfs has not fetched.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
            _require_fetched(path, start)
            return start + file.read()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}") from error


def _require_fetched(path: Path, start: bytes) -> None:
    if not start:
        raise RequestError(f"{path} is empty; copy it again")
    if start == POINTER:
        raise RequestError(f"{path} is a pointer of git-lfs, not the file itself; run git lfs pull")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: the file is missing, cannot be read, or holds something else.
    """
    if not path.is_file():
        raise RequestError(
            f"{path.parent} holds no {path.name}: it is no checkpoint in TransNormerLLM's layout"
        )
    try:
        values = json.loads(require_content(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is no valid JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path}: expected a JSON object, got {shortened(values)}")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, mapped from their files: nothing is copied before it is used.

    Raises:
        RequestError: there are no weights, a file is missing or damaged or holds something else than
            tensors, or the index and the files do not agree.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise RequestError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)}")
    if path.suffix != ".json":
        return _read(path)
    tensors: dict[str, Tensor] = {}
    for file, names in _index(path).items():
        if not (folder / file).is_file():
            raise RequestError(f"{path} names {file}, which is not there; copy the whole checkpoint")
        found = _read(folder / file)
        if found.keys() != names:
            wrong = [
                f"{named(keys)} {where}"
                for keys, where in (
                    (names - found.keys(), "which it does not hold"),
                    (found.keys() - names, "left out by the index"),
                )
                if keys
            ]
            raise RequestError(f"{path} does not fit {file}: {'; '.join(wrong)}")
        tensors |= found
    return tensors


def _index(path: Path) -> dict[str, set[str]]:
    """The names of the tensors by file."""
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise RequestError(f"{path} has no weight_map: it is no index of weights")
    files: dict[str, set[str]] = {}
    for name, file in weights.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".."):
            raise RequestError(f"{path}: {shown(name)} is in {shortened(file)}, which is no file's name")
        files.setdefault(file, set()).add(name)
    return files


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            _require_fetched(path, file.read(len(POINTER)))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}") from error
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RequestError(f"{path} is cut off or damaged ({first_line(error)}); copy it again") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"{path} is damaged, or holds more than tensors: no code of a checkpoint is executed"
        ) from error
    except Exception as error:  # the unpickler meets damage with whatever its Python code raises
        raise RequestError(f"{path} is cut off or damaged; copy it again") from error
    if not isinstance(values, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items()
    ):
        raise RequestError(f"{path} is no checkpoint: expected tensors by name")
    return values


def named(names: Iterable[str]) -> str:
    """Names as a message lists them: all of a few, else the first and how many more.

    >>> named(["b", "a"]), named("fedcba")
    ('a, b', 'a, b, c, d and 2 more')
    """
    ordered = sorted(names)
    if len(ordered) <= 5:
        return ", ".join(map(shown, ordered))
    return f"{', '.join(map(shown, ordered[:4]))} and {len(ordered) - 4} more"
