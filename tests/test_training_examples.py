"""Training on examples: only scored tokens count, in every form of the loss, and runs and suites work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from small_suite import LocalWorker, ablate
from tiny_runs import TINY, same_run

from tnbench import cli, report
from tnbench.ablation import execute
from tnbench.ablation.suite import load_suite
from tnbench.config import RunConfig
from tnbench.data import ExampleData, prepare
from tnbench.data.examples import UNSCORED
from tnbench.errors import RequestError
from tnbench.evaluation.loading import load_run
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, read_metrics
from tnbench.resolution import resolve
from tnbench.training.evaluate_examples import evaluate_examples
from tnbench.training.loop import run
from tnbench.training.optimizer import adamw
from tnbench.training.step import objective, optimizer_step

pytestmark = pytest.mark.usefixtures("settled_process")

CORPUS = {"name": "mqar", "pairs": [2, 4], "length": 32, "vocabulary": 32, "rows": 200, "held_out": 60}
SUITE = """
title: "A small suite of recall"
base:
  model.size: 0.1m
  data.corpus: {name: mqar, pairs: [2, 4], length: 32, vocabulary: 32, rows: 200, held_out: 60}
  training.steps: 6
  training.batch_tokens: 256
  training.evaluations: 2
variants:
  linear-4: {}
  linear-8: {model.heads: 8}
  transformer: {model.preset: transformer}
seeds: {tune: [100], report: [0, 1]}
tune: {grid: {training.learning_rate: [0.002, 0.004]}, widen: 0}
analysis: {metric: val_answer_error}
"""


def config(**settings: Any) -> RunConfig:
    base = {key: value for key, value in TINY.items() if key != "data.context"}
    return resolve({**base, "data.corpus": CORPUS}, settings)


def data_of(settings: RunConfig) -> ExampleData:
    data = prepare(settings.data, quiet=True)
    assert isinstance(data, ExampleData)
    return data


def model_of(settings: RunConfig) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(settings.model, data_of(settings).vocab_size, settings.data.context)


@pytest.mark.parametrize("form", ["logits", "chunked"])
def test_the_loss_is_the_mean_over_scored_tokens(form):
    settings = config(**{"training.loss": form})
    model, batch = model_of(settings), data_of(settings).batch(0, 0, 8, 32)
    loss = objective(model, settings.training, examples=True)(batch[:, 0], batch[:, 1])
    logits = model(batch[:, 0])
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1].flatten(), ignore_index=UNSCORED)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    mine = torch.autograd.grad(loss, model.embedding.weight)[0]
    theirs = torch.autograd.grad(expected, model.embedding.weight)[0]
    assert torch.allclose(mine, theirs, atol=1e-7)


def test_what_is_not_scored_has_no_gradient():
    """Changing the target of an unscored position changes nothing; there is none to change."""
    settings = config()
    rows = data_of(settings).rows["train"]
    batch = data_of(settings).batch(0, 0, 4, 32)
    assert (batch[:, 1] == UNSCORED).sum() == 4 * 32 - (rows.parts[:0].sum() + (batch[:, 1] >= 0).sum())
    model = model_of(settings)
    hidden = model.hidden(batch[:, 0])
    hidden.retain_grad()
    scored = batch[:, 1] != UNSCORED
    F.cross_entropy(F.linear(hidden[scored], model.output_weight), batch[:, 1][scored]).backward()
    assert hidden.grad is not None
    assert not hidden.grad[~scored].any()


def test_micro_batches_count_by_their_scored_tokens():
    """Rows of 2 and of 4 pairs in turn: micro-batches of one row score different numbers of tokens."""
    settings, weights = config(), []
    batch = data_of(settings).batch(0, 0, 6, 32)
    assert len({int((row != UNSCORED).sum()) for row in batch[:, 1]}) == 2
    for micro in (6, 1):
        model = model_of(settings)
        optimizer = adamw(model, settings.training)
        loss, norm = optimizer_step(model, optimizer, batch, settings.training, micro_sequences=micro)
        weights.append((loss.item(), norm.item(), model.embedding.weight.detach().clone()))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-6)
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-5)
    assert torch.allclose(weights[0][2], weights[1][2], atol=1e-5)


def test_the_evaluation_sums_by_part_and_level():
    settings = config()
    data, model = data_of(settings), model_of(settings)
    held_out = data.evaluation("report", 32)
    found = evaluate_examples(model, held_out, sequences=7)
    assert len(held_out.rows) == 60
    rows, logits = held_out.rows, model(torch.from_numpy(held_out.rows.inputs.astype("int64")))
    nats = -F.log_softmax(logits.detach().double(), -1)
    for level in range(2):
        expected, wrong, count = 0.0, 0, 0
        for row in range(60):
            for place in range(32):
                if rows.levels[row] == level and rows.parts[row, place]:
                    target = int(rows.targets[row, place])
                    expected += float(nats[row, place, target])
                    wrong += int(logits[row, place].argmax()) != target
                    count += 1
        assert found.sums[0, level].tolist() == pytest.approx([count, expected, wrong], rel=1e-5)
    values = {name: value for name, value, _ in found.values(by_level=True)}
    by_level = [values["val_answer_error@pairs=2"], values["val_answer_error@pairs=4"]]
    assert values["val_answer_error"] == pytest.approx(sum(by_level) / 2)
    assert values["val_loss_bits"] == values["val_answer_bits"]
    assert set(data.metrics()) <= values.keys()
    assert data.uniform("val_answer_error") == 1 - 1 / 32
    assert data.uniform("val_loss") == pytest.approx(3.4657, abs=1e-4)


def test_images_have_two_parts():
    settings = config(**{"data.corpus": "digits", "training.batch_tokens": 260})
    found = evaluate_examples(
        model_of(settings), data_of(settings).evaluation("tune", 65, 6500), sequences=50
    )
    assert found.sums[:, 0, 0].tolist() == [100 * 64, 100]
    names = [name for name, _, _ in found.values(by_level=True)]
    assert names[2:] == ["val_pixel_bits", "val_pixel_error", "val_class_bits", "val_class_error"]


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path):
    settings = config()
    data = data_of(settings)
    whole, stopped = RunFolder(tmp_path / "whole" / "run"), RunFolder(tmp_path / "stopped" / "run")
    assert run(settings, whole, data) == "finished"
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) == 7

    assert run(settings, stopped, data, stop=stop) == "interrupted"
    assert run(settings, stopped, data) == "finished"
    assert same_run(whole, stopped)
    values, _ = read_metrics(whole.metrics)
    final = {value["name"]: value for value in values if value.get("split") == "report"}
    assert final["val_answer_error"]["unit"] == "share"
    assert {"val_answer_error@pairs=2", "val_answer_bits@pairs=4"} <= final.keys()
    assert not any("@" in value["name"] for value in values if value.get("split") == "tune")
    with pytest.raises(RequestError, match="the tokens of examples are no text"):
        load_run(str(whole.path), tmp_path)  # what eval, generate and export begin with
    manifest = json.loads(whole.manifest.read_text())
    assert manifest["config"]["data"]["corpus"]["pairs"] == [2, 4]
    assert manifest["evaluation"]["report"]["documents"] == 60


@pytest.fixture
def suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(execute, "Worker", LocalWorker)
    monkeypatch.setattr(report, "save", lambda figure, format: b"")  # drawing for print takes seconds
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recall.yaml").write_text(SUITE)
    return tmp_path / "recall.yaml"


def test_a_suite_of_recall_is_tuned_run_and_reported(suite_file: Path, capsys: pytest.CaptureFixture[str]):
    assert ablate("recall.yaml") == 0
    folder = Path("results/recall")
    runs: Any = pd.read_csv(folder / "runs.csv")
    assert len(runs) == 6
    assert runs["val_answer_error"].between(0, 1).all()
    assert runs["val_bits_per_byte"].isna().all()
    levels = runs[["val_answer_error@pairs=2", "val_answer_error@pairs=4"]]
    assert runs["val_answer_error"].to_numpy() == pytest.approx(levels.mean(axis=1).to_numpy())
    assert len(pd.read_csv(folder / "tuning.csv")) == 6
    points: Any = pd.read_csv(folder / "recall.csv")
    assert set(points["family"]) == {"linear", "transformer"}
    states = points.drop_duplicates("variant").set_index("variant")["state_size"]
    assert states["linear-4"] == (2 + 1) * 4 * 16 * 16 == 2 * states["linear-8"]  # LRPE doubles the keys
    assert states["transformer"] == 2 * 2 * 32 * 64
    table = (folder / "table.md").read_text()
    assert "wrong answers ↓ (share)" in table
    words = ["compare", "recall/linear-4", "recall/transformer", "--metric", "val_answer_error", "--json"]
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["n"] == 2


def test_a_suite_needs_a_metric_that_its_examples_have(suite_file: Path):
    text = suite_file.read_text()
    suite_file.write_text(text.replace("analysis: {metric: val_answer_error}", ""))
    with pytest.raises(RequestError, match="known for it: val_loss_nats, val_loss_bits, val_answer_error, "):
        load_suite("recall.yaml", Path("results"))


def test_models_of_examples_are_not_asked_tasks(suite_file: Path):
    suite_file.write_text(suite_file.read_text() + "evals: {tasks: cloze}\n")
    with pytest.raises(RequestError, match="know no text; leave the key out"):
        load_suite("recall.yaml", Path("results"))


def test_the_plan_of_a_suite_of_recall(suite_file: Path, capsys: pytest.CaptureFixture[str]):
    from tnbench.ablation import command

    with open("plan.txt", "w") as file:
        command.ablate(
            "recall.yaml",
            results=Path("results"),
            console=Console(file=file, width=200),
            settings={},
            seeds=None,
            workers=1,
            device="cpu",
            keep="none",
            mode="plan",
        )
    text = Path("plan.txt").read_text()
    assert "mqar (pairs = [2, 4], length = [32]" in text
    assert "context 32, cpu" in text
    assert "smallest detectable difference: not known, no repeats yet" in text


def test_a_single_run_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    settings = {"data.corpus": "digits", "training.batch_tokens": 260, "training.steps": 2}
    words = ["train", "--device", "cpu", "--keep", "none"]
    for key, value in {"model.size": "0.1m", "training.evaluations": 1, **settings}.items():
        words += ["--set", f"{key}={value}"]
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nats per token, wrong pixels 0." in said
    assert ", wrong classes " in said
