"""Exports read again: by the program that wrote them, after transformers has, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tnbench.errors import RequestError
from tnbench.evaluation.loading import load_run
from tnbench.interop import export, exported
from tnbench.records import RunFolder


@pytest.fixture(scope="module")
def whole_export(whole: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "whole"
    found = load_run(str(whole.path), whole.path)
    export(found.model, found.tokenizer, folder, found.manifest)
    return folder


@pytest.fixture
def folder(whole_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_export, tmp_path / "mine"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_another_program_has_written(folder: Path, dtype: torch.dtype):
    """As transformers writes them after training: without our record and checksum, perhaps narrower."""
    before = dict(exported.load_exported(folder).model.named_parameters())
    path = folder / exported.WEIGHTS
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    for name, parameter in exported.load_exported(folder).model.named_parameters():
        assert torch.equal(parameter, before[name].to(dtype).float()), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "no export of tnbench"),
        ({"composition": None}, "is damaged: TypeError"),
        ({"vocab_size": 10**12}, "its embedding is"),
        ({"vocab_size": 100}, "vocab_size 100"),
        ({"eos_token_id": 9999}, "eos_token_id 9999"),
        ({"max_position_embeddings": -5}, "max_position_embeddings -5"),
        ({"max_position_embeddings": "x"}, "invalid literal"),
        ({"tie_word_embeddings": ...}, "it lacks tie_word_embeddings"),
    ],
)
def test_a_wrong_configuration_is_told_before_weights_are_read(
    changes: dict[str, Any], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = folder / exported.CONFIG
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    monkeypatch.setattr(exported, "LanguageModel", lambda *_: pytest.fail("no model is to be made"))
    with pytest.raises(RequestError, match=said):
        exported.require(folder)
    with pytest.raises(RequestError, match=said):
        exported.load_exported(folder)


def test_what_is_missing_or_cut_off_is_told(folder: Path):
    weights, tokenizer = folder / exported.WEIGHTS, folder / "tokenizer.json"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(RequestError, match=r"mine is damaged: model.safetensors cannot be read"):
        exported.require(folder)
    weights.rename(folder / f"{exported.WEIGHTS}.index.json")
    with pytest.raises(RequestError, match=r"holds no model.safetensors: write it in one part"):
        exported.require(folder)
    tokenizer.write_text("{")
    with pytest.raises(RequestError, match=r"tokenizer.json cannot be read"):
        exported.require(folder)
    (folder / exported.CONFIG).write_text("[" * 100_000)
    with pytest.raises(RequestError, match=r"config.json cannot be read"):
        exported.require(folder)


def test_other_tensors_are_named(folder: Path):
    path = folder / exported.WEIGHTS
    tensors = load_file(path)
    save_file({**tensors, "surplus": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(RequestError, match="does not fit the model in surplus"):
        exported.load_exported(folder)
