"""Suites that are stopped, killed, or run by several commands at once, and what their workers do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from small_suite import (
    TEXT,
    LocalWorker,
    metrics,
    prepare_folder,
    start,
    stop_all,
    wait_for,
    workers_of,
)

from tnbench.ablation import leases, workers
from tnbench.ablation.execute import Ledger, execute
from tnbench.ablation.suite import PlannedRun, Suite, load_suite
from tnbench.ablation.train import train
from tnbench.errors import RequestError
from tnbench.records import RunFolder, write_json

pytestmark = pytest.mark.usefixtures("settled_process")

STEPS = 120


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a corpus and a suite."""
    monkeypatch.chdir(tmp_path)
    prepare_folder(tmp_path, STEPS)
    yield tmp_path
    stop_all()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the suite, run through."""
    there = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        prepare_folder(there, STEPS)
        assert set(execute(suite()).outcomes.values()) == {"finished"}
    return there / "results"


def suite(seeds: int = 1) -> Suite:
    return load_suite("small.yaml", Path("results"), settings={"training.device": "cpu"}, seeds=seeds)


def checkpoints() -> list[Path]:
    return list(Path("results").glob("small/runs/*/checkpoint/training.safetensors"))


def attempts() -> list[int]:
    return [run.folder.read_manifest()["attempts"] for run in suite().runs()]  # type: ignore[index]


def same_results(other: Path) -> None:
    assert metrics() == metrics(str(other))
    assert not checkpoints()
    assert not list(Path("results").glob("small/runs/**/*.tmp"))
    assert not list(Path("results").glob("small/runs/*/lease.json"))


# stopped and killed


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGKILL, signal.SIGTERM))],
    ids=lambda number: number.name,
)
@pytest.mark.usefixtures("local_workers")
def test_a_suite_that_was_stopped_goes_on_where_it_was(number: signal.Signals, uninterrupted: Path) -> None:
    process = start("--seeds", "1")
    wait_for(checkpoints, process)
    os.kill(process.pid, number)
    output = process.communicate(timeout=60)[0].decode()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, output
        assert "the same command goes on" in output
        assert "Traceback" not in output
        assert checkpoints()
    assert set(execute(suite()).outcomes.values()) == {"finished"}
    assert 2 in attempts()
    same_results(uninterrupted)


def test_workers_do_not_outlive_their_command(folder: Path) -> None:
    prepare_folder(folder, 100_000)
    process = start()
    wait_for(checkpoints, process)
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker goes on without its parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_row_and_the_suite_goes_on() -> None:
    process = start("--seeds", "1")
    wait_for(checkpoints, process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1, output
    runs = pd.read_csv("results/small/runs.csv")
    assert sorted(runs.outcome) == ["failed", "finished"]
    (reason,) = runs[runs.outcome == "failed"].reason
    assert "killed by SIGKILL" in reason
    assert "manifest.json" in output


@pytest.mark.parametrize("then", ["nobody has it", "another command has it", "another command has ended it"])
def test_the_run_of_a_dead_worker(
    then: str, folder: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    held: list[leases.Lease | None] = []
    if then != "another command has ended it":
        prepare_folder(folder, 4)

    class Doomed(LocalWorker):
        """Dies with its first run."""

        def start(self, task: workers.Task) -> None:
            if held:
                return super().start(task)
            self.task, self.silent = task, True
            self.process = SimpleNamespace(join=lambda: None, exitcode=-signal.SIGKILL)  # type: ignore[assignment]
            held.append(leases.acquire(task.folder) if then == "another command has it" else None)
            if then == "another command has ended it":
                shutil.copytree(uninterrupted / "small" / "runs" / task.folder.id, task.folder.path)
            return None

        def is_gone(self) -> bool:
            return self.silent

    def watch(ledger: Ledger) -> None:
        if held[0] and ledger.elsewhere:
            assert not first.manifest.exists()
            held[0].release()

    monkeypatch.setattr("tnbench.ablation.execute.Worker", Doomed)
    first, second = (run.folder for run in suite().runs())
    ledger = execute(suite(), workers=1, watch=watch)
    fails = then == "nobody has it"
    assert ledger.outcomes == {first.id: "failed" if fails else "finished", second.id: "finished"}
    reason = (first.read_manifest() or {})["reason"]
    assert reason == ("its process was killed by SIGKILL, perhaps for want of memory" if fails else None)


# several commands at once


@pytest.mark.slow
def test_two_commands_share_a_suite(uninterrupted: Path) -> None:
    for process in [start("--seeds", "1"), start("--seeds", "1")]:
        output = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 0, output
        assert "2 runs: 2 finished" in output
    assert attempts() == [1] * 2
    same_results(uninterrupted)


@pytest.fixture
def local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnbench.ablation.execute.Worker", LocalWorker)


@pytest.mark.usefixtures("local_workers")
def test_runs_that_another_command_has_are_left_to_it(uninterrupted: Path) -> None:
    """One that ends there gives its result; one that is given up there is run here."""
    first, second = (run.folder for run in suite().runs())
    held = {folder.id: leases.acquire(folder) for folder in (first, second)}
    assert all(held.values())
    seen: list[set[str]] = []

    def watch(ledger: Ledger) -> None:
        if ledger.elsewhere not in seen:
            seen.append(set(ledger.elsewhere))
        if ledger.elsewhere == {first.id, second.id}:
            assert not ledger.running
            shutil.copytree(uninterrupted / "small" / "runs" / first.id, first.path, dirs_exist_ok=True)
        elif ledger.elsewhere == {second.id}:
            release(second)

    def release(folder: RunFolder) -> None:
        lease = held.pop(folder.id, None)
        if lease:
            lease.release()

    ledger = execute(suite(), workers=2, watch=watch)
    assert ledger.outcomes == {first.id: "finished", second.id: "finished"}
    assert {frozenset(found) for found in seen} >= {
        frozenset({first.id, second.id}),
        frozenset({second.id}),
        frozenset(),
    }
    release(first)
    there = uninterrupted / "small" / "runs" / first.id
    assert first.manifest.read_bytes() == (there / "manifest.json").read_bytes()
    assert list(ledger.first_steps) == [second.id], "only the second was trained here"


def test_train_does_not_touch_a_run_that_another_process_has(folder: Path) -> None:
    settings = {"model.size": "0.1m", "data.corpus": "text.txt", "data.context": 32, "training.steps": 2}

    def start() -> int:
        with open(os.devnull, "w") as silent:
            console = Console(file=silent)
            there = Path("results")
            return train(settings=settings, seed=0, device="cpu", results=there, keep="none", console=console)

    assert start() == 0
    (path,) = Path("results/train/runs").iterdir()
    shutil.rmtree(path)
    with leases.acquire(RunFolder(path)) or pytest.fail("not free"):
        with pytest.raises(RequestError, match=f"process {os.getpid()} on .* is training"):
            start()
        assert [found.name for found in path.iterdir()] == ["lease.json"]


@pytest.fixture
def task() -> workers.Task:
    """The first run of the suite, as its worker is given it."""
    run = suite().runs()[0]
    return workers.Task(run.config, run.folder, {"variant": "gate"}, False, run.folder.read_manifest())


def do(task: workers.Task) -> tuple[str, str | None]:
    return workers._do(task, lambda progress: None, lambda: False)


def failed(folder: RunFolder, reason: str) -> dict[str, object]:
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.manifest, {"run_id": folder.id, "outcome": "failed", "reason": reason, "attempts": 1})
    return folder.read_manifest() or {}


def test_a_failure_elsewhere_since_the_beginning_is_not_repeated(task: workers.Task) -> None:
    record = failed(task.folder, "a wrong turn")
    assert do(task) == ("done", "failed")
    assert task.folder.read_manifest() == record


def test_a_failure_from_before_is_tried_again(task: workers.Task, folder: Path) -> None:
    record = failed(task.folder, "a wrong turn")
    prepare_folder(folder, 4)
    run = suite().runs()[0]
    record = failed(run.folder, "a wrong turn")
    assert do(workers.Task(run.config, run.folder, former=record)) == ("done", "finished")
    assert (run.folder.read_manifest() or {})["attempts"] == 2


def test_a_run_that_is_lost_to_another_host_is_elsewhere(
    task: workers.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.Lease, "mine", lambda self: False)
    assert do(task) == ("elsewhere", None)
    assert not task.folder.metrics.exists() or not task.folder.metrics.read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda path: path.write_text(TEXT + "One more sentence."),
            "the corpus or the source code has changed",
        ),
        (Path.unlink, "text.txt"),
    ],
)
def test_a_corpus_that_changes_meanwhile_is_named(
    change: Callable[[Path], None], told: str, task: workers.Task, folder: Path
) -> None:
    """A worker opens the corpus itself: the run id would lie."""
    change(folder / "text.txt")
    assert do(task) == ("done", "failed")
    assert told in (task.folder.read_manifest() or {})["reason"]


# more runs than were known


@pytest.mark.usefixtures("local_workers")
def test_runs_that_become_known_by_the_results_of_others_are_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder(folder, 4)
    asked: list[list[str | None]] = []
    every = Suite.runs

    def runs(self: Suite) -> list[PlannedRun]:
        """Two runs; once they have ended, all four."""
        known = every(self)
        outcomes = [run.folder.outcome() for run in known]
        asked.append(outcomes)
        return known if all(outcomes[:2]) else known[:2]

    monkeypatch.setattr(Suite, "runs", runs)
    sizes: list[int] = []
    ledger = execute(suite(seeds=2), workers=1, watch=lambda ledger: sizes.append(len(ledger.planned)))
    assert list(ledger.outcomes.values()) == ["finished"] * 4
    assert [run.folder.id for run in ledger.planned] == [run.folder.id for run in every(suite(seeds=2))]
    assert sorted(set(sizes)) == [2, 4]
    assert sizes == sorted(sizes)
    assert asked == [[None] * 4, ["finished"] * 2 + [None] * 2, ["finished"] * 4]


# folders that cannot be written


@pytest.mark.usefixtures("local_workers")
@pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux's")
def test_a_failure_that_cannot_be_recorded_is_told(folder: Path) -> None:
    prepare_folder(folder, 4)
    first, second = (run.folder for run in suite().runs())
    first.path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(first.path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system")
    try:
        ledger = execute(suite(), workers=1)
    finally:
        subprocess.run(["umount", str(first.path)], check=True)
    assert ledger.outcomes == {first.id: "failed", second.id: "finished"}
    assert list(ledger.unrecorded) == [first.id]
    assert "Read-only file system" in ledger.unrecorded[first.id]
