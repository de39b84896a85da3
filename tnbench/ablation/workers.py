"""Worker processes: each takes runs one after another, until the parent has no more or is gone.

The parent sends a `Task` through a pipe; the worker answers with ("progress", Progress) while it trains and
with ("done", outcome) at the end. Ctrl-C reaches the parent alone, which asks the workers to stop at the
next step by setting a flag; they write a checkpoint first.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from tnbench.config import RunConfig, run_id
from tnbench.records import RunFolder, now, source_hash, write_json

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Task:
    """One run to train."""

    config: RunConfig
    folder: RunFolder
    attributes: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beside the configuration: suite, variant, seed."""
    keep_weights: bool = True


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
        self.task: Task | None = None
        self.silent = False
        """Whether the process has closed its end of the pipe, which it does by dying only."""

    def start(self, task: Task) -> None:
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


@contextlib.contextmanager
def exclusive(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder; the lock goes with the process, however it ends."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fail(task: Task, reason: str) -> None:
    """Record a run that failed outside of its training, with what is known of the reason."""
    manifest = task.folder.read_manifest() or {"run_id": task.folder.id, **task.attributes}
    write_json(task.folder.manifest, {**manifest, "outcome": "failed", "reason": reason, "ended": now()})


def _main(connection: Connection, stop: Any, device_index: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if device_index is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device_index)

    from tnbench.data import prepare
    from tnbench.training.loop import run

    while True:
        try:
            task: Task | None = connection.recv()
        except EOFError:
            return
        if task is None:
            return
        data = prepare(task.config.data, quiet=True)
        if run_id(task.config, data.hash, source_hash()) != task.folder.id:
            fail(task, "the corpus or the source code has changed since the suite was read; run it again")
            connection.send(("done", "failed"))
            continue
        with exclusive(task.folder):
            outcome = run(
                task.config,
                task.folder,
                data,
                progress=lambda progress: connection.send(("progress", progress)),
                stop=lambda: bool(stop.value),
                attributes=task.attributes,
                keep_weights=task.keep_weights,
            )
        connection.send(("done", outcome))


def _die_with_parent() -> None:
    """Training for a parent that is gone would race with the next one that resumes the suite."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
