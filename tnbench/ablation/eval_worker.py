"""What a worker does to evaluate a run: ask it what it was not asked yet, and record what comes of it.

A request that fails is recorded with its reason and leaves the others alone. Answers are kept as they come,
so that a worker may be killed at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tnbench.ablation.eval_plan import POSITIONS, EvalPlan, Subject, in_keys
from tnbench.config import digest
from tnbench.errors import first_line
from tnbench.evaluation import study
from tnbench.evaluation.task_loading import load
from tnbench.profiling.lines import Line, RecordsError
from tnbench.records import RunFolder, now

Failures = dict[str, tuple[str, str]]
"""What was not answered → outcome (`failed`, `out_of_memory` or `no_weights`) and reason."""


@dataclass(frozen=True)
class Evaluation:
    """A finished run to evaluate."""

    folder: RunFolder
    subject: Subject
    variant: str
    plan: EvalPlan
    names: tuple[str, ...]
    """What it is asked, of the plan's names."""
    threads: int
    """Of torch, on a CPU: those of the run's training."""


_managers: dict[str, Any] = {}
"""Plan → lm-eval's index of tasks, read once in a process: it takes seconds."""
_loaded: dict[tuple[str, str], Any] = {}
"""Plan and task → the task with its data."""


def evaluate(job: Evaluation, tell: Callable[[str], None]) -> tuple[str, Failures]:
    """Ask a run, one name after the other.

    Args:
        tell: is told each name before its turn.

    Returns:
        `evaluated`, or `elsewhere` where another process makes one of the evaluations; and what failed.
    """
    from tnbench.evaluation.evaluating import run_model, session_on
    from tnbench.profiling.machine import machine

    _hold_no_semaphore()
    plan, busy = job.plan, False
    failed: Failures = {}
    model = run_model(job.folder, job.variant, dict(plan.options), quiet=True)
    session = session_on(machine(plan.options["device"])[1])
    opened: dict[str, Any] = {}
    with _threads(job.threads):
        for name in job.names:
            tell(name)
            try:
                if name == POSITIONS:
                    _read(job)
                else:
                    _ask(job, name, model, session, opened)
            except study.Busy:
                busy = True
            except Exception as error:
                failed[name] = _told(error)
                with contextlib.suppress(RecordsError):
                    about = {**session, "model": model.name}
                    record_failure(plan, job.subject, name, *failed[name], about)
    opened.clear()
    _release()
    return "elsewhere" if busy else "evaluated", failed


def _ask(job: Evaluation, name: str, model: study.Model, session: Line, opened: dict[str, Any]) -> None:
    plan = job.plan
    task = next(task for task in plan.tasks if task.name == name)
    known = digest([plan.names, str(plan.include), str(plan.data)])
    if known not in _managers:
        _managers[known] = plan.manager()
    if (known, name) not in _loaded:
        _loaded[known, name] = load(task, _managers[known])
    study.evaluate(
        plan.store,
        model,
        task,
        _managers[known],
        limit=plan.limit,
        session=session,
        opened=opened,
        loaded=_loaded[known, name],
    )


def _read(job: Evaluation) -> None:
    from tnbench.evaluation.loading import finished
    from tnbench.evaluation.reading import read_run

    store, identity = job.plan.store, job.plan.window(job.subject)
    with store.alone(digest(identity)):
        if all(line["identity"] != identity for line in store.positions()):
            store.append([read_run(job.folder, finished(job.folder), identity)])


def record_failure(
    plan: EvalPlan, subject: Subject, name: str, outcome: str, reason: str, about: Mapping[str, Any]
) -> None:
    """Add to the records that a request was not answered.

    Args:
        outcome: `failed` or `out_of_memory`.
        about: further entries of the line.

    Raises:
        RecordsError: the records cannot be written.
    """
    line = {
        "kind": "failed",
        "request": plan.requests(subject)[name],
        **about,
        "time": now(),
        "identity": plan.identity(subject.run_id),
        "task": name,
        "outcome": outcome,
        "reason": reason,
    }
    with contextlib.suppress(OSError):
        plan.folder.mkdir(parents=True, exist_ok=True)
    plan.store.append([line])


def _told(error: Exception) -> tuple[str, str]:
    """What an error makes of an evaluation, and the reason in one line."""
    from tnbench.evaluation.halving import is_out_of_memory

    cause = error.__cause__
    full = is_out_of_memory(error) or (cause is not None and is_out_of_memory(cause))
    known = isinstance(error, ValueError | RecordsError) and str(error).strip()
    reason = in_keys(str(error).strip().splitlines()[0]) if known else first_line(error)
    return ("out_of_memory" if full else "failed"), reason


def _hold_no_semaphore() -> None:
    """tqdm's lock between processes would be left behind where this one is killed, and told of as a leak."""
    import threading

    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _release() -> None:
    """Give the model's memory back before this process trains again."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within the block torch computes in so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
