"""Records: everything that is reported is read back from these files.

`<results>/<suite>/runs/<run id>/` holds

- `manifest.json`: what was run (resolved configuration, code, versions, device, data) and how it ended;
- `metrics.jsonl`: append-only, one value a line: name, value, unit, step, tokens, split, time;
- `checkpoint/`: the weights, and while the run goes on, what is needed to resume it.

Files are replaced atomically, and a broken last line of metrics is ignored and reported.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError

PACKAGE = Path(__file__).resolve().parent
NUMERIC_SOURCES = ("config.py", "model", "data", "training", "kernels")
"""Files and folders of the package whose code can change a run's numbers."""

ENDED = ("finished", "diverged", "out_of_memory")
"""Outcomes after which a run is not started again."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def id(self) -> str:
        """The run id."""
        return self.path.name

    @property
    def manifest(self) -> Path:
        """What was run and how it ended."""
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """Measured values, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / "checkpoint" / "model.safetensors"

    @property
    def resume(self) -> Path:
        """Weights and optimizer state of an unfinished run."""
        return self.path / "checkpoint" / "training.safetensors"

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where there is none or it cannot be read."""
        try:
            manifest = json.loads(self.manifest.read_text())
        except (OSError, ValueError):
            return None
        known = isinstance(manifest, dict) and manifest.get("outcome") in (
            None,
            "failed",
            "interrupted",
            *ENDED,
        )
        return manifest if known else None

    def outcome(self) -> str | None:
        """How the run ended; None for a run that was never started, has not ended, or has lost its result."""
        outcome = (self.read_manifest() or {}).get("outcome")
        if outcome == "finished":
            values, _ = read_metrics(self.metrics)
            if not any(value.get("split") == "report" for value in values):
                return None
        return outcome


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False) + "\n")


def require_writable(folder: Path) -> None:
    """Create a results folder and prove that files can be written there.

    Raises:
        RequestError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(
            f"cannot write results to {folder}: {reason}; choose another with --results"
        ) from error


class MetricsLog:
    """Appends values to `metrics.jsonl`. A line that a crash cut short is dropped on opening."""

    def __init__(self, path: Path, length: int | None = None) -> None:
        """Open for appending; `length` bytes (those of the resumed checkpoint) are kept, all by default."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115  closed by close()
        size = self._file.seek(0, os.SEEK_END)
        if length is None:
            self._file.seek(0)
            length = self._file.read().rfind(b"\n") + 1
        if size > length:
            self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)

    def write(
        self, name: str, value: float, unit: str, *, step: int, tokens: int, split: str = "train"
    ) -> None:
        """Append one value. Non-finite values are written as null with their name, so the file stays JSON."""
        line: dict[str, Any] = {"name": name, "value": value, "unit": unit, "step": step, "tokens": tokens}
        line.update(split=split, time=round(time.time(), 3))
        if not math.isfinite(value):
            line.update(value=None, nonfinite=str(value))
        self._file.write(json.dumps(line).encode() + b"\n")

    def flush(self) -> int:
        """Bring all lines to disk and return the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        if not self._file.closed:
            self.flush()
            self._file.close()


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The values of a metrics file, and what was wrong with it (a broken line, a missing file)."""
    values: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        return [], [f"{path}: {(error.strerror or 'cannot be read').lower()}"]
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not {"name", "value", "step"} <= value.keys():
                raise ValueError
            if value["value"] is None:
                value["value"] = float(value.get("nonfinite", "nan"))
        except ValueError:
            problems.append(f"{path}: line {number} is broken and was ignored")
        else:
            values.append(value)
    return values, problems


@cache
def source_hash() -> str:
    """Hash of the source files that can change a run's numbers."""
    total = hashlib.sha256()
    for name in NUMERIC_SOURCES:
        root = PACKAGE / name
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            total.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@cache
def provenance() -> dict[str, Any]:
    """The code and the machine behind a record: commit, hash of the uncommitted diff, versions, processor."""
    versions = {"python": platform.python_version()}
    for package in ("tnbench", "torch", "numpy", "transformers", "tokenizers", "triton"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    top = _git("rev-parse", "--show-toplevel")  # installed elsewhere, the package may lie in someone else's
    ours = top is not None and Path(top.strip()).resolve() == PACKAGE.parent
    commit = _git("rev-parse", "HEAD") if ours else None
    diff = _git("diff", "HEAD") if commit else None
    return {
        "commit": commit.strip() if commit else None,
        "diff_hash": hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None,
        "source_hash": source_hash(),
        "versions": versions,
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command as it was typed, without this machine's path to the program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
