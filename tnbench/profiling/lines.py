"""Records of measurements: `records.jsonl`, append-only, one JSON object a line, one folder for each machine.

Lines that belong together are written at once. A broken line is ignored and reported.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from tnbench.errors import RequestError
from tnbench.records import require_writable, write_atomic

RECORDS = "records.jsonl"

Line = dict[str, Any]


class RecordsError(OSError):
    """A record cannot be written. What was written before is kept."""


def slug(machine: str) -> str:
    """The folder of a machine.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine.lower())).strip("-") or "unknown"


def canonical(value: Mapping[str, Any]) -> str:
    """A mapping as text that does not depend on the order of its keys."""
    return json.dumps(value, sort_keys=True)


class Lines:
    """A machine's records: a folder with one file of lines, written by one command at a time."""

    command: ClassVar[str]
    """The command that writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORDS

    @contextmanager
    def writing(self) -> Iterator[Self]:
        """Hold the records alone while measuring: two campaigns would disturb each other's times.

        Raises:
            RequestError: the folder cannot be written to, or another campaign writes here.
        """
        require_writable(self.folder)
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RequestError(
                    f"another tnbench {self.command} is measuring into {self.folder}; wait for it, "
                    "or choose another folder with --results"
                ) from None
            yield self

    def append(self, lines: Sequence[Line]) -> None:
        """Bring lines to disk together, after a newline where the last writer was cut off.

        Raises:
            RecordsError: they cannot be written, as on a full disk.
        """
        text = "".join(json.dumps(_plain(line), ensure_ascii=False) + "\n" for line in lines)
        try:
            with open(self.path, "ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the workers of a suite may write at the same time
                file.seek(0, os.SEEK_END)
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    text = text if file.read(1) == b"\n" else "\n" + text
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RecordsError(f"cannot write {self.path}: {reason}") from error

    def write_files(self, contents: Mapping[str, str | bytes]) -> None:
        """Write what is made from the records: each file as a whole or not at all.

        Raises:
            RecordsError: one cannot be written.
        """
        try:
            for name, content in contents.items():
                write_atomic(self.folder / name, content)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RecordsError(
                f"cannot write tables and plots to {self.folder}: {reason}; the records are kept, "
                "and --report writes them again"
            ) from error

    def each(self, take: Callable[[Line], None]) -> list[str]:
        """Hand every line on; none where there is no file.

        Args:
            take: raises ValueError, KeyError, TypeError or AttributeError for a line that it cannot read.

        Returns:
            What was wrong, a text for each line that was ignored.

        Raises:
            RequestError: the file cannot be read.
        """
        try:
            raw = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RequestError(f"cannot read {self.path}: {reason}") from error
        problems = []
        for number, text in enumerate(raw, start=1):
            if not text:
                continue
            try:
                take(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError):
                problems.append(f"{RECORDS}: line {number} is broken and was ignored")
        return problems


def _plain(value: Any) -> Any:
    """A value for strict JSON: numbers that it does not know become their names."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
