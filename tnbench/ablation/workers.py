"""Worker processes: each takes runs one after another, until the parent has no more or is gone.

The parent sends a `Task` through a pipe; the worker takes the run's lease and answers with ("progress",
Progress) while it trains and with ("done", outcome) at the end. Further answers are ("elsewhere", None): the
run is in another command's hands, and ("unrecorded", reason): a failure that could not be written down.
An `Evaluation` is answered with ("progress", name) before each task and ("evaluated", reasons of what failed)
at the end, or with ("elsewhere", reasons) where another process makes one of the same evaluations.
Ctrl-C reaches the parent alone, which asks the workers to stop at the next step by setting a flag; they
write a checkpoint first.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tnbench.ablation import leases
from tnbench.config import RunConfig, run_id
from tnbench.errors import RequestError
from tnbench.records import RunFolder, now, source_hash, write_json

if TYPE_CHECKING:
    from tnbench.ablation.eval_worker import Evaluation
    from tnbench.training.loop import Progress

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Task:
    """One run to train."""

    config: RunConfig
    folder: RunFolder
    attributes: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beside the configuration: suite, variant, seed."""
    keep_weights: bool = True
    former: dict[str, Any] | None = None
    """The run's manifest as the command found it: a failure in it is tried again, a later one is not."""


class Worker:
    """A process that trains runs on one device."""

    def __init__(self, stop: Any, device_index: int | None = None) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_main, args=(theirs, stop, device_index), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the parent alone
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()
        self.device_index = device_index
        self.task: Task | Evaluation | None = None
        self.silent = False
        """Whether the process has closed its end of the pipe, which it does by dying only."""

    def is_gone(self) -> bool:
        """Whether the process has ended though nobody asked it to, and its last word has been heard."""
        return self.silent or (self.task is None and self.process.exitcode is not None)

    def start(self, task: Task | Evaluation) -> None:
        """Hand over a run."""
        self.task = task
        try:
            self.connection.send(task)
        except OSError:
            self.silent = True

    def close(self) -> None:
        """Let the process end after its current run, and end it if it does not."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def fail(folder: RunFolder, attributes: dict[str, Any], reason: str) -> None:
    """Record a run that failed outside of its training, with what is known of the reason."""
    manifest = folder.read_manifest() or {"run_id": folder.id, **attributes}
    write_json(folder.manifest, {**manifest, "outcome": "failed", "reason": reason, "ended": now()})


def _main(connection: Connection, stop: Any, device_index: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("tnbench").setLevel(logging.ERROR)  # the parent has said it, once
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if device_index is not None:
        ours = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # the user may have left us only some
        os.environ["CUDA_VISIBLE_DEVICES"] = ours[device_index] if any(ours) else str(device_index)

    def tell(kind: str, content: Any) -> None:
        try:
            connection.send((kind, content))
        except OSError:  # the parent is gone, which is no failure of the run
            os._exit(1)

    while True:
        try:
            task: Task | Evaluation | None = connection.recv()
        except (EOFError, OSError):
            return
        if task is None:
            return
        tell(*_do(task, lambda progress: tell("progress", progress), lambda: bool(stop.value)))


def _do(
    task: Task | Evaluation, progress: Callable[[Any], None], stop: Callable[[], bool]
) -> tuple[str, Any]:
    """Train or evaluate a run, if nobody else does; gives the answer to the parent."""
    try:
        if not isinstance(task, Task):
            from tnbench.ablation.eval_worker import evaluate

            return evaluate(task, progress)
        lease = leases.acquire(task.folder)
        if lease is None:
            return "elsewhere", None
        with lease:
            manifest = task.folder.read_manifest()
            if manifest and manifest.get("outcome") == "failed" and manifest != task.former:
                return "done", "failed"  # in another command, since this one began
            try:
                outcome = _train(task, lease, progress, stop)
            except RequestError as error:
                fail(task.folder, task.attributes, str(error))
                return "done", "failed"
    except Exception as error:  # not even the failure could be written
        return "unrecorded", f"{type(error).__name__}: {error}"
    return ("elsewhere", None) if outcome == "displaced" else ("done", outcome)


def _train(
    task: Task, lease: leases.Lease, progress: Callable[[Progress], None], stop: Callable[[], bool]
) -> str:
    from tnbench.data import prepare
    from tnbench.training.loop import run

    data = prepare(task.config.data, quiet=True)
    if run_id(task.config, data.hash, source_hash()) != task.folder.id:
        raise RequestError("the corpus or the source code has changed since the suite was read; run it again")
    return run(
        task.config,
        task.folder,
        data,
        progress=progress,
        stop=stop,
        mine=lease.mine,
        attributes=task.attributes,
        keep_weights=task.keep_weights,
    )


def _die_with_parent() -> None:
    """Training for a parent that is gone would race with the next one that resumes the suite."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
