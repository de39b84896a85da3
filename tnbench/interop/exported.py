"""Folders that `tnbench export` has written, as models of ours again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as Backend

from tnbench import registry
from tnbench.config import ModelConfig, check
from tnbench.data import Tokenizer
from tnbench.data.tokenizers import Subwords
from tnbench.errors import RequestError, first_line
from tnbench.model import LanguageModel
from tnbench.training.checkpoint import CheckpointError, load_weights

CONFIG = "config.json"
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


def load_exported(folder: Path, device: torch.device | str = "cpu") -> Exported:
    """The model that an export was made of, the bits of its weights unchanged. No code of the folder is run.

    Raises:
        RequestError: the folder is none of tnbench's, or damaged.
    """
    registry.load()
    values = _values(folder)
    if values.get("model_type") != TYPE:
        raise RequestError(
            f"{folder} is no export of tnbench: its model_type is {values.get('model_type')!r}"
        )
    try:
        composition, context = dict(values["composition"]), int(values["max_position_embeddings"])
        size, tied = int(values["vocab_size"]), bool(values["tie_word_embeddings"])
        end = int(values["eos_token_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}") from error
    config: ModelConfig = check(ModelConfig, {**composition, "tie_embeddings": tied}, "composition")
    try:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library's own, of no type
        raise RequestError(f"{folder / 'tokenizer.json'} cannot be read: {first_line(error)}") from error
    tokenizer = Subwords(f"that of {folder.name}", backend, end)
    if tokenizer.vocab_size > size:
        raise RequestError(
            f"{folder} is damaged: its tokenizer has {tokenizer.vocab_size} ids, the vocabulary {size}"
        )
    model = LanguageModel(config, size, context)
    try:
        load_weights(folder / "model.safetensors", model)
    except CheckpointError as error:
        raise RequestError(f"{folder} is damaged: {error}") from error
    return Exported(model.to(device), tokenizer, context)


def _values(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{folder / CONFIG} is no configuration")
    return values
