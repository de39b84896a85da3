"""Suites with tuning, matching and repeats, run for real on a small corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console
from small_suite import LocalWorker

from tnbench.ablation import command
from tnbench.ablation.suite import load_suite
from tnbench.records import RunFolder, read_metrics

pytestmark = pytest.mark.usefixtures("settled_process")

RATE = "training.learning_rate"
TEXT = "".join(f"Sentence {n} of a small corpus: {n * n} is the square of {n}.\n" for n in range(1200))
SUITE: dict[str, Any] = {
    "title": "A tuned suite",
    "base": {
        "model.width": 32,
        "model.layers": 1,
        "model.heads": 4,
        "model.channel_width": 48,
        "data.corpus": "text.txt",
        "data.context": 32,
        "training.steps": 6,
        "training.batch_tokens": 256,
        "training.evaluations": 2,
    },
    "variants": {"gate": {}, "again": {"repeat": True}, "no-gate": {"model.gate": False}},
    "seeds": {"tune": [100, 101], "report": [0, 1]},
    "tune": {"grid": {RATE: [0.001, 0.004]}, "widen": 1},
    "match": {"by": "parameters", "tolerance": 0.02},
    "analysis": {"margin": 0.05},
}


def ablate(name: str = "tuned.yaml", **options: Any) -> tuple[int, str]:
    """Exit status and output of `tnbench ablate` in this process, on one worker."""
    given = {"settings": {}, "seeds": None, "workers": 1, "device": "cpu", "keep": "none", "mode": "run"}
    with open("output.txt", "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        status = command.ablate(
            name, results=Path("results"), console=Console(file=file, width=200), **{**given, **options}
        )
    return status, Path("output.txt").read_text()


def manifests() -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in Path("results/tuned/runs").glob("*/manifest.json")
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the suite has been run."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "text.txt").write_text(TEXT)
    (folder / "tuned.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    before = os.getcwd()
    os.chdir(folder)
    try:
        status, output = ablate()
        assert status == 0, output
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(done: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(done)
    return done / "results" / "tuned"


def test_tuning_runs_are_apart_from_the_reported_ones(here):
    runs, tuning = pd.read_csv(here / "runs.csv"), pd.read_csv(here / "tuning.csv")
    assert set(runs["seed"]) == {0, 1}
    assert set(tuning["seed"]) == {100, 101}
    assert not set(runs["run_id"]) & set(tuning["run_id"])
    assert len(runs) == 6
    assert (tuning.groupby("variant").size() == tuning.groupby("variant").size().iloc[0]).all()
    assert set(runs["run_id"]) | set(tuning["run_id"]) == set(manifests())


def test_each_variant_is_reported_with_its_best_point_on_the_tune_split(here):
    """Recomputed from the metrics files alone."""
    runs = pd.read_csv(here / "runs.csv")
    scores: dict[str, dict[float, list[float]]] = {}
    for run_id, manifest in manifests().items():
        if manifest["phase"] != "tune":
            continue
        values, _ = read_metrics(RunFolder(here / "runs" / run_id).metrics)
        last = [
            value["value"]
            for value in values
            if value["name"] == "val_bits_per_byte" and value["split"] == "tune" and value["step"] == 6
        ]
        rate = manifest["config"]["training"]["learning_rate"]
        assert manifest["point"] == {RATE: rate}
        scores.setdefault(manifest["variant"], {}).setdefault(rate, []).append(last[0])
    for variant, points in scores.items():
        assert all(len(values) == 2 for values in points.values())
        best = min(points, key=lambda rate: sum(points[rate]))
        mine = [manifests()[run_id] for run_id in runs[runs["variant"] == variant]["run_id"]]
        assert {manifest["config"]["training"]["learning_rate"] for manifest in mine} == {best}
        assert {manifest["phase"] for manifest in mine} == {"report"}


def test_a_rerun_trains_nothing_and_writes_the_same_report(here):
    before = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    attempts = {run_id: manifest["attempts"] for run_id, manifest in manifests().items()}
    status, _ = ablate()
    assert status == 0
    assert {run_id: manifest["attempts"] for run_id, manifest in manifests().items()} == attempts
    assert {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


def test_the_repeat_is_neither_better_nor_worse_here(here):
    verdicts = pd.read_csv(here / "comparisons.csv").set_index("variant")
    assert verdicts.loc["again", "verdict"] in ("equivalent", "undecided")
    assert verdicts.loc["no-gate", "comparisons"] == 2


def test_plan_and_status_know_the_choice(here):
    status, plan = ablate(mode="plan")
    assert status == 0
    assert "trials per variant" in plan
    assert "smallest detectable difference" in plan
    assert "A/A rows" in plan
    status, table = ablate(mode="status")
    assert status == 0
    assert "tuning: training.learning_rate" in table


def test_the_report_waits_for_a_tuning_run_that_is_missing(here, tmp_path, monkeypatch):
    import shutil

    for name in ("text.txt", "tuned.yaml", "results"):
        source = here.parent.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    lost = next(run_id for run_id, manifest in manifests().items() if manifest["phase"] == "tune")
    shutil.rmtree(tmp_path / "results/tuned/runs" / lost)
    status, output = ablate(mode="report")
    assert status == 0
    assert "tuning has not ended: 1 of its" in output
    runs = pd.read_csv(tmp_path / "results/tuned/runs.csv")
    assert set(runs["outcome"]) == {"missing"}
    status, output = ablate()
    assert (status, set(pd.read_csv(tmp_path / "results/tuned/runs.csv")["outcome"])) == (0, {"finished"})
    assert manifests()[lost]["attempts"] == 1


def test_a_learning_rate_that_diverges_is_a_result_of_the_tuning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    tune = {"grid": {RATE: [0.002, 1e5]}, "widen": 0}
    content = {**SUITE, "variants": {"gate": {}}, "tune": tune, "seeds": {"tune": [100], "report": [0]}}
    content["base"] = {**SUITE["base"], "training.steps": 40, "training.gradient_clip": 0}
    del content["match"]
    Path("tuned.yaml").write_text(yaml.safe_dump(content))
    status, output = ablate()
    assert status == 0, output
    tuning = pd.read_csv("results/tuned/tuning.csv")
    assert tuning.set_index(RATE)["outcome"].to_dict() == {0.002: "finished", 1e5: "diverged"}
    assert tuning.set_index(RATE)["value"].isna().to_dict() == {0.002: False, 1e5: True}
    suite = load_suite("tuned.yaml", Path("results"), settings={"training.device": "cpu"}, quiet=True)
    found = suite.search()
    assert found is not None
    choice = found.choices["gate"]
    assert choice.point == {RATE: 0.002}
    assert choice.edge == f"{RATE} at its smallest, 0.002"
    assert choice.sensitivity == pytest.approx((8.005 - choice.value) / 2, abs=0.01)  # log2 257 bits


def test_a_plan_that_was_changed_after_the_runs_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    content = {key: SUITE[key] for key in ("base", "analysis")}
    content |= {"variants": {"gate": {}, "no-gate": {"model.gate": False}}, "seeds": [0]}
    Path("tuned.yaml").write_text(yaml.safe_dump(content))
    assert "note:" not in ablate()[1]
    Path("tuned.yaml").write_text(yaml.safe_dump({**content, "title": "Another", "fixed": "all"}))
    assert "note:" not in ablate(mode="report")[1]
    Path("tuned.yaml").write_text(yaml.safe_dump({**content, "analysis": {"margin": 0.5}}))
    assert "2 of 2 runs began before the suite file said what it says now" in ablate(mode="report")[1]
    Path("tuned.yaml").write_text(yaml.safe_dump({**content, "seeds": [0, 1]}))
    assert "some runs began when 1 of these 2 seeds were planned" in " ".join(ablate()[1].split())
