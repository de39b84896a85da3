"""Leases: one process at a time trains a run, whichever commands and hosts share the results folder.

The process that trains holds `lease.json` in the run's folder, which names it, and touches that file every
few seconds. A lease is free once its owner is gone. On the owner's own host that is seen at once, by its
process id and start time; elsewhere its heartbeat must have stopped for a minute, by the file server's clock,
so that hosts need not agree on the time. A process that lost its lease while it was suspended notices before
it writes again, and stops.

Leases change hands under a short lock on `.lock` in the suite's folder, which works between the processes of
a host and, as a POSIX lock, over NFS.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tnbench.records import RunFolder, now, write_json

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""Age of the last heartbeat after which an owner on another host is taken for gone."""


@dataclass(frozen=True)
class Owner:
    """A process that holds a lease."""

    host: str
    """The node's name."""
    boot: str
    """The boot of that host; empty where the system does not tell."""
    namespace: str
    """The namespace of its process ids: containers of a host have their own."""
    pid: int
    started: int | None
    """When the process started, in clock ticks since the boot; tells it from a later one of the same id."""

    def is_local(self) -> bool:
        """Whether its process id means something here."""
        return (self.host, self.boot, self.namespace) == _here()

    def is_gone(self) -> bool:
        """Whether a local process has ended, be it as a zombie, or its id is another's by now."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # another user's
            pass
        state, started = _process(self.pid)
        return state in ("Z", "X") or (None not in (started, self.started) and started != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A lease that is held, as a context to its end. `mine` tells whether it still is."""

    def __init__(self, folder: RunFolder, token: str) -> None:
        self._folder, self._token = folder, token
        self._lost = False
        self._beaten = _clocks()
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def mine(self) -> bool:
        """Whether nobody else has taken the lease. Costs nothing while the heartbeat goes on."""
        elapsed = max(now - then for now, then in zip(_clocks(), self._beaten, strict=True))
        if elapsed > STALE_SECONDS / 2:  # this process, or its host, was suspended
            self._touch()
        return not self._lost

    def release(self) -> None:
        """Give the lease back, if it still is this one's."""
        self._released.set()
        self._heart.join()
        with suppress(OSError), _locked(self._folder):
            if _read(self._folder).get("token") == self._token:
                self._folder.lease.unlink()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._lost and not self._released.wait(HEARTBEAT_SECONDS):
            self._touch()

    def _touch(self) -> None:
        try:
            with open(self._folder.lease, "rb") as file:
                if _content(file.read()).get("token") == self._token:
                    os.utime(file.fileno())  # this very file: another's lease would be another file
                    self._beaten = _clocks()
                else:
                    self._lost = True
        except FileNotFoundError:
            self._lost = True
        except OSError:  # the file server does not answer, say: others see no heartbeat either
            pass


def acquire(folder: RunFolder) -> Lease | None:
    """Take the lease of a run, or give None: another process has it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if holder(folder) is not None:
            return None
        token = secrets.token_hex(8)
        write_json(folder.lease, {**asdict(_self()), "token": token, "since": now()})
        return Lease(folder, token)


def holder(folder: RunFolder) -> Owner | None:
    """The process that has a run's lease now; None where it is free."""
    try:
        with open(folder.lease, "rb") as file:  # opening asks the file server, where stat may remember
            touched = os.fstat(file.fileno()).st_mtime
            content = _content(file.read())
    except FileNotFoundError:
        return None
    if not isinstance(content.get("pid"), int):
        content = {"host": "an unknown host", "pid": 0}
    owner = Owner(**{name: content.get(name) for name in Owner.__annotations__})  # type: ignore[arg-type]
    if owner.is_local():
        return None if owner.is_gone() else owner
    return None if _server_time(folder) - touched > STALE_SECONDS else owner


def _self() -> Owner:
    return Owner(*_here(), os.getpid(), _process(os.getpid())[1])


@cache
def _here() -> tuple[str, str, str]:
    """What tells this host, this boot of it, and this container apart from others."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return platform.node(), boot, namespace


def _process(pid: int) -> tuple[str, int | None]:
    """State and start time of a process; nothing where the system has no /proc, or hides it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[0], int(fields[19])


def _clocks() -> tuple[float, float]:
    """Two clocks in seconds, of which at least one goes on while the machine is suspended."""
    boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(boottime), time.time()


def _content(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read(folder: RunFolder) -> dict[str, Any]:
    return _content(folder.lease.read_bytes())


def _server_time(folder: RunFolder) -> float:
    """The time of the file system that holds the run, as it stamps files."""
    probe = _lock_file(folder)
    probe.touch()
    return probe.stat().st_mtime


def _lock_file(folder: RunFolder) -> Path:
    return folder.path.parent.parent / ".lock"


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Nobody else takes or gives back a lease of this results folder meanwhile."""
    with open(_lock_file(folder), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
