"""kill -9 at random moments of a suite: after the reruns it is as if nothing had happened.

A suite is started as a user starts it, with two workers, and killed: its whole process group, the command
alone, or one worker; while it starts, trains, evaluates or writes its reports. It is started again until it
ends by itself, and begun anew in another folder if kills are left. It writes a checkpoint after every step,
so a kill may cost one step in each of the runs that it hits.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open
from small_suite import TEXT, TIMINGS, LocalWorker, ablate, workers_of
from tiny_runs import MEASURED

from tnbench.records import RunFolder, read_metrics

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")

WORKERS = 2
SUITE = """
base:
  model.size: 0.1m
  data.corpus: text.txt
  data.context: 32
  training.steps: {steps}
  training.batch_tokens: 256
  training.evaluations: 3
  training.checkpoint_every: 0
variants:
  gate: {{}}
  no-gate: {{model.gate: false}}
seeds: 2
"""
RUNS = 4
VOLATILE = {
    *("started", "ended", "attempts", "training_seconds", "evaluation_seconds"),
    *("tokens_per_second", "peak_memory_bytes"),
}
"""Entries of a manifest that say when and how fast, not what."""

COUNTER = '''
"""Every Python process of the suite imports this first: optimizer steps are noted before they are taken."""

import importlib.util
import os
import sys


class Finder:
    def find_spec(self, name, path, target=None):
        if name != "tnbench.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            step = module.Trainer._step

            def counted(self, batch):
                log = os.open(os.environ["STEP_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(log, f"{self.folder.id} {self.state.step}\\n".encode())
                os.close(log)
                return step(self, batch)

            module.Trainer._step = counted

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


@dataclass
class Moment:
    """When a kill comes: so many seconds after the last kill or start, steps, or runs that have finished."""

    seconds: float
    steps: int = 0
    finished: int = 0


@dataclass
class Campaign:
    """One results folder, from its first start to its end."""

    results: Path
    process: subprocess.Popen[bytes] | None = None
    began: tuple[int, int] = (0, 0)
    """Steps and finished runs when the process was started."""
    worker_killed: bool = False
    """Whether a worker of the process was."""
    kills: list[str] = field(default_factory=list)
    """Target and phase of each kill."""
    ended: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Run id → steps and manifest, of the runs that had finished when a kill came."""

    def start(self) -> None:
        """The command, as a process that leads a group."""
        self.results.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "STEP_LOG": str(self.results / "steps"),
            "PYTHONPATH": os.pathsep.join([str(Path("counter").resolve()), *sys.path[1:]]),
        }
        with open(self.results / "output", "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tnbench.cli", *arguments(self.results)],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.began, self.worker_killed = (self.steps().total(), len(self.finished())), False

    def steps(self) -> Counter[str]:
        """Steps that were begun so far, by run."""
        log = self.results / "steps"
        return (
            Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()
        )

    def finished(self) -> dict[str, bytes]:
        """Manifests of the runs that have finished."""
        folders = [RunFolder(path.parent) for path in self.results.glob("small/runs/*/manifest.json")]
        return {run.id: run.manifest.read_bytes() for run in folders if run.outcome() == "finished"}

    def reaches(self, moment: Moment) -> bool:
        """Wait for a moment; false if the process has ended before."""
        assert self.process is not None
        steps = self.steps().total() + moment.steps
        finished = min(RUNS, len(self.finished()) + moment.finished)
        due, deadline = None, time.monotonic() + 200
        while self.process.poll() is None:
            if due is None and self.steps().total() >= steps and len(self.finished()) >= finished:
                due = time.monotonic() + moment.seconds
            if due is not None and time.monotonic() >= due:
                return True
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.005)
        return False

    def kill(self, target: str, choose: Callable[[list[int]], int]) -> None:
        """Kill the group, the command, or a worker that `choose` picks."""
        assert self.process is not None
        workers = workers_of(self.process.pid)
        finished, steps = self.finished(), self.steps()
        phase = "training" if steps.total() > self.began[0] else "starting"
        phase = "reporting" if len(finished) == RUNS and len(finished) > self.began[1] else phase
        if target == "worker" and workers:
            os.kill(choose(workers), signal.SIGKILL)
            self.worker_killed = True
        else:
            if target == "command":  # the next start finds its workers still there
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        self.kills.append(f"{target} {phase}")
        self.ended |= {run: (steps[run], finished[run]) for run in finished.keys() - self.ended.keys()}

    def output(self) -> str:
        return (self.results / "output").read_text()

    def check(self, steps: int, expected: dict[str, Any]) -> None:
        """The campaign is over: compare it with the uninterrupted suite."""
        assert records(self.results) == expected
        runs = pd.read_csv(self.results / "small" / "runs.csv")
        assert (runs.outcome == "finished").all()
        done, now = self.steps(), self.finished()
        assert len(done) == RUNS
        for run, (taken, manifest) in self.ended.items():
            assert (done[run], now[run]) == (taken, manifest), "a finished run was done again"
        lost = sum(runs.attempts - 1)
        assert lost <= WORKERS * len(self.kills)
        assert RUNS * steps <= done.total() <= RUNS * steps + lost
        for row in runs.itertuples():
            assert done[str(row.run_id)] <= steps + int(row.attempts) - 1  # type: ignore[arg-type]


def arguments(results: Path) -> list[str]:
    words = ["ablate", "small.yaml", "--workers", str(WORKERS), "--device", "cpu"]
    return [*words, "--results", str(results)]


def records(results: Path) -> dict[str, Any]:
    """All that the runs have left, file by file, but for timings."""
    found: dict[str, Any] = {}
    for path in sorted(results.glob("small/runs/**/*")):
        name = str(path.relative_to(results))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            manifest["command"] = manifest["command"].replace(str(results), "RESULTS")
            found[name] = {key: value for key, value in manifest.items() if key not in VOLATILE}
        elif path.name == "metrics.jsonl":
            values, problems = read_metrics(path)
            assert not problems
            kept = [value for value in values if value["name"] not in MEASURED]
            found[name] = [{key: value[key] for key in value if key != "time"} for value in kept]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:  # the checksum covers all tensors
                found[name] = (file.metadata(), sorted(file.keys()))
        elif path.is_file():
            found[name] = path.read_bytes()
    table = pd.read_csv(results / "small" / "runs.csv").drop(columns=TIMINGS)
    return {**found, "runs.csv": table.to_csv()}


def survive(plan: list[tuple[str, Moment]], steps: int, draw: random.Random) -> Counter[str]:
    """Kill suites of runs of so many steps as planned, check what becomes of them, and count the kills."""
    Path("text.txt").write_text(TEXT)
    Path("small.yaml").write_text(SUITE.format(steps=steps))
    Path("counter").mkdir()
    Path("counter", "sitecustomize.py").write_text(COUNTER)
    whole = Path("whole").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        patch.setattr(sys, "argv", ["cli.py", *arguments(whole)])
        assert ablate(results=str(whole)) == 0
    expected, ahead, kills = records(whole), list(plan), Counter[str]()
    while ahead:
        campaign = Campaign(Path(f"results-{len(ahead)}").resolve())
        try:
            while True:
                if campaign.process is None:
                    campaign.start()
                assert campaign.process is not None
                if ahead and campaign.reaches(ahead[0][1]):
                    campaign.kill(ahead.pop(0)[0], draw.choice)
                elif campaign.process.wait(timeout=200) == 0:
                    break
                else:
                    assert (campaign.process.returncode, campaign.worker_killed) == (1, True), (
                        campaign.output()
                    )
                    campaign.process = None
        finally:
            if campaign.process is not None and campaign.process.poll() is None:
                os.killpg(campaign.process.pid, signal.SIGKILL)
                campaign.process.wait()
        campaign.check(steps, expected)
        kills.update(campaign.kills)
    return kills


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_kills_of_all_and_of_a_worker() -> None:
    draw = random.Random(1)
    training = Moment(draw.uniform(0, 0.05), steps=draw.randint(2, 6))
    plan = [("group", Moment(draw.uniform(0, 1))), ("worker", training)]
    kills = survive(plan, 8, draw)
    assert kills == {"group starting": 1, "worker training": 1}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills() -> None:
    draw = random.Random(0)
    plan = []
    for _ in range(50):
        target = draw.choices(["group", "command", "worker"], [2, 1, 1])[0]
        moment = draw.choices(
            [
                Moment(draw.uniform(0, 8)),
                Moment(draw.uniform(0, 0.1), steps=draw.randint(1, 80)),
                Moment(draw.uniform(0, 0.3), finished=1),
                Moment(draw.uniform(0, 3), finished=RUNS),
            ],
            [2, 5, 1, 1],
        )[0]
        plan.append((target, moment))
    kills = survive(plan, 60, draw)
    print(dict(kills))
    assert kills.total() == 50
    phases = Counter(kill.split()[1] for kill in kills.elements())
    assert phases["training"] >= 15
    assert len(phases) == 3
