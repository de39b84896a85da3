"""Run what a suite is missing, on as many workers as the machine has room for.

Several commands may do so at the same time, on one host or on several that share the results folder: a run
that another one has (see `leases`) is left to it, and taken up only if it is given up there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from tnbench.ablation import leases
from tnbench.ablation.eval_queue import Evaluations
from tnbench.ablation.eval_worker import Evaluation, Failures
from tnbench.ablation.suite import PlannedRun, Suite
from tnbench.ablation.workers import SPAWN, Task, Worker, fail
from tnbench.records import ENDED, RunFolder, remove_unfinished
from tnbench.training.loop import Progress

POLL_SECONDS = 0.25
ELSEWHERE_SECONDS = 1.0
"""Between two looks at the runs that other commands have."""
PATIENCE_SECONDS = 60.0
"""How long workers may take to reach a step's end and write a checkpoint after Ctrl-C."""


@dataclass
class Ledger:
    """What is known of a suite's runs while it is executed."""

    planned: list[PlannedRun] = field(default_factory=list)
    """All runs known so far: with tuning, the results of some decide on others."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """Run id → outcome, of runs that have ended."""
    running: dict[str, Progress | None] = field(default_factory=dict)
    """Run id → where it is."""
    elsewhere: set[str] = field(default_factory=set)
    """Run ids of runs that another command is training."""
    unrecorded: dict[str, str] = field(default_factory=dict)
    """Run id → reason, of failed runs whose failure could not be written: a full disk, say."""
    started: float = field(default_factory=time.monotonic)
    first_steps: dict[str, int] = field(default_factory=dict)
    """Step at which a run began in this execution: what lay behind it is no progress of ours."""
    steps_ended: int = 0
    """Steps done in this execution by runs that have ended."""
    evaluating: dict[str, str] = field(default_factory=dict)
    """Run id → what a finished run is asked now."""
    evaluated: dict[str, Failures] = field(default_factory=dict)
    """Run id → what failed: of finished runs that are asked nothing more."""
    interrupted: bool = False

    def work_left(self) -> int:
        """Optimizer steps still to do here."""
        left = 0
        for run in self.planned:
            if run.folder.id not in self.outcomes and run.folder.id not in self.elsewhere:
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
    """Train every run that has not ended, and evaluate those that are reported, where the suite says so.

    Finished runs are kept whatever happens to the others.

    Args:
        suite: what to run.
        workers: processes; by default as `default_workers`.
        keep_weights: whether final weights are kept; if not, they go once a run is evaluated.
        watch: called a few times a second, and whenever a run ends.

    Returns:
        The ledger; `interrupted` says that Ctrl-C ended it, `outcomes` holds what has ended, also elsewhere.
    """
    crew = _Crew(suite, workers or default_workers(suite, sys.maxsize), keep_weights)
    ledger = crew.ledger
    crew.look()
    if not crew.busy():
        return ledger
    with _interruptible():
        try:
            while crew.busy():
                crew.assign()
                crew.listen()
                crew.ask_elsewhere()
                watch(ledger)
                if not crew.busy():
                    crew.look()
        except _Interrupt:
            ledger.interrupted = True
            crew.wind_down(watch)
        except BaseException:  # whatever it is, the runs keep what they have
            crew.wind_down(lambda ledger: None)
            raise
        finally:
            crew.dismiss()
    watch(ledger)
    return ledger


class _Crew:
    """The workers of one execution, and the runs that wait for them."""

    def __init__(self, suite: Suite, size: int, keep_weights: bool) -> None:
        self.suite, self.size = suite, size
        self.evaluations = Evaluations(suite, keep_weights)
        self.ledger = Ledger(evaluating=self.evaluations.asking, evaluated=self.evaluations.ended)
        self.waiting: deque[PlannedRun] = deque()
        self._former: dict[str, dict[str, Any] | None] = {}
        self._workers: list[Worker] = []
        self._stop = SPAWN.RawValue("b", 0)  # no lock: a killed worker might hold it for ever
        self._asked = time.monotonic()

    def look(self) -> None:
        """Take in the runs that the suite knows of by now; those that have not ended will be trained."""
        known = {run.folder.id for run in self.ledger.planned}
        recorded = self.evaluations.recorded()
        for run in self.suite.runs():
            folder = run.folder
            if folder.id in known:
                continue
            known.add(folder.id)
            self.ledger.planned.append(run)
            if (outcome := folder.outcome()) in ENDED:
                self.ledger.outcomes[folder.id] = outcome
                _tidy(folder)
                if outcome == "finished":
                    self.evaluations.take(run, recorded)
            else:
                self._former[folder.id] = folder.read_manifest()
                self.waiting.append(run)

    def busy(self) -> bool:
        """Whether there is a run to be trained, evaluated or waited for."""
        return bool(self.waiting or self.ledger.running or self.ledger.elsewhere or self.evaluations.busy())

    def assign(self) -> None:
        """Give waiting runs to idle workers; a worker is hired where all are busy and there is room.

        Finished runs come first: they are evaluated.
        """
        for worker in [worker for worker in self._workers if worker.is_gone()]:
            self._bury(worker)
        while self.waiting or self.evaluations.waiting:
            worker = next((worker for worker in self._workers if worker.task is None), None)
            if worker is None and len(self._workers) < self.size:
                worker = self._hire()
            if worker is None:
                return
            if self.evaluations.waiting:
                worker.start(self.evaluations.job())
                continue
            run = self.waiting.popleft()
            self.ledger.running[run.folder.id] = None
            former, keep = self._former[run.folder.id], self.evaluations.keeps_weights(run)
            worker.start(Task(run.config, run.folder, self._attributes(run), keep, former))

    def listen(self) -> None:
        """Take in what the workers have said since the last time."""
        busy = {worker.connection: worker for worker in self._workers if worker.task and not worker.silent}
        if not busy:
            time.sleep(POLL_SECONDS)
        for connection in wait(list(busy), POLL_SECONDS):
            worker = busy[connection]  # type: ignore[index]
            while worker.task and worker.connection.poll():
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    worker.silent = True
                    break
                self._hear(worker, kind, content)

    def ask_elsewhere(self) -> None:
        """Look whether the runs that other commands have were ended, or given up, which makes them ours."""
        if time.monotonic() - self._asked < ELSEWHERE_SECONDS:
            return
        self._asked = time.monotonic()
        self.evaluations.ask_elsewhere()
        for run in self.ledger.planned:
            if run.folder.id in self.ledger.elsewhere:
                outcome = run.folder.outcome()
                if outcome in ENDED:
                    self._ended(run.folder.id, outcome)
                elif leases.holder(run.folder) is None:
                    self.waiting.append(run)
                else:
                    continue
                self.ledger.elsewhere.discard(run.folder.id)

    def wind_down(self, watch: Callable[[Ledger], None]) -> None:
        """Ask the workers for a checkpoint; a second Ctrl-C does not wait for it.

        Evaluations need none: what was answered is kept.
        """
        self._stop.value = 1
        for worker in self._workers:
            if isinstance(worker.task, Evaluation):
                worker.process.kill()
                worker.task = None
        self.evaluations.stop()
        deadline = time.monotonic() + PATIENCE_SECONDS
        with suppress(_Interrupt):
            while any(worker.task and not worker.silent for worker in self._workers):
                if time.monotonic() > deadline:
                    break
                self.listen()
                watch(self.ledger)
        for worker in self._workers:
            if worker.task:
                worker.process.kill()

    def dismiss(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()

    def _hire(self) -> Worker:
        worker = Worker(self._stop, self._least_used_gpu() if self.suite.device == "cuda" else None)
        self._workers.append(worker)
        return worker

    def _least_used_gpu(self) -> int:
        import torch

        used = Counter(worker.device_index for worker in self._workers)
        return min(range(torch.cuda.device_count()), key=lambda index: used[index])

    def _attributes(self, run: PlannedRun) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "suite_hash": self.suite.digest(),
            "variant": run.variant.name,
            "diff": run.variant.diff,
            "seed": run.seed,
            "phase": run.phase,
            "point": run.point,
            "planned_seeds": self.suite.seeds,
            **self.evaluations.attributes(run),
        }

    def _hear(self, worker: Worker, kind: str, content: Any) -> None:
        assert worker.task is not None
        ledger, run_id = self.ledger, worker.task.folder.id
        if isinstance(worker.task, Evaluation):
            job, worker.task = worker.task, worker.task if kind == "progress" else None
            self.evaluations.hear(job, kind, content)
            return
        if kind == "progress":
            ledger.first_steps.setdefault(run_id, content.step - 1)
            ledger.running[run_id] = content
            return
        worker.task = None
        last = ledger.running.pop(run_id, None)
        if last:
            ledger.steps_ended += last.step - ledger.first_steps.get(run_id, 0)
        if kind == "elsewhere":
            ledger.elsewhere.add(run_id)
        elif kind == "unrecorded":
            ledger.outcomes[run_id] = "failed"
            ledger.unrecorded[run_id] = content
        elif content != "interrupted":
            self._ended(run_id, content)

    def _ended(self, run_id: str, outcome: str) -> None:
        """A run has its outcome; a finished one is evaluated next."""
        self.ledger.outcomes[run_id] = outcome
        if outcome == "finished":
            self.evaluations.take(next(run for run in self.ledger.planned if run.folder.id == run_id))

    def _bury(self, worker: Worker) -> None:
        """A worker that died took its run with it: that is an outcome, with what is known of the reason."""
        self._workers.remove(worker)
        worker.process.join()
        task = worker.task
        if task is None:
            return
        code = worker.process.exitcode or 0
        reason = f"its process ended with status {code}"
        if code < 0:
            reason = f"its process was killed by {signal.Signals(-code).name}"
            reason += ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        if isinstance(task, Evaluation):
            self.evaluations.bury(task, reason)
            return
        folder = task.folder
        try:
            lease = leases.acquire(folder)  # the dead worker has lost it
            if lease is None:
                self._hear(worker, "elsewhere", None)
                return
            with lease:
                ended = folder.outcome()
                if ended not in ENDED:
                    fail(folder, task.attributes, reason)
                    ended = "failed"
            self._hear(worker, "done", ended)
        except OSError as error:
            self._hear(worker, "unrecorded", f"{reason}; {error}")


def _tidy(folder: RunFolder) -> None:
    """Remove what a process that was killed at the very end of a run has left."""
    if folder.resume.exists() or folder.lease.exists() or any(folder.path.glob(".*.tmp")):
        with suppress(OSError), leases.acquire(folder) or nullcontext() as lease:
            if lease:
                folder.resume.unlink(missing_ok=True)
                remove_unfinished(folder.path)


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
