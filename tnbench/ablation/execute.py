"""Run what a suite is missing, on as many workers as the machine has room for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from tnbench.ablation.suite import PlannedRun, Suite
from tnbench.ablation.workers import SPAWN, Task, Worker, fail
from tnbench.records import ENDED
from tnbench.training.loop import Progress

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 60.0
"""How long workers may take to reach a step's end and write a checkpoint after Ctrl-C."""


@dataclass
class Ledger:
    """What is known of a suite's runs while it is executed."""

    planned: list[PlannedRun]
    outcomes: dict[str, str] = field(default_factory=dict)
    """Run id → outcome, of runs that have ended."""
    running: dict[str, Progress | None] = field(default_factory=dict)
    """Run id → where it is."""
    started: float = field(default_factory=time.monotonic)
    first_steps: dict[str, int] = field(default_factory=dict)
    """Step at which a run began in this execution: what lay behind it is no progress of ours."""
    steps_ended: int = 0
    """Steps done in this execution by runs that have ended."""
    interrupted: bool = False

    def work_left(self) -> int:
        """Optimizer steps still to do."""
        left = 0
        for run in self.planned:
            if run.folder.id not in self.outcomes:
                progress = self.running.get(run.folder.id)
                left += run.config.training.total_steps - (progress.step if progress else 0)
        return left

    def seconds_left(self) -> float | None:
        """Estimated from the steps done so far in this execution; None before there are some."""
        done = self.steps_ended
        for run_id, progress in self.running.items():
            if progress:
                done += progress.step - self.first_steps.get(run_id, 0)
        return self.work_left() * (time.monotonic() - self.started) / done if done >= 20 else None


class _Interrupt(Exception):
    """Ctrl-C, or a request to terminate."""


def ended_outcomes(suite: Suite) -> dict[str, str]:
    """Run id → outcome of the runs that need not be started again."""
    known = {run.folder.id: run.folder.outcome() for run in suite.runs()}
    return {run_id: outcome for run_id, outcome in known.items() if outcome in ENDED}


def default_workers(suite: Suite, runs: int) -> int:
    """One worker per GPU; on CPU as many as the cores can serve with the runs' own threads."""
    if suite.device == "cuda":
        import torch

        return max(1, min(torch.cuda.device_count(), runs))
    threads = max(variant.config.training.threads for variant in suite.variants)
    return max(1, min(len(os.sched_getaffinity(0)) // threads, runs))


def execute(
    suite: Suite,
    *,
    workers: int | None = None,
    keep_weights: bool = True,
    watch: Callable[[Ledger], None] = lambda ledger: None,
) -> Ledger:
    """Train every run that has not ended. Finished runs are kept whatever happens to the others.

    Args:
        suite: what to run.
        workers: processes; by default as `default_workers`.
        keep_weights: whether final weights are kept.
        watch: called a few times a second, and whenever a run ends.

    Returns:
        The ledger; `interrupted` says that Ctrl-C ended it, `outcomes` holds what has ended.
    """
    ledger = Ledger(suite.runs(), ended_outcomes(suite))
    waiting = [run for run in ledger.planned if run.folder.id not in ledger.outcomes]
    if not waiting:
        return ledger
    stop = SPAWN.RawValue("b", 0)  # no lock: one that is held by a killed worker would stop the others
    count = min(workers or default_workers(suite, len(waiting)), len(waiting))

    def hire(index: int) -> Worker:
        return Worker(stop, index if suite.device == "cuda" else None)

    with _interruptible():
        crew: list[Worker] = []
        try:
            crew += [hire(index) for index in range(count)]
            while waiting or any(worker.task for worker in crew):
                for worker in crew:
                    if worker.task is None and waiting:
                        run = waiting.pop(0)
                        ledger.running[run.folder.id] = None
                        worker.start(_task(suite, run, keep_weights))
                for worker in list(crew):
                    if worker.task and worker.silent:
                        _bury(worker, ledger)
                        crew.remove(worker)
                        if waiting:
                            crew.append(hire(worker.device_index or 0))
                _listen(crew, ledger)
                watch(ledger)
        except _Interrupt:
            ledger.interrupted = True
            _wind_down(crew, stop, ledger, watch)
        except BaseException:  # whatever it is, the runs keep what they have
            _wind_down(crew, stop, ledger, lambda ledger: None)
            raise
        finally:
            for worker in crew:
                worker.close()
    watch(ledger)
    return ledger


def _task(suite: Suite, run: PlannedRun, keep_weights: bool) -> Task:
    attributes: dict[str, Any] = {
        "suite": suite.name,
        "suite_hash": suite.digest(),
        "variant": run.variant.name,
        "diff": run.variant.diff,
        "seed": run.seed,
    }
    return Task(run.config, run.folder, attributes, keep_weights)


def _listen(crew: list[Worker], ledger: Ledger) -> None:
    """Take in what the workers have said since the last time."""
    busy = {worker.connection: worker for worker in crew if worker.task}
    for connection in wait(list(busy), POLL_SECONDS):
        worker = busy[connection]  # type: ignore[index]
        while worker.task and worker.connection.poll():
            try:
                kind, content = worker.connection.recv()
            except (EOFError, OSError):
                worker.silent = True
                break
            run_id = worker.task.folder.id
            if kind == "progress":
                ledger.first_steps.setdefault(run_id, content.step - 1)
                ledger.running[run_id] = content
            else:
                last = ledger.running.pop(run_id, None)
                if last:
                    ledger.steps_ended += last.step - ledger.first_steps.get(run_id, 0)
                if content != "interrupted":
                    ledger.outcomes[run_id] = content
                worker.task = None


def _bury(worker: Worker, ledger: Ledger) -> None:
    """A worker that died took its run with it: killed is an outcome, with what is known of the reason."""
    assert worker.task is not None
    worker.process.join()
    code = worker.process.exitcode or 0
    reason = f"its process ended with status {code}"
    if code < 0:
        reason = f"its process was killed by {signal.Signals(-code).name}"
        reason += ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    fail(worker.task, reason)
    folder = worker.task.folder
    ledger.running.pop(folder.id, None)
    ledger.outcomes[folder.id] = "failed"
    worker.task = None


def _wind_down(crew: list[Worker], stop: Any, ledger: Ledger, watch: Callable[[Ledger], None]) -> None:
    """Ask the workers for a checkpoint; a second Ctrl-C does not wait for it."""
    stop.value = 1
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while any(worker.task and not worker.silent for worker in crew):
            if time.monotonic() > deadline:
                break
            _listen(crew, ledger)
            watch(ledger)
    except _Interrupt:
        pass
    for worker in crew:
        if worker.task:
            worker.process.kill()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `_Interrupt` in the main loop."""

    def raise_interrupt(number: int, frame: Any) -> None:
        raise _Interrupt

    before = {number: signal.signal(number, raise_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
