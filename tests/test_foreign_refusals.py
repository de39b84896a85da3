"""Models of other makers whose answers would be no likelihoods: random weights, encoders, no numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from safetensors.torch import load_file, save_file

from tnbench.errors import RequestError
from tnbench.evaluation import foreign, outcomes
from tnbench.evaluation.items import Item

pytestmark = pytest.mark.usefixtures("settled_process")
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 257,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tnbench.data.tokenizers import Bytes
    from tnbench.interop.hugging_face import write_tokenizer

    place = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, **SHAPE))
    model.save_pretrained(place)
    write_tokenizer(place, Bytes(), None)
    return place


def changed(folder: Path, place: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy with other weights."""
    shutil.copytree(folder, place)
    weights = load_file(place / "model.safetensors")
    change(weights)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def opened(path: Path, max_length: int | None = None) -> Any:
    return foreign.open_foreign(path, device="cpu", precision="fp32", max_length=max_length)


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    lacking = changed(
        folder, tmp_path / "a", lambda weights: weights.pop("model.layers.0.mlp.up_proj.weight")
    )
    with pytest.raises(RequestError, match=r"lacks weights of its model: model\.layers\.0\.mlp\.up_proj"):
        opened(lacking)
    assert "MISSING" not in capfd.readouterr().err


def test_an_encoder_is_refused(folder: Path, tmp_path: Path):
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    model: Any = BertLMHeadModel(BertConfig(max_position_embeddings=64, **SHAPE))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(RequestError, match="reads what comes after a token"):
        opened(tmp_path)


def test_logits_that_are_no_numbers_fail(folder: Path, tmp_path: Path):
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][3] = float("nan")

    model = opened(changed(folder, tmp_path / "a", spoil))
    with pytest.raises(FloatingPointError, match="not numbers"):
        model._model_call(torch.ones(1, 4, dtype=torch.long))


def test_tokens_and_positions_beyond_the_last_are_told(folder: Path, tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(ValueError, match="gives token 257, and its embeddings have 257"):
        opened(folder)._model_call(torch.full((1, 4), 257))
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(ValueError, match="do not reach 33 tokens; give a shorter --max-length"):
        opened(tmp_path, 100)._model_call(torch.ones(1, 33, dtype=torch.long))


def test_what_holds_no_model_is_refused_before_anything_is_asked(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "dir.gguf").mkdir()
    (tmp_path / "text.gguf").write_text("nothing")
    pytest.importorskip("gguf")
    for path, said in (
        (tmp_path, "holds no weights"),
        (tmp_path / "dir.gguf", "is a directory"),
        (tmp_path / "gone.gguf", "no such file"),
        (tmp_path / "text.gguf", "is no GGUF file"),
    ):
        with pytest.raises(RequestError, match=said):
            foreign.require(path)


def test_recorded_answers_that_are_no_numbers_are_compared_with_nothing():
    """One such record would otherwise stop every later command on the folder."""
    assert outcomes._bits(Item(0, "", {}, gold_nats=float("nan"), gold_bytes=3)) is None
    assert outcomes._bits(Item(0, "", {}, gold_nats=3.0, gold_bytes=3)) is not None
