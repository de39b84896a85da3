"""Loss by position: exact, in bins, beyond the trained context, and from the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from test_scoring import VOCABULARY, built

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.evaluation import by_position, reading, study
from tnbench.evaluation.generation import inference_model
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.resolution import resolve

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer", "transnormer-t1"])
def test_segments_give_the_losses_of_whole_windows(preset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(by_position, "SEGMENT", 33)
    monkeypatch.setattr(by_position, "LOGITS", 20 * VOCABULARY)
    model = built(preset)
    stream = torch.randint(VOCABULARY, (6 * 100 + 30,), generator=torch.Generator().manual_seed(0))
    found = by_position.losses(model, stream, 100)
    windows = torch.stack([stream[n * 100 : n * 100 + 101] for n in range(6)])
    logits = model(windows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none").view(6, 100)
    assert found.shape == (6, 100)
    assert torch.allclose(found, expected.double(), rtol=1e-4, atol=1e-5)


def test_bins_are_powers_of_two():
    nats = torch.arange(1, 17).double().repeat(4, 1) * math.log(2)
    nats[0] += math.log(2)
    found = by_position.binned(nats)
    assert found.edges == [1, 2, 4, 8, 17]  # 16 alone would be a bin of one
    assert found.bits == pytest.approx([1.25, 2.75, 5.75, 12.25])
    assert found.stderr == pytest.approx([0.25] * 4)  # standard deviation 0.5 of four windows
    assert by_position.binned(nats[:, :12]).edges == [1, 2, 4, 8, 13]
    assert by_position.binned(nats[:1, :2]).edges == [1, 2, 3]
    assert math.isnan(by_position.binned(nats[:1]).stderr[0])


@pytest.mark.parametrize("text", ["", "x", "0", "1", "1.5", "99999999x", "-4", "٤"])
def test_lengths_are_read(text: str):
    assert by_position.length_of("16x", 128) == 2048
    assert by_position.length_of("300", 128) == 300
    with pytest.raises(RequestError, match="--by-position"):
        by_position.length_of(text, 128)


def test_learned_positions_end():
    config = resolve({"model.preset": "gpt2", "model.size": "0.1m", "data.context": 32, "training.steps": 1})
    model = inference_model(LanguageModel(config.model, VOCABULARY, 32), "fp32")
    with pytest.raises(ValueError, match="learned absolute positions end at 32"):
        by_position.losses(model, torch.zeros(200, dtype=torch.int64), 33)
    with pytest.raises(ValueError, match="less than one window of 301"):
        by_position.losses(model, torch.zeros(200, dtype=torch.int64), 300)


def test_from_the_command_line(whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Recorded once; the mean over a trained window is near the run's own loss."""
    results = tmp_path / "results"
    shutil.copytree(whole.path, results / "tiny" / "runs" / whole.id)

    def tnbench(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", whole.id, "--results", str(results), "--device", "cpu", *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert tnbench("--by-position", "4x") == 0
    assert "(beyond)" in capsys.readouterr().out
    store = study.Store(results / study.FOLDER)
    frame = pd.read_csv(store.folder / "positions.csv")
    context = json.loads((whole.path / "manifest.json").read_text())["config"]["data"]["context"]
    assert frame["end"].max() == 4 * context + 1
    assert (store.folder / "positions.png").stat().st_size > 5000
    last = frame.iloc[-1]["bits_per_token"] / frame.iloc[-1]["bytes_per_token"]
    values = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    reported = [one["value"] for one in values if one["name"] == "val_bits_per_byte"]
    assert last == pytest.approx(reported[-1], rel=0.15)
    assert len(store.positions()) == 1
    assert tnbench("--by-position", "4x") == 0
    assert "loss by position" not in capsys.readouterr().out  # it is recorded
    assert tnbench("--by-position", "4x", "--tasks", "cloze") == 2
    assert "do not go with it" in capsys.readouterr().err


def test_models_are_read_in_several_ways(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each way has its line in the plot, damaged records have none, what is wrong is told before reading."""
    results = tmp_path / "results"
    shutil.copytree(whole.path, results / "tiny" / "runs" / whole.id)

    def tnbench(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", whole.id, "--results", str(results), "--device", "cpu", *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert tnbench("--by-position", "1x") == 0
    assert tnbench("--by-position", "2x") == 0
    store = study.Store(results / study.FOLDER)
    frame = pd.read_csv(store.folder / "positions.csv")
    assert set(frame["model"]) == {f"base {whole.id}, windows of {n}" for n in (32, 64)}
    good = store.positions()
    with open(store.path, "a") as file:
        for broken in (
            {"kind": "positions"},
            {**good[0], "stderr": []},
            {**good[0], "model": None, "edges": 3},
        ):
            file.write(json.dumps(broken) + "\n")
    assert store.positions() == good
    capsys.readouterr()
    monkeypatch.setattr(reading, "read_run", lambda *_: pytest.fail("nothing is to be read"))
    assert tnbench("--by-position", "2x") == 0
    assert tnbench(whole.id, "--by-position", "2x") == 2
    assert "is given twice" in capsys.readouterr().err
    assert tnbench("--by-position", "900000") == 2
    assert "less than one window of 900001; give a shorter" in capsys.readouterr().err


def test_examples_are_no_text(whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = tmp_path / "tiny" / "runs"
    shutil.copytree(whole.path, runs / whole.id)
    manifest = json.loads((runs / whole.id / "manifest.json").read_text())
    manifest["config"]["data"] |= {"corpus": "digits", "tokenizer": "none", "context": 65}
    del manifest["config_hash"]
    (runs / whole.id / "manifest.json").write_text(json.dumps(manifest))
    for arguments in (["--by-position", "2x"], []):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["eval", whole.id, "--results", str(tmp_path), "--device", "cpu", *arguments])
        assert f"run {whole.id} was trained on examples" in capsys.readouterr().err


def test_a_diverged_model_has_no_losses():
    model = built("transformer")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        by_position.losses(model, torch.zeros(100, dtype=torch.int64), 10)
