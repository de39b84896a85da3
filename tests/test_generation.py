"""Generation: tokens as they are made, streamed text, and the runs that models come from."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_decoding import preset_model, some_tokens
from torch import Tensor

from tnbench.data.tokenizers import Bytes, Subwords, train_bpe
from tnbench.errors import RequestError
from tnbench.evaluation.generation import Decoder, generate, inference_model
from tnbench.evaluation.loading import find_run, load_run
from tnbench.evaluation.sampling import Sampler
from tnbench.evaluation.streaming import TextStream
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Tokens as they are made


def made(decoder: Decoder, prompt: Tensor, **options: Any) -> list[list[int]]:
    decoder.reset()
    sample = options.pop("sample", None) or Sampler(decoder.batch, temperature=0)
    return [row.tolist() for row in generate(decoder, prompt, sample, **options)]


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer", "transnormer-t1"])
def test_greedy_generation_follows_the_parallel_form(preset: str):
    """Each token is the most probable one after all before it; a step that is on its way changes nothing."""
    model, prompt = inference_model(preset_model(preset, context=40), "fp32"), some_tokens(2, 5)
    decoder = Decoder(model, 2, 14)
    rows = made(decoder, prompt, tokens=10)
    assert decoder.tokens == 14
    for row in rows:
        assert row == model(prompt)[:, -1].argmax(-1).tolist()
        prompt = torch.cat([prompt, torch.tensor(row)[:, None]], dim=1)
    decoder.asynchronous = True
    assert made(decoder, prompt[:, :5], tokens=10) == rows
    assert made(decoder, prompt[:, :5], tokens=1) == rows[:1]
    assert made(decoder, prompt[:, :5], tokens=0) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_rows_end_at_the_end_token(asynchronous: bool):
    """Scripted draws: row 0 ends at its second token, row 1 at its third; then nothing more is made."""
    decoder = Decoder(inference_model(preset_model("transnormerllm"), "fp32"), 2, 30)
    decoder.asynchronous = asynchronous

    def scripted() -> Callable[[Tensor], Tensor]:
        script = iter([[1, 2], [9, 3], [4, 9], [5, 6], [7, 8]])
        return lambda logits: torch.tensor(next(script))

    prompt = some_tokens(1, 3)
    assert made(decoder, prompt, sample=scripted(), tokens=5, end=9) == [[1, 2], [9, 3], [9, 9]]
    assert made(decoder, prompt, sample=scripted(), tokens=4) == [[1, 2], [9, 3], [4, 9], [5, 6]]


def test_generation_begins_only_where_it_can_end():
    decoder = Decoder(inference_model(preset_model("transformer"), "fp32"), 1, 8)
    with pytest.raises(ValueError, match="allocated for 8 tokens, asked for 9"):
        made(decoder, some_tokens(1, 5), tokens=5)
    assert decoder.tokens == 0
    with pytest.raises(ValueError, match="no token to begin with"):
        made(decoder, some_tokens(1, 0), tokens=5)


def test_logits_that_are_not_finite_are_said():
    model = preset_model("transnormerllm")
    with torch.no_grad():
        model.embedding.weight[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        made(Decoder(inference_model(model, "fp32"), 1, 8), torch.tensor([[3]]), tokens=2)


# Text as it comes


@pytest.fixture(scope="module", params=["bytes", "bpe-280"])
def tokenizer(request: pytest.FixtureRequest) -> Bytes | Subwords:
    if request.param == "bytes":
        return Bytes()
    texts = ["héllo wörld 世界 😀 the cat sat on the mat " * 50, "世界 " * 100]
    return train_bpe("bpe-280", 280, texts, "a list")


def test_streamed_pieces_are_the_text(tokenizer: Bytes | Subwords):
    """Whole characters, cut ones, and ids at random, after prompts of several kinds."""
    draw = random.Random(0)
    emoji = tokenizer.encode("😀").tolist()
    for _ in range(400):
        prompt = tokenizer.encode(draw.choice(["世界😀 é", "the cat ", ""])).tolist()
        ids: list[int] = []
        for _ in range(draw.randint(0, 12)):
            whole = tokenizer.encode(draw.choice(["😀", "世", "é", "x y"])).tolist()
            ids += draw.choice([[draw.randrange(tokenizer.vocab_size)], whole, emoji[: draw.randint(1, 4)]])
        stream = TextStream(tokenizer, prompt)
        text = "".join(stream.add(token) for token in ids) + stream.finish()
        assert text == tokenizer.decode(prompt + ids).removeprefix(tokenizer.decode(prompt)), (prompt, ids)


def test_a_character_comes_when_it_is_whole():
    stream = TextStream(Bytes())
    assert [stream.add(byte) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert stream.finish() == ""
    assert stream.add(0xE2) == ""
    assert stream.finish() == "\ufffd"


# Runs


@pytest.fixture
def results(whole: RunFolder, tmp_path: Path) -> Path:
    """A results folder in which a tiny run lies under its id."""
    shutil.copytree(whole.path, tmp_path / "results" / "tiny" / "runs" / whole.id)
    return tmp_path / "results"


def test_a_run_is_found_by_id_folder_and_manifest(results: Path, whole: RunFolder):
    place = results / "tiny" / "runs" / whole.id
    loaded = [load_run(name, results) for name in (whole.id, str(place), str(place / "manifest.json"))]
    assert all(run.manifest["run_id"] == whole.id for run in loaded)
    assert loaded[0].tokenizer.name == "bytes"


def test_a_loaded_model_has_the_loss_that_was_reported(results: Path, whole: RunFolder, data: Any):
    """The final weights, and everything that the configuration says beside them."""
    from tnbench.training.evaluate import evaluate
    from tnbench.training.trainer import FINAL_BYTES

    model, _, manifest = load_run(whole.id, results)
    texts = data.evaluation("report", manifest["config"]["data"]["context"], FINAL_BYTES)
    found = evaluate(model, texts, sequences=8)
    assert found.loss == pytest.approx(manifest["evaluation"]["report"]["values"]["val_loss"], rel=1e-5)


def edited(results: Path, **changes: Any) -> None:
    path = next(results.glob("*/runs/*/manifest.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def unfinished(results: Path) -> None:
    edited(results, outcome=None)


def diverged(results: Path) -> None:
    edited(results, outcome="diverged", reason="loss is nan at step 3")


def no_weights(results: Path) -> None:
    next(results.glob("*/runs/*/checkpoint/model.safetensors")).unlink()


def no_manifest(results: Path) -> None:
    next(results.glob("*/runs/*/manifest.json")).write_text("{")


def another_run(results: Path) -> None:
    edited(results, run_id="other")


def other_tokenizer(results: Path) -> None:
    manifest = json.loads(next(results.glob("*/runs/*/manifest.json")).read_text())
    manifest["data"]["tokenizer"]["hash"] = "0"
    edited(results, data=manifest["data"])


def tokenizer_gone(results: Path) -> None:
    manifest = json.loads(next(results.glob("*/runs/*/manifest.json")).read_text())
    manifest["config"]["data"]["tokenizer"] = "/nowhere/tokenizer"
    edited(results, config=manifest["config"], config_hash="")


def truncated(results: Path) -> None:
    weights = next(results.glob("*/runs/*/checkpoint/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])


def flipped(results: Path) -> None:
    weights = next(results.glob("*/runs/*/checkpoint/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def twice(results: Path) -> None:
    shutil.copytree(results / "tiny", results / "again")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (unfinished, "run run has not finished"),
        (diverged, "no final weights, it ended so: diverged, loss is nan at step 3"),
        (
            no_weights,
            "kept no weights \\(--keep none\\); train it again with .*--keep weights --results .*/repeats$",
        ),
        (truncated, "run run is damaged: model.safetensors cannot be read: .*--results .*/repeats$"),
        (flipped, "run run is damaged: model.safetensors is damaged: its checksum differs; train it again"),
        (no_manifest, "its manifest cannot be read"),
        (another_run, "another run's"),
        (other_tokenizer, "another tokenizer bytes: its hash was 0"),
        (tokenizer_gone, "its tokenizer /nowhere/tokenizer cannot be had"),
        (twice, "run run is in .*again/runs/run and in .*tiny/runs/run; name its folder"),
    ],
)
def test_runs_that_cannot_be_used(results: Path, damage: Callable[[Path], None], says: str):
    damage(results)
    with pytest.raises(RequestError, match=says) as error:
        load_run("run", results)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rnu", "has no run 'rnu', did you mean run\\?"),
        ("zzzz", "has no run 'zzzz', it has 1 run$"),
        ("z" * 5000, "has no run 'zzzz.*\\.\\.\\., it has 1 run$"),
        ("", "an empty name"),
        (".", "no run folder: it holds no manifest.json"),
    ],
)
def test_no_such_run(results: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(results)
    with pytest.raises(RequestError, match=says):
        find_run(name, results)


def test_no_folder_to_look_in(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for name, what in (("nowhere", "is not there"), ("file", "is no folder")):
        with pytest.raises(
            RequestError, match=f"no run 'a': {tmp_path / name}, in which .* {what}; name anot"
        ):
            find_run("a", tmp_path / name)
