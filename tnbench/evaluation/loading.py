"""A run's model and tokenizer, from its record alone."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from tnbench import registry
from tnbench.config import RunConfig, check
from tnbench.data import Tokenizer, cache_folder, prepare
from tnbench.data.tokenizers import find_tokenizer, load_bpe
from tnbench.errors import RequestError, nearest, shortened
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.training.checkpoint import CheckpointError, load_weights


class LoadedRun(NamedTuple):
    """A finished run, ready to be used."""

    model: LanguageModel
    """With its final weights, in fp32."""
    tokenizer: Tokenizer
    """The one that it was trained with."""
    manifest: Mapping[str, Any]
    """Its record."""


@contextmanager
def readable() -> Iterator[None]:
    """A file or folder that a request names and that cannot be read makes it a wrong one."""
    try:
        yield
    except (PermissionError, NotADirectoryError) as error:
        raise RequestError(f"{error.filename} cannot be read: {str(error.strerror).lower()}") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise RequestError(f"{shortened(error.filename)} is too long for a name") from error


@readable()
def load_run(name: str, results: Path, device: torch.device | str = "cpu") -> LoadedRun:
    """The model of a finished run with its final weights, and its tokenizer.

    The model takes `implementation` auto: all compute the same, and the run's own may not run here.

    Args:
        name: a run id, which is looked for in all suites under `results`, a run folder, or its manifest.json.
        results: the folder that holds the suites' results folders.
        device: where the model is put.

    Raises:
        RequestError: there is no such run, it has no final weights, they are damaged, or its tokenizer cannot
            be had.
    """
    folder = find_run(name, results)
    manifest = finished(folder)
    config, data = _config(folder, manifest), _recorded_data(folder, manifest)
    tokenizer = _tokenizer(folder, config, data)
    model_config = config.model.model_copy(update={"implementation": "auto"})
    model = LanguageModel(model_config, tokenizer.vocab_size, config.data.context)
    try:
        load_weights(folder.weights, model)
    except CheckpointError as error:
        raise RequestError(f"run {folder.id} is damaged: {error}; {_again(folder)}") from error
    return LoadedRun(model.to(device), tokenizer, manifest)


@readable()
def find_run(name: str, results: Path) -> RunFolder:
    """The folder of a run.

    Args:
        name, results: as in `load_run`; a path comes before a run id.

    Raises:
        RequestError: there is none.
    """
    if not name.strip():
        raise RequestError("an empty name: give a run id, a run folder or its manifest.json")
    path = Path(name)
    if path.name == "manifest.json":
        path = path.parent
    if _exists(path / "manifest.json"):
        return RunFolder(path.resolve())
    if not results.is_dir() and not _exists(path):
        what = "is no folder" if results.exists() else "is not there"
        raise RequestError(
            f"no run {shortened(name)}: {results}, in which runs are looked for, {what}; name another with "
            "--results, or the run's folder"
        )
    suites = sorted(path.parent for path in results.glob("*/runs") if path.is_dir())
    plain = Path(name).name == name != ".."
    places = [suite / "runs" / name for suite in suites if plain and _exists(suite / "runs" / name)]
    if len(places) > 1:
        raise RequestError(f"run {name} is in {' and in '.join(map(str, places))}; name its folder")
    if places:
        return RunFolder(places[0])
    if _exists(path):
        raise RequestError(f"{path} is no run folder: it holds no manifest.json")
    ids = [run.name for suite in suites for run in sorted((suite / "runs").iterdir()) if run.is_dir()]
    begun = [one for one in ids if name and one.startswith(name)]
    near = f"did you mean {begun[0]}?" if begun else nearest(name, ids)
    if not near.startswith("did"):
        near = f"it has {len(ids) or 'no'} run{'' if len(ids) == 1 else 's'}"
    raise RequestError(f"{results} has no run {shortened(name)}, {near}")


def _exists(path: Path) -> bool:
    """Whether there is such a path; a name that is too long for one is none."""
    try:
        return path.exists()
    except OSError:
        return False


def _again(folder: RunFolder) -> str:
    """How to have a run's weights once more; a repeat does not touch its original."""
    place = folder.path.parent.parent.parent / "repeats"
    command = (
        "tnbench",
        "train",
        "--from",
        str(folder.manifest),
        "--keep",
        "weights",
        "--results",
        str(place),
    )
    return f"train it again with {shlex.join(command)}"


@readable()
def finished(folder: RunFolder) -> dict[str, Any]:
    """The manifest of a run that has its final weights.

    Raises:
        RequestError: it has none, they were cut off, or cannot be read.
    """
    manifest = folder.read_manifest()
    if manifest is None:
        raise RequestError(f"{folder.path}: {folder.problem() or 'it holds no manifest.json'}")
    outcome = manifest.get("outcome")
    if outcome in (None, "interrupted"):
        raise RequestError(
            f"run {folder.id} has not finished: final weights are written at the end ({folder.manifest})"
        )
    if outcome != "finished":
        how, reason = outcome.replace("_", " "), manifest.get("reason")
        raise RequestError(f"run {folder.id} has no final weights, it ended so: {how}, {reason}")
    if not folder.weights.exists():
        raise RequestError(f"run {folder.id} kept no weights (--keep none); {_again(folder)}")
    if not os.access(folder.weights, os.R_OK):
        raise RequestError(f"{folder.weights} cannot be read: permission denied")
    require_whole(folder.weights, f"run {folder.id}", _again(folder))
    return manifest


def require_whole(weights: Path, owner: str, cure: str) -> None:
    """Raises RequestError for a file of weights that was cut off; its content is not read here."""
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{owner} is damaged: {weights.name} cannot be read: {error}; {cure}") from error


def _config(folder: RunFolder, manifest: Mapping[str, Any]) -> RunConfig:
    if not isinstance(manifest.get("config"), dict):
        raise RequestError(f"{folder.manifest} is no manifest of a training run: it has no config")
    registry.load()
    try:
        return check(RunConfig, manifest["config"], "config")
    except RequestError as error:
        raise RequestError(f"{folder.manifest}: {error}") from error


def _recorded_data(folder: RunFolder, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Hashes of the data and of the tokenizer."""
    try:
        return str(manifest["data"]["hash"]), str(manifest["data"]["tokenizer"]["hash"])
    except (KeyError, TypeError) as error:
        raise RequestError(
            f"{folder.manifest} does not say which tokenizer the run was trained with"
        ) from error


def _tokenizer(folder: RunFolder, config: RunConfig, recorded: tuple[str, str]) -> Tokenizer:
    """The tokenizer that the run was trained with; a trained one from the token cache, or trained again."""
    name, (data_hash, expected) = config.data.tokenizer, recorded
    try:
        load = find_tokenizer(name)
        cached = cache_folder() / "data" / data_hash / "tokenizer.json"
        if load is not None:
            tokenizer = load()
        elif cached.is_file():
            tokenizer = load_bpe(name, cached)
        else:
            tokenizer = prepare(config.data).tokenizer
    except RequestError as error:
        raise RequestError(f"run {folder.id}: its tokenizer {name} cannot be had: {error}") from error
    if tokenizer.hash != expected:
        raise RequestError(
            f"run {folder.id} was trained with another tokenizer {name}: its hash was {expected}, "
            f"that of the one found now is {tokenizer.hash}"
        )
    return tokenizer
