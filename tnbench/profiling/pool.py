"""Worker processes of a campaign: one per implementation, each able to crash or hang without the others.

A worker answers one JSON request a line with one line `RESULT {…}` (`tnbench.profiling.kernels.worker`). Here
its end and its silence become answers too, so that a caller sees statuses and never exceptions.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from tnbench.records import PACKAGE

RESULT = "RESULT "
LIMITS = {"compile": 300.0, "prepare": 900.0, "time": 180.0, "energy": 180.0, "roofline": 180.0}
"""Seconds after which a silent worker counts as hung. Peers that tune themselves take minutes to prepare."""
MOST_FAILURES = 3
"""Crashes and hangs in a row after which an implementation is not tried again in this session."""
LOST_CONTEXT = re.compile(
    r"CUDA error|CUDA_ERROR|illegal (memory|instruction)|device-side assert|launch failure|misaligned",
    re.IGNORECASE,
)
"""Errors after which a process can no longer use its GPU, although it lives."""

GRACE = 3.0
"""Seconds that workers have at the end to leave by themselves, all together."""

Answer = dict[str, Any]


class Worker:
    """One worker process, started when it is asked for the first time, and again after it has died."""

    def __init__(self, name: str, command: list[str], limits: Mapping[str, float] | None = None) -> None:
        self.name, self.command = name, command
        self.limits = {**LIMITS, **(limits or {})}
        self.failures = 0
        self.starts = 0
        """How many processes it has had: what one has prepared, the next has not."""
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._complaints: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process if there is none; it gets ready while others are asked."""
        if self._process is not None:
            return
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.starts += 1
        # Its own session: Ctrl-C reaches the campaign alone, which ends its workers in order. Passive:
        # threads that spin while they wait make small products three times slower beside a busy process.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """The answer to a request; `status` is `crashed` or `hung` where there was none.

        After a crash, a hang or an error that costs the process its GPU, the next request gets a fresh one.
        """
        if self.failures >= MOST_FAILURES:
            return {"status": "crashed", "reason": f"not tried: it failed {self.failures} times in a row"}
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        limit = self.limits[request["do"]]
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._await(time.monotonic() + limit)
        except (OSError, queue.Empty) as error:
            if isinstance(error, OSError):
                return self._failed("crashed", self._last_words())
            return self._failed("hung", f"no answer to {request['do']} within {limit:g} s")
        if answer is None:
            return self._failed("crashed", self._last_words())
        if answer.get("status", "ok") == "error" and LOST_CONTEXT.search(str(answer.get("reason"))):
            self.close()
        if request["do"] != "roofline":
            self.failures = 0
        return answer

    def _await(self, deadline: float) -> Answer | None:
        while True:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                return None
            if line.startswith(RESULT):
                with contextlib.suppress(ValueError):
                    return json.loads(line.removeprefix(RESULT))

    def _failed(self, status: str, reason: str) -> Answer:
        self.failures += 1
        self.close()
        return {"status": status, "reason": reason}

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote about it."""
        assert self._process is not None
        assert self._complaints is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            names = {item.value: item.name for item in signal.Signals}
            end = f"ended by {names.get(-code, f'signal {-code}')}"
        else:
            end = f"ended with status {code}"
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - 4096))
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"{end}: {lines[-1].strip()[:300]}" if lines else end

    def dismiss(self) -> None:
        """Ask the process to end, without waiting for it."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write('{"do": "quit"}\n')
                self._process.stdin.close()

    def close(self, grace: float = 0.0) -> None:
        """End the process: after `grace` seconds by force."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that the driver holds goes when it can
                process.wait(10)
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None


def _read(stream: IO[str] | None, answers: queue.Queue[str | None]) -> None:
    """Hand on what a worker prints, and None at its end."""
    assert stream is not None
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line.rstrip("\n"))
    answers.put(None)


class Pool:
    """The workers of a campaign by name; a context manager that ends them all."""

    def __init__(
        self, command: Callable[[str], list[str]], limits: Mapping[str, float] | None = None
    ) -> None:
        """`command(name)` gives the command line of a worker, `limits` seconds per kind of request."""
        self._command, self._limits = command, limits
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.dismiss()
        deadline = time.monotonic() + GRACE
        for worker in self._workers.values():
            worker.close(max(0.0, deadline - time.monotonic()))

    def __getitem__(self, name: str) -> Worker:
        if name not in self._workers:
            self._workers[name] = Worker(name, self._command(name), self._limits)
        return self._workers[name]

    def spare(self, name: str) -> Worker:
        """One more worker of this name, which the caller closes."""
        return Worker(name, self._command(name), self._limits)

    def start(self, names: list[str]) -> None:
        """Start workers side by side: most of a second or ten goes into imports."""
        for name in names:
            self[name].start()
