"""`tnbench export`: a folder that transformers loads without tnbench, and gives the same numbers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_registry import Plain, compositions, scratch

from tnbench import cli, registry
from tnbench.ablation.suite import load_suite
from tnbench.config import ModelConfig
from tnbench.data import Tokenizer
from tnbench.data.tokenizers import Bytes, train_bpe
from tnbench.errors import RequestError
from tnbench.evaluation.generation import Decoder, generate, inference_model
from tnbench.evaluation.sampling import Sampler
from tnbench.interop import card, export, folders, hugging_face
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.registry import register
from tnbench.resolution import resolve

__all__ = ["scratch"]

CONTEXT = 200
SIZES = {"width": 32, "heads": 4, "layers": 3, "channel_width": 40, "init_std": 0.2}
TEXTS = ["héllo <|endoftext|> 世界😀\n\n\tx  y ", "", " a", "\x00\x7f\x80é", "don't 1234\r\n"]
BITS = {"logits": 1e-5, "segments": 2e-5, "padded": 2e-5, "right_logits": 1e-5, "again": 0.0}
"""Largest differences of logits of at most 5."""


def configured(**diff: Any) -> ModelConfig:
    """A tiny model; weights large enough for every part to matter."""
    values = {f"model.{key}": value for key, value in {**SIZES, **diff}.items()}
    return resolve({"training.steps": 1}, values).model


def built(config: ModelConfig, vocabulary: int = 257) -> LanguageModel:
    """With learned vectors, angles and positions moved off their regular initial values."""
    torch.manual_seed(0)
    model = LanguageModel(config, vocabulary, CONTEXT).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith(("theta", "reflection")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bpe() -> Tokenizer:
    return train_bpe("bpe-280", 280, ["héllo wörld 世界 😀 the cat sat on the mat " * 50], "a list")


@torch.no_grad()
def prepared(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None = None, time: int = 150) -> None:
    """An exported model, and what it is to compute."""
    tokenizer = tokenizer or Bytes()
    model = built(config, tokenizer.vocab_size)
    export(model, tokenizer, folder)
    tokens = torch.randint(tokenizer.vocab_size - 1, (2, time))
    prompt = tokens[:, :70].clone()
    expected = {"tokens": tokens, "prompt": prompt, "logits": model(tokens)}
    rows = generate(Decoder(model, 2, 100), prompt, Sampler(2, temperature=0), tokens=20)
    expected["greedy"] = torch.stack(list(rows), dim=1)
    expected["logits_bf16"] = inference_model(model, "bf16")(tokens)
    save_file(
        {name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors"
    )
    texts = [(text, tokenizer.encode(text).tolist()) for text in TEXTS]
    (folder / "texts.json").write_text(json.dumps(texts))


def loaded_elsewhere(folder: Path, modules: Path) -> list[dict[str, Any]]:
    """What a process finds that has transformers, but not tnbench."""
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(modules),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("exported_models.py")), str(folder)],
        env=environment,
        cwd=modules.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(values: dict[str, Any], *, constant: bool) -> None:
    """What `exported_models.found` has found is what an export promises."""
    for key in ("same_weights", "greedy", "padded_greedy", "tied", "ids", "texts"):
        assert values[key] is True, (key, values)
    for key, limit in BITS.items():
        assert values[key] <= limit * max(1, values["largest"] / 5), (key, values)
    assert values["bf16"] <= 1.1, values  # the error against fp32, of ours in bf16
    assert values["constant"] is constant, values
    assert "pad on the left" in values["right"], values


# What is computed


FEW: dict[str, dict[str, Any]] = {
    "transnormerllm": {"preset": "transnormerllm"},
    "gpt2": {"preset": "gpt2", "tie_embeddings": False},
    "transnormer-t1": {"preset": "transnormer-t1"},
}


def test_exported_models_compute_the_same_without_tnbench(tmp_path: Path):
    """GLA with decay and LRPE, softmax with learned positions and BPE, blocks and norm attention."""
    for name, diff in FEW.items():
        prepared(tmp_path / "models" / name, configured(**diff), bpe() if name == "gpt2" else None)
    found = loaded_elsewhere(tmp_path / "models", tmp_path / "modules")
    assert [values["name"] for values in found] == sorted(FEW)
    for values in found:
        assert_same(values, constant=values["name"] != "gpt2")


PRESETS = [(preset, version) for preset in registry.names("preset") for version in ("v1", "v2")]


@pytest.mark.slow
def test_every_preset(tmp_path: Path):
    for preset, version in PRESETS:
        prepared(tmp_path / "models" / f"{preset}-{version}", configured(preset=preset, convention=version))
    found = loaded_elsewhere(tmp_path / "models", tmp_path / "modules")
    assert len(found) == len(PRESETS)
    for values in found:
        assert_same(values, constant=not values["name"].startswith(("gpt2", "transformer")))


def suites() -> list[str]:
    folder = resources.files("tnbench.ablations")
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("shipped", suites())
def test_every_variant_of_the_shipped_suites(shipped: str, tmp_path: Path):
    suite = load_suite(shipped, tmp_path / "results", quiet=True)
    softmax = set()
    for run in suite.runs():
        name = run.variant.name
        if (tmp_path / "models" / name).exists():
            continue
        tiny = {key: value for key, value in SIZES.items() if key != "init_std"}
        config = run.config.model.model_copy(update={**tiny, "init_std": 0.2, "implementation": "auto"})
        prepared(tmp_path / "models" / name, config)
        softmax |= {name} if config.mixer[0].name == "softmax" else set()
    found = loaded_elsewhere(tmp_path / "models", tmp_path / "modules")
    assert {values["name"] for values in found} == {one.name for one in suite.variants}
    for values in found:
        assert_same(values, constant=values["name"] not in softmax)


@pytest.mark.slow
def test_every_composition(tmp_path: Path):
    """Whatever is registered, in one process each for the whole list: logits, segments, padding, tokens."""
    for number, config in enumerate(compositions().values()):
        prepared(tmp_path / "models" / f"{number:03}", config.model_copy(update={"init_std": 0.2}), time=90)
    found = loaded_elsewhere(tmp_path / "models", tmp_path / "modules")
    for values, (name, config) in zip(found, compositions().items(), strict=True):
        try:
            assert_same(values, constant=all(spec.name != "softmax" for spec in config.mixer))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# The folder


@pytest.fixture
def results(whole: RunFolder, tmp_path: Path) -> Path:
    """A results folder in which a tiny run lies under its id."""
    shutil.copytree(whole.path, tmp_path / "results" / "tiny" / "runs" / whole.id)
    return tmp_path / "results"


def tnbench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_run_is_exported(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The run's own weights, a card with its figures, and the record without the name of the machine."""
    folder = tmp_path / "new" / "model"
    assert tnbench("export", "run", str(folder), "--format", "hf", "--results", str(results)) == 0
    assert "trust_remote_code=True" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    written = load_file(folder / "model.safetensors")
    own = load_file(next(results.glob("*/runs/run/checkpoint/model.safetensors")))
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], own[name]) for name in own)
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]

    manifest = json.loads((folder / hugging_face.MANIFEST).read_text())
    original = json.loads(next(results.glob("*/runs/run/manifest.json")).read_text())
    host = original["provenance"].pop("host")
    assert manifest == original
    text = (folder / "README.md").read_text()
    assert host not in text.split("```json")[0]
    assert "12 steps of 256 tokens" in text
    assert f"{original['evaluation']['report']['values']['val_loss']:.4f}" in text
    assert str(original["provenance"]["commit"]) in text
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 32


def test_the_card_of_a_model_without_a_record():
    text = card.text(built(configured(preset="gpt2")), Bytes(), None)
    assert "Its cache grows" in text
    assert '"width": 32' in text


def test_the_template_is_plain_torch_and_transformers():
    for path in hugging_face.TEMPLATE.glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        roots = {line.split()[1].split(".")[0] for line in lines}
        assert roots <= {"", "__future__", "typing", "dataclasses", "math", "torch", "transformers"}, (
            path.name
        )


def filled(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes").write_text("")


def a_file(folder: Path) -> None:
    folder.write_text("")


def below_a_file(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_text("")


def a_lost_link(folder: Path) -> None:
    folder.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (filled, "is not empty: name a new folder"),
        (a_file, "is no folder"),
        (a_lost_link, "is no folder"),
        (below_a_file, "cannot be written: not a directory"),
    ],
)
def test_where_nothing_can_be_written(
    results: Path, tmp_path: Path, there: Callable[[Path], None], says: str, capsys: Any
):
    folder = tmp_path / "place" / "model"
    folder.parent.mkdir()
    there(folder)
    assert tnbench("export", "run", str(folder), "--results", str(results)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said


def test_an_empty_folder_is_taken_but_not_the_current_one(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert tnbench("export", "run", ".", "--results", str(results)) == 2
    assert "the current folder" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert tnbench("export", "run", "empty", "--results", str(results)) == 0
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu", "out"], "has no run 'rnu', did you mean run?"),
        (["run", ""], "an empty name"),
        (["run", "out", "--format", "gguf"], "'gguf' is not one of 'hf'"),
    ],
)
def test_wrong_requests(results: Path, arguments: list[str], says: str, monkeypatch: Any, capsys: Any):
    monkeypatch.chdir(results.parent)
    assert tnbench("export", *arguments, "--results", str(results)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not (results.parent / "out").exists()


def test_a_run_without_weights(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    next(results.glob("*/runs/*/checkpoint/model.safetensors")).unlink()
    assert tnbench("export", "run", str(tmp_path / "out"), "--results", str(results)) == 2
    assert "kept no weights" in capsys.readouterr().err


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["save_weights", "write_json", "sync"])
def test_a_full_disk_leaves_nothing(
    writer: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(folders if writer == "sync" else hugging_face, writer, full)
    folder = tmp_path / "place" / "out"
    assert tnbench("export", "run", str(folder), "--results", str(results)) == 2
    assert capsys.readouterr().err.strip().endswith("cannot be written: no space left on device")
    assert not list(folder.parent.iterdir())


def test_nothing_is_there_before_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder appears by one renaming: a process that is killed before has left nothing in its place."""
    seen, replace = [], os.replace
    folder = tmp_path / "out"

    def renamed(source: Path, target: Path) -> None:
        if Path(target) == folder:
            seen.append((sorted(path.name for path in Path(source).iterdir()), folder.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    export(built(configured()), Bytes(), folder)
    assert seen == [(sorted(path.name for path in folder.iterdir()), False)]


@pytest.mark.usefixtures("scratch")
def test_a_plug_in_cannot_be_exported(tmp_path: Path):
    register("norm", "plain")(Plain)
    model = LanguageModel(configured(channel_norm="rmsnorm"), 257, CONTEXT)
    model.config = configured(channel_norm="plain")
    with pytest.raises(RequestError, match=r"model\.channel_norm = plain is a plug-in's.*rmsnorm"):
        export(model, Bytes(), tmp_path / "out")


def test_a_tokenizer_that_does_not_fit(tmp_path: Path):
    with pytest.raises(RequestError, match="bpe-280 has 280 ids, the model's vocabulary has 257"):
        export(built(configured()), bpe(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
