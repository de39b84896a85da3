"""Suites end to end, on a small corpus: what is written, what is repeated, what survives."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from tnbench.ablation import command
from tnbench.ablation.collect import collect
from tnbench.ablation.execute import execute
from tnbench.ablation.suite import load_suite, shipped_suites
from tnbench.records import read_metrics
from tnbench.report.results import RUN_COLUMNS
from tnbench.resolution import parse_setting

TEXT = "".join(f"Sentence {n} of a small corpus: {n * n} is the square of {n}.\n" for n in range(4000))
TIMINGS = ["tokens_per_second", "peak_memory_bytes", "train_seconds", "started", "ended", "attempts", "host"]
SUITE = """
title: "A small suite"
base:
  model.size: 0.1m
  data.corpus: text.txt
  data.context: 32
  training.steps: {steps}
  training.batch_tokens: 256
  training.evaluations: 2
  training.checkpoint_every: 0.2
variants:
  gate: {{}}
  no-gate: {{model.gate: false}}
seeds: 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a corpus and a suite."""
    monkeypatch.chdir(tmp_path)
    prepare_folder(tmp_path)
    yield tmp_path
    while STARTED:  # a test that fails leaves nothing running
        process = STARTED.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


STARTED: list[subprocess.Popen[bytes]] = []


def prepare_folder(folder: Path, steps: int = 8) -> None:
    (folder / "text.txt").write_text(TEXT)
    (folder / "small.yaml").write_text(SUITE.format(steps=steps))


def ablate(name: str = "small.yaml", results: str = "results", **options: object) -> int:
    """`tnbench ablate` in this process, on one worker."""
    defaults: dict[str, object] = {
        "settings": {},
        "seeds": None,
        "workers": 1,
        "device": "cpu",
        "keep": "weights",
        "mode": "run",
    }
    with open(os.devnull, "w") as silent:
        console = Console(file=silent)
        return command.ablate(name, results=Path(results), console=console, **{**defaults, **options})  # type: ignore[arg-type]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """`tnbench ablate small.yaml` as a process of its own, which leads a group."""
    words = [sys.executable, "-m", "tnbench.cli", "ablate", "small.yaml", "--workers", "1"]
    words += ["--device", "cpu", *arguments]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    STARTED.append(process)
    return process


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def numbers(results: str = "results") -> pd.DataFrame:
    """runs.csv without what may differ between repetitions."""
    return pd.read_csv(Path(results) / "small" / "runs.csv").drop(columns=TIMINGS)


def metrics(results: str = "results") -> dict[str, list[tuple[object, ...]]]:
    """Every recorded value of every run, without timings."""
    found = {}
    for path in sorted(Path(results).glob("small/runs/*/metrics.jsonl")):
        values, problems = read_metrics(path)
        assert not problems
        found[path.parent.name] = [
            (value["name"], value["split"], value["step"], value["value"])
            for value in values
            if value["name"] not in ("step_seconds", "tokens_per_second", "peak_memory_bytes")
        ]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the small suite, run once; tests work on copies."""
    there = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        prepare_folder(there)
        assert ablate() == 0
    return there / "results"


def test_a_suite_writes_everything_and_is_not_repeated(finished: Path) -> None:
    shutil.copytree(finished, "results")
    there = Path("results/small")
    names = {"runs.csv", "summary.csv", "table.md", "table.tex", "curves.png", "curves.pdf", "report.html"}
    assert names <= {path.name for path in there.iterdir()}
    runs = pd.read_csv(there / "runs.csv")
    assert list(runs.columns) == list(RUN_COLUMNS)
    assert runs[["variant", "seed"]].values.tolist() == [
        ["gate", 0],
        ["gate", 1],
        ["no-gate", 0],
        ["no-gate", 1],
    ]
    assert (runs.outcome == "finished").all()
    assert runs.val_bits_per_byte.between(1, 9).all()
    assert runs.parameters.nunique() == 2
    manifests = {path: path.read_bytes() for path in there.glob("runs/*/manifest.json")}
    assert len(manifests) == 4
    before = (there / "runs.csv").read_bytes()
    assert ablate() == 0
    assert {path: path.read_bytes() for path in there.glob("runs/*/manifest.json")} == manifests
    assert (there / "runs.csv").read_bytes() == before


def test_what_is_missing_is_run_and_gives_the_same_numbers(finished: Path) -> None:
    shutil.copytree(finished, "results")
    lost, *kept = sorted(Path("results/small/runs").iterdir())
    shutil.rmtree(lost)
    times = {path: (path / "manifest.json").stat().st_mtime_ns for path in kept}
    assert ablate(workers=2) == 0
    assert {path: (path / "manifest.json").stat().st_mtime_ns for path in kept} == times
    pd.testing.assert_frame_equal(numbers(), numbers(str(finished)), check_exact=True)
    assert metrics() == metrics(str(finished))


def test_a_finished_run_that_lost_its_result_is_run_again(finished: Path) -> None:
    shutil.copytree(finished, "results")
    emptied, garbled, foreign, *_ = sorted(Path("results/small/runs").iterdir())
    (emptied / "metrics.jsonl").write_text("")
    (garbled / "manifest.json").write_text('{"outcome": 5}')
    (foreign / "manifest.json").write_text("[]")
    results = collect(load_suite("small.yaml", Path("results"), settings={"training.device": "cpu"}))
    assert sum("cannot be read" in note for note in results.notes) == 2
    assert ablate() == 0
    pd.testing.assert_frame_equal(numbers(), numbers(str(finished)), check_exact=True)
    assert metrics() == metrics(str(finished))


def test_a_run_on_other_data_than_planned_fails(folder: Path) -> None:
    """A worker opens the corpus itself: if it has changed by then, the run id would lie."""
    suite = load_suite("small.yaml", Path("results"), seeds=1)
    (folder / "text.txt").write_text(TEXT + "One more sentence.")
    ledger = execute(suite, workers=1)
    assert set(ledger.outcomes.values()) == {"failed"}
    manifest = suite.runs()[0].folder.read_manifest()
    assert manifest is not None
    assert "the corpus or the source code has changed" in manifest["reason"]


def test_the_command_of_a_report_can_be_pasted(folder: Path) -> None:
    settings = {"model.mixer": ["gla", "gla"], "model.decay": {"name": "fixed", "value": 0.5}}
    suite = load_suite("small.yaml", folder / "my results", settings=settings, seeds=1)
    words = shlex.split(collect(suite).facts["command"])
    assert words[:3] == ["tnbench", "ablate", "small.yaml"]
    given = dict(parse_setting(words[n + 1]) for n, word in enumerate(words) if word == "--set")
    assert given == settings
    assert words[words.index("--results") + 1] == str(folder / "my results")


def test_runs_of_other_settings_are_counted_not_mixed(finished: Path) -> None:
    shutil.copytree(finished, "results")
    results = collect(load_suite("small.yaml", Path("results"), settings={"training.learning_rate": 0.01}))
    assert (results.runs.outcome == "missing").all()
    assert any("4 runs of other settings" in note for note in results.notes)


def test_the_same_seed_sees_the_same_data_in_every_variant() -> None:
    suite = load_suite("small.yaml", Path("results"))
    seeds = {run.seed: set() for run in suite.runs()}
    for run in suite.runs():
        seeds[run.seed].add((run.config.training.data_seed, run.config.training.init_seed))
    assert seeds == {0: {(0, 0)}, 1: {(1, 1)}}
    assert len({run.folder.id for run in suite.runs()}) == 4


def test_a_base_row_is_added_where_no_diff_is_empty(folder: Path) -> None:
    (folder / "small.yaml").write_text(SUITE.format(steps=8).replace("gate: {}\n  no-", "no-"))
    suite = load_suite("small.yaml", Path("results"))
    assert [(variant.name, variant.diff) for variant in suite.variants] == [
        ("base", {}),
        ("no-gate", {"model.gate": False}),
    ]


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_is_right_at_every_size_of_ablations(name: str) -> None:
    for size in ("0.1m", "1m", "35m"):
        suite = load_suite(name, Path("results"), settings={"model.size": size})
        assert suite.file.title
        assert suite.file.fixed
        assert len(suite.variants) >= 2
        assert not suite.variants[0].diff
        heads = {variant.config.model.heads for variant in suite.variants}
        assert min(heads) >= 4
        assert len({run.folder.id for run in suite.runs()}) == len(suite.variants) * len(suite.seeds)
    assert len(suite.seeds) >= (2 if name == "smoke" else 3)


def test_a_diverged_run_is_a_row(folder: Path) -> None:
    suite = SUITE.format(steps=8) + "\n"
    suite = suite.replace(
        "{model.gate: false}", "{training.learning_rate: 1.0e+6, training.gradient_clip: 0}"
    )
    (folder / "small.yaml").write_text(suite)
    assert ablate(seeds=1) == 0
    runs = pd.read_csv("results/small/runs.csv").set_index("variant")
    assert runs.outcome.to_dict() == {"gate": "finished", "no-gate": "diverged"}
    assert runs.loc["no-gate", "stopped_step"] >= 1
    assert "diverged" in Path("results/small/table.md").read_text()
    assert "diverged" in Path("results/small/report.html").read_text()


def test_plan_and_status_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("plan", "status"):
        assert (
            command.ablate(
                "small.yaml",
                settings={},
                seeds=None,
                workers=None,
                device="cpu",
                results=Path("results"),
                keep="weights",
                mode=mode,
                console=Console(width=160),
            )
            == 0
        )
        shown = capsys.readouterr().out
        assert "no-gate" in shown
        assert "2 variants × 2 seeds" in shown
        assert ("about" in shown) == (mode == "plan")
        assert not Path("results").exists()


def test_report_is_rebuilt_from_records_alone(finished: Path) -> None:
    shutil.copytree(finished, "results")
    there = Path("results/small")
    kept = {
        path.name: path.read_bytes() for path in there.iterdir() if path.is_file() and path.name[0] != "."
    }
    for name in kept:
        (there / name).unlink()
    assert ablate(mode="report") == 0
    assert {path.name: path.read_bytes() for path in there.iterdir() if path.name in kept} == kept


STEPS = 120


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a longer suite that ran through."""
    there = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        prepare_folder(there, STEPS)
        assert ablate() == 0
    return there / "results"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_suite_that_was_stopped_goes_on_where_it_was(
    number: signal.Signals, folder: Path, uninterrupted: Path
) -> None:
    prepare_folder(folder, STEPS)
    process = start()
    wait_for(lambda: list(Path("results").glob("small/runs/*/checkpoint/training.safetensors")), process)
    os.kill(process.pid, number)
    output = process.communicate(timeout=60)[0].decode()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, output
        assert "the same command goes on" in output
        assert "Traceback" not in output
        assert list(Path("results").glob("small/runs/*/checkpoint/training.safetensors"))
    assert ablate() == 0
    runs = pd.read_csv("results/small/runs.csv")
    assert (runs.outcome == "finished").all()
    assert runs.attempts.max() == 2
    pd.testing.assert_frame_equal(numbers(), numbers(str(uninterrupted)), check_exact=True)
    assert metrics() == metrics(str(uninterrupted))
    assert not list(Path("results").glob("**/training.safetensors"))
    assert not list(Path("results").glob("**/*.tmp"))


def test_one_command_at_a_time_and_its_workers_do_not_outlive_it(folder: Path) -> None:
    prepare_folder(folder, 100_000)
    process = start()
    wait_for(lambda: list(Path("results").glob("small/runs/*/checkpoint/training.safetensors")), process)
    second = start()
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 2
    assert b"another tnbench ablate is running small" in output
    workers = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f" {process.pid} " in _stat(entry)
    ]
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker goes on without its parent"
        time.sleep(0.05)


def _stat(entry: Path) -> str:
    """`pid (name) state parent …` of a process, or nothing if it has just ended."""
    try:
        return (entry / "stat").read_text()
    except OSError:
        return ""


def test_a_killed_worker_is_a_failed_row_and_the_suite_goes_on(folder: Path) -> None:
    prepare_folder(folder, STEPS)
    process = start("--seeds", "1")
    wait_for(lambda: list(Path("results").glob("small/runs/*/checkpoint/training.safetensors")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    os.kill(workers[0], signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1, output
    runs = pd.read_csv("results/small/runs.csv")
    assert sorted(runs.outcome) == ["failed", "finished"]
    (reason,) = runs[runs.outcome == "failed"].reason
    assert "killed by SIGKILL" in reason
    assert "manifest.json" in output
    assert ablate(seeds=1) == 0
    assert (pd.read_csv("results/small/runs.csv").outcome == "finished").all()
