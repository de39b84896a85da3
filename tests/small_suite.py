"""A small suite to run: its files, the command, and what is compared of its results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
from rich.console import Console
from tiny_runs import MEASURED

from tnbench.ablation import command, workers
from tnbench.records import read_metrics
from tnbench.training.loop import Progress

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


STARTED: list[subprocess.Popen[bytes]] = []
"""Processes that `start` has started."""


def stop_all() -> None:
    """Kill what was started, with what that has started: a test that fails leaves nothing running."""
    while STARTED:
        process = STARTED.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


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
            if value["name"] not in MEASURED
        ]
    return found


def workers_of(parent: int) -> list[int]:
    """Process ids of a command's workers."""
    found = []
    with suppress(OSError):  # it may end meanwhile
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


class LocalWorker(workers.Worker):
    """A worker that is no process of its own: quick to start, and done when `start` returns."""

    def __init__(self, stop: object, device_index: int | None = None) -> None:
        self.connection, self.theirs = workers.SPAWN.Pipe()
        self.device_index, self.task, self.silent = device_index, None, False

    def is_gone(self) -> bool:
        return False

    def start(self, task: workers.Task) -> None:
        self.task = task
        last: list[Progress] = []
        answer = workers._do(task, lambda progress: last.append(progress), lambda: False)
        for progress in last[:1]:
            self.theirs.send(("progress", progress))
        self.theirs.send(answer)

    def close(self) -> None:
        self.connection.close()
