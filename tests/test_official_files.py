"""The official checkpoints' files: every form, to and fro, and whatever can be wrong with them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_official import VOCABULARY, config, save, tokens, weights
from torch import Tensor

from tnbench.errors import RequestError
from tnbench.interop import official
from tnbench.model import LanguageModel
from tnbench.resolution import resolve


def in_parts(folder: Path, stored: dict[str, Tensor], suffix: str) -> None:
    """Two files with their index."""
    names = list(stored)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{stem}-0000{n}-of-00002.{suffix}": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in files.items():
        part = {name: stored[name] for name in held}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


class Trap:
    """Pickled, it writes a file when it is read by code that executes what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["safetensors", "bin", "safetensors in parts", "bin in parts", "old bin"])
def test_every_form_of_file_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    want = official.load_model(save(tmp_path / "one", values, stored)).state_dict()
    folder = save(tmp_path / "two", values, stored)
    if form == "safetensors":  # comes first: what else is there is not even opened
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    else:
        (folder / "model.safetensors").unlink()
        if form.endswith("in parts"):
            in_parts(folder, stored, form.split()[0])
        else:
            new = form == "bin"
            torch.save(stored, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    (folder / "modeling_transnormer.py").write_text("raise SystemExit('executed')")
    found = official.load_model(folder).state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_and_fro_changes_no_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    values = config(decoder_attention_heads=6, init_std=0.01)
    stored = {name: tensor.to(dtype) for name, tensor in weights(values).items()}
    model = official.load_model(save(tmp_path / "theirs", values, stored))
    assert model.embedding.weight.dtype == dtype
    official.write_official(model, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    other = {"linear_use_lrpe", "pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype", "auto_map"}
    assert {key: said[key] for key in values if key not in other} == {
        key: value for key, value in values.items() if key not in other
    }
    again = official.load_model(tmp_path / "ours")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def ours(**changes: Any) -> LanguageModel:
    values = {"model.size": "0.1m", "training.steps": 1} | {f"model.{key}": v for key, v in changes.items()}
    return LanguageModel(resolve(values).model, VOCABULARY, 32)


@torch.no_grad()
def test_a_model_of_ours_in_their_layout(tmp_path: Path) -> None:
    model = ours(tie_embeddings=False)
    official.write_official(model, tmp_path / "deep" / "folder")
    again = official.load_model(tmp_path / "deep" / "folder")
    assert torch.equal(model(tokens(20)), again(tokens(20)))


@pytest.mark.parametrize(("changes", "message"), [
    ({"preset": "transformer"}, "model.mixer = softmax (backend: auto)"),
    ({"convention": "v1"}, "model.position = lrpe (form: rotation, layers: all)"),
    ({"decay": "printed"}, "model.decay = printed (temperature: true)"),
    ({"channel": "swiglu"}, "model.channel = swiglu"),
    ({"gate": False}, "model.gate = false"),
    ({"inner_norm": "rmsnorm"}, "model.inner_norm = rmsnorm (eps: 1e-06)"),
    ({"feature_map": "softmax"}, "model.feature_map = softmax"),
])  # fmt: skip
def test_models_that_their_layout_cannot_hold(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        official.write_official(ours(**changes), tmp_path / "new")
    assert str(caught.value).startswith(f"{message} cannot be written in TransNormerLLM's layout: it has ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(RequestError, match="is not empty"):
        official.write_official(ours(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# ---------------------------------------------------------------------- bad input


def complaint(folder: str | Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        official.load_model(folder, **options)
    text = str(caught.value)
    assert text.isprintable(), "more than one line"
    assert len(text) < 400 + len(str(folder))
    return text.replace(str(folder), "HERE") if str(folder).strip() else text


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "llama", "architectures": ["Llama"]}, "another architecture: model_type 'llama'"),
    ({"model_type": None, "architectures": None}, "another architecture: no model_type"),
    ({"decoder_layers": None}, "decoder_layers = None: input should be a valid integer"),
    ({"decoder_embed_dim": "24"}, "decoder_embed_dim = '24': input should be a valid integer"),
    ({"vocab_size": 10**30}, "vocab_size = "),
    ({"decoder_attention_heads": 5}, "decoder_attention_heads = 5 does not divide decoder_embed_dim = 24"),
    ({"hidden_dim": 48}, "hidden_dim = 48 is not decoder_embed_dim = 24"),
    ({"glu_dim": 0}, "glu_dim = 0: expected a size"),
    ({"norm_type": "layernorm"}, "norm_type = 'layernorm': expected simplermsnorm"),
    ({"bias": True}, "bias = true"),
    ({"linear_act_fun": "swsh"}, "linear_act_fun = 'swsh', did you mean swish?"),
    ({"linear_use_lrpe_list": []}, "linear_use_lrpe_list has 0 entries for 3 layers"),
    ({"linear_use_lrpe_list": [0, 1, 0]}, "no layer, in the first alone or in all of them"),
    ({"gate_dim": 16}, "gate_dim = 16 is the low-rank gate of TNL3"),
])  # fmt: skip
def test_a_config_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = complaint(save(tmp_path / "x", config(**changes), {"a": torch.zeros(1)}))
    assert text.startswith("HERE/config.json")
    assert message in text


def test_a_key_that_config_lacks(tmp_path: Path) -> None:
    values = config()
    del values["glu_dim"]
    assert complaint(save(tmp_path / "x", values, {})) == "HERE/config.json: glu_dim is missing"


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "an empty name" in complaint(" ")
    assert "no such folder" in complaint("x" * 5000)
    (tmp_path / "file").touch()
    assert "it is a file" in complaint(tmp_path / "file")
    assert "HERE holds no config.json" in complaint(tmp_path)
    for content, message in (
        (b"", "is empty"),
        (b"{", "is no valid JSON"),
        (b"\xff\xfe", "is no valid JSON"),
        (b"[" * 200_000, "is no valid JSON"),
        (b"[1]", "expected a JSON object, got [1]"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        assert message in complaint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    assert "HERE holds no weights: none of model.safetensors, " in complaint(tmp_path)


MIXER = "model.layers.1.token_mixer"


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)

    def with_(changed: dict[str, Tensor], remove: str = "none") -> str:
        kept = {name: tensor for name, tensor in stored.items() if remove not in name}
        return complaint(save(tmp_path / "x", values, kept | changed))

    out, theta, embedding = f"{MIXER}.out_proj.weight", f"{MIXER}.lrpe.theta", "model.embed_tokens.weight"
    assert with_({}, remove=out) == f"HERE: the weights do not fit config.json: missing {out}"
    assert with_({theta: torch.zeros(4, 1, 6)}).endswith(f"config.json: left over {theta}")
    first = "model.layers.0.channel_mixer.l"
    assert with_({"a": torch.zeros(1)}, remove="layers").endswith(
        f"missing {first}1.weight, {first}2.weight, {first}3.weight, model.layers.0.token_mixer.lrpe.theta "
        "and 12 more; left over a"
    )
    assert with_({out: torch.zeros(24, 12)}) == f"HERE: {out} is (24, 12), config.json asks for (24, 24)"
    assert f"{out} is of bfloat16, {embedding} of float32" in with_({out: stored[out].bfloat16()})
    integers = {name: tensor.to(torch.int8) for name, tensor in stored.items()}
    assert f"{embedding} is of int8: expected one floating-point type" in with_(integers)
    other = {"lm_head.weight": stored["lm_head.weight"] + 1}
    assert "lm_head.weight differs from model.embed_tokens.weight" in with_(other)
    values = config(tie_word_embeddings=False)
    assert with_({}, remove="lm_head").endswith("missing lm_head.weight")
    assert "leave out faithful" in complaint(
        save(tmp_path / "y", config(decoder_layers=1), stored), faithful=True
    )


def test_damaged_files(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    folder = save(tmp_path / "x", values, stored)
    path, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (whole[:-7], whole[:100], b"\0" * 64):
        path.write_bytes(content)
        assert "HERE/model.safetensors is cut off or damaged" in complaint(folder)
    path.write_bytes(b"")
    assert "model.safetensors is empty" in complaint(folder)
    path.unlink()
    torch.save(stored, old)
    old.write_bytes(old.read_bytes()[:-100])
    assert "HERE/pytorch_model.bin is " in complaint(folder)
    old.write_bytes(b"not a checkpoint")
    assert "HERE/pytorch_model.bin is " in complaint(folder)
    torch.save([1, 2], old)
    assert "pytorch_model.bin is no checkpoint: expected tensors by name" in complaint(folder)
    torch.save({"a": Trap(tmp_path / "trapped")}, old)
    assert "no code of a checkpoint is executed" in complaint(folder)
    assert not (tmp_path / "trapped").exists()


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    folder = save(tmp_path / "x", values, stored)
    (folder / "model.safetensors").unlink()
    in_parts(folder, stored, "safetensors")
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())["weight_map"]

    def with_(weight_map: Any) -> str:
        path.write_text(json.dumps({"weight_map": weight_map}))
        return complaint(folder)

    assert "has no weight_map" in with_(None)
    assert "which is no file's name" in with_(good | {"a": "../x/model-00001-of-00002.safetensors"})
    assert "which is no file's name" in with_(good | {"a": 1})
    assert "names b.safetensors, which is not there" in with_(good | {"a": "b.safetensors"})
    first = "model-00001-of-00002.safetensors"
    assert f"does not fit {first}: a which it does not hold" in with_(good | {"a": first})
    assert "lm_head.weight left out by the index" in with_(
        {name: file for name, file in good.items() if name != "lm_head.weight"}
    )
    (folder / first).unlink()
    assert f"names {first}, which is not there" in with_(good)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    text = complaint("hf:tnbench/no-such-thing")
    assert text.startswith("checkpoint HERE: the Hugging Face hub cannot be reached")
    assert "Retrying" not in capfd.readouterr().err
