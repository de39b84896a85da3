"""Folders that `tnbench export` has written, as models of ours again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

from tnbench import registry
from tnbench.config import ModelConfig, check
from tnbench.data import Tokenizer
from tnbench.data.tokenizers import Subwords
from tnbench.errors import RequestError, first_line
from tnbench.model import LanguageModel
from tnbench.training.checkpoint import CheckpointError, load_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
EMBEDDING = "embedding.weight"
TYPE = "tnbench"
"""`model_type` in its config.json."""


class Exported(NamedTuple):
    """An exported model."""

    model: LanguageModel
    """In fp32."""
    tokenizer: Tokenizer
    context: int
    """Tokens in a training window."""


def model_type(folder: Path) -> str:
    """What a folder's config.json says that it is; empty where it says nothing.

    Raises:
        RequestError: there is no config.json, or it cannot be read.
    """
    return str(_values(folder).get("model_type", ""))


class _Read(NamedTuple):
    """An export without its weights."""

    config: ModelConfig
    tokenizer: Tokenizer
    size: int
    context: int


def require(folder: Path) -> None:
    """Raises RequestError unless the folder is a whole export: all but the values of its weights is read."""
    _read(folder)


def load_exported(folder: Path, device: torch.device | str = "cpu") -> Exported:
    """The model that an export was made of, the bits of its weights unchanged. No code of the folder is run.

    Weights that transformers has written, after training went on there, are read too, into fp32.

    Raises:
        RequestError: the folder is none of tnbench's, or damaged.
    """
    found = _read(folder)
    model = LanguageModel(found.config, found.size, found.context)
    weights = folder / WEIGHTS
    try:
        if _is_ours(weights):
            load_weights(weights, model)
        else:
            _load_plain(folder, model)
    except CheckpointError as error:
        raise RequestError(f"{folder} is damaged: {error}") from error
    return Exported(model.to(device), found.tokenizer, found.context)


def _read(folder: Path) -> _Read:
    registry.load()
    values = _values(folder)
    path = folder / CONFIG
    if values.get("model_type") != TYPE:
        raise RequestError(
            f"{folder} is no export of tnbench: its model_type is {values.get('model_type')!r}"
        )
    try:
        composition, context = dict(values["composition"]), int(values["max_position_embeddings"])
        size, tied = int(values["vocab_size"]), bool(values["tie_word_embeddings"])
        end = int(values["eos_token_id"])
    except KeyError as error:
        raise RequestError(f"{path} is damaged: it lacks {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise RequestError(f"{path} is damaged: {first_line(error)}") from error
    if context < 2 or not 0 <= end < size:
        raise RequestError(
            f"{path} is damaged: max_position_embeddings {context}, vocab_size {size}, eos_token_id {end}"
        )
    try:
        config: ModelConfig = check(ModelConfig, {**composition, "tie_embeddings": tied}, "composition")
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    try:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library's own, of no type
        raise RequestError(f"{folder / 'tokenizer.json'} cannot be read: {first_line(error)}") from error
    tokenizer = Subwords(f"that of {folder.name}", backend, end)
    if tokenizer.vocab_size > size:
        raise RequestError(
            f"{folder} is damaged: its tokenizer has {tokenizer.vocab_size} ids, the vocabulary {size}"
        )
    _require_rows(folder, size, config.width)
    return _Read(config, tokenizer, size, context)


def _require_rows(folder: Path, size: int, width: int) -> None:
    """The weights are whole, and of the vocabulary and width of config.json."""
    path = folder / WEIGHTS
    if not path.is_file():
        parts = (folder / f"{WEIGHTS}.index.json").is_file()
        raise RequestError(f"{folder} holds no {WEIGHTS}{': write it in one part' if parts else ''}")
    try:
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice(EMBEDDING).get_shape()
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{folder} is damaged: {WEIGHTS} cannot be read: {error}") from error
    if shape != [size, width]:
        raise RequestError(f"{folder} is damaged: its embedding is {shape}, {CONFIG} says {[size, width]}")


def _load_plain(folder: Path, model: LanguageModel) -> None:
    tensors = load_file(folder / WEIGHTS)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    different = sorted(name for name, _ in expected.items() ^ shapes.items())
    if different:
        raise RequestError(f"{folder} is damaged: {WEIGHTS} does not fit the model in {different[0]}")
    model.load_state_dict(tensors)


def _is_ours(path: Path) -> bool:
    """Whether we have written the weights, with a checksum."""
    with safe_open(path, framework="pt") as file:
        return "crc32" in (file.metadata() or {})


def _values(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{folder / CONFIG} is no configuration")
    return values
