"""Models of other makers beside ours: a tiny Llama made on the spot, in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.evaluation import foreign

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    kind: Any = models.BPE
    text = Tokenizer(kind(vocab={**{letter: n for n, letter in enumerate(letters)}, "<end>": 256}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[misc]
    text.decoder = decoders.ByteLevel()  # type: ignore[misc]
    PreTrainedTokenizerFast(tokenizer_object=text, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=2048, **shape))
    model.save_pretrained(folder)
    return folder


def tnbench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_it_is_asked_as_lm_eval_asks_it(llama: Path, tmp_path: Path):
    """Same records as for ours; the likelihoods are those of the model itself."""
    assert tnbench("eval", llama, "--limit", 5, "--results", tmp_path) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "evals" / "records.jsonl").read_text().splitlines()]
    assert record["model"].startswith("tiny-llama ")
    assert record["max_length"] == 2048
    (items,) = (tmp_path / "evals" / "items").glob("*.jsonl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tnbench.evaluation import cloze

    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer: Any = AutoTokenizer.from_pretrained(llama)
    documents: list[Any] = list(cloze.build())[:5]
    for line, document in zip(items.read_text().splitlines()[-5:], documents, strict=True):
        before = len(tokenizer.encode(document["context"]))
        for nats, choice in zip(json.loads(line)["answer"], document["choices"], strict=True):
            ids = torch.tensor([tokenizer.encode(document["context"] + choice)])
            with torch.no_grad():
                found = model(ids).logits.log_softmax(-1)[0, :-1]
            expected = found.gather(1, ids[0, 1:, None])[before - 1 :].sum()
            assert nats == pytest.approx(float(expected), abs=1e-4)


def test_what_cannot_be_asked(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in llama.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, said in (
        (other, "causal language models of transformers"),
        (broken, "cannot be loaded by transformers"),
        (tmp_path / "no.gguf", "no.gguf"),
        ("hf:nobody/nothing", "cannot be had from the Hugging Face hub"),
    ):
        assert tnbench("eval", name, "--limit", 2, "--results", tmp_path / "r") == 2, name
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1, error


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(foreign, "PACKAGE", "no_such_package")
    with pytest.raises(RequestError, match="pip install no_such_package"):
        foreign.require(tmp_path / "a.gguf")
