"""Records: everything that is reported is read back from these files.

`<results>/<suite>/runs/<run id>/` holds

- `manifest.json`: what was run (resolved configuration, code, versions, device, data) and how it ended;
- `metrics.jsonl`: append-only, one value a line: name, value, unit, step, tokens, split, time;
- `checkpoint/`: the weights, and while the run goes on, what is needed to resume it;
- `lease.json`, while the run goes on: which process has it (see `tnbench.ablation.leases`).

Files are replaced atomically, and a broken last line of metrics is ignored and reported.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tnbench.config import digest
from tnbench.errors import RequestError

PACKAGE = Path(__file__).resolve().parent
NUMERIC_SOURCES = ("config.py", "model", "data", "training", "kernels")
"""Files and folders of the package whose code can change a run's numbers."""

ENDED = ("finished", "diverged", "out_of_memory")
"""Outcomes after which a run is not started again."""

UNREADABLE = "its manifest cannot be read"
FOREIGN = "the manifest in its folder is another run's"
CHANGED = "the configuration in its manifest was changed after it was written"
LOST = "its final values are missing from the metrics, or damaged"
"""Why a record does not count (`RunFolder.problem`)."""


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

    @property
    def lease(self) -> Path:
        """Which process has the run, while it goes on."""
        return self.path / "lease.json"

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where there is none, it cannot be read, or it is another run's."""
        return self._read()[0]

    def outcome(self) -> str | None:
        """How the run ended; None for a run that was never started, has not ended, or has lost its result."""
        manifest = self.read_manifest()
        return None if manifest is None or self._lost(manifest) else manifest.get("outcome")

    def problem(self) -> str | None:
        """Why the record that is there does not count; None where it does, or there is none."""
        manifest, problem = self._read()
        return self._lost(manifest) if manifest else problem

    def set_aside(self) -> Path | None:
        """Move a record that is not this run's out of the way, and give the folder that it lies in now.

        None, and nothing moved, if what is there is this run's, readable or not.
        """
        _, problem = self._read()
        if problem not in (FOREIGN, CHANGED):
            return None
        aside = next(path for n in itertools.count(1) if not (path := self.path / f"set-aside-{n}").exists())
        aside.mkdir()
        for path in (self.metrics, self.weights.parent, self.manifest):  # the manifest, which names it, last
            if path.exists():
                os.replace(path, aside / path.name)
        return aside

    def _read(self) -> tuple[dict[str, Any] | None, str | None]:
        """The manifest, or what is wrong with it."""
        try:
            manifest = json.loads(self.manifest.read_text())
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError):
            return None, UNREADABLE
        outcomes = (None, "failed", "interrupted", *ENDED)
        if not isinstance(manifest, dict) or manifest.get("outcome") not in outcomes:
            return None, UNREADABLE
        if manifest.get("run_id", self.id) != self.id:
            return None, FOREIGN
        if manifest.get("config_hash", "") not in ("", digest(manifest.get("config"))):
            return None, CHANGED
        return manifest, None

    def _lost(self, manifest: Mapping[str, Any]) -> str | None:
        """What a finished run lacks of its result: the manifest has the reported values once more."""
        if manifest.get("outcome") != "finished":
            return None
        values, _ = read_metrics(self.metrics)
        found = {(v.get("split"), v["name"]): v["value"] for v in values}
        final = {split: seen.get("values", {}) for split, seen in manifest.get("evaluation", {}).items()}
        same = all(found.get((split, name)) == final[split][name] for split in final for name in final[split])
        return None if same and any(split == "report" for split, _ in found) else LOST


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """A new name beside `path` for a file that will replace it; no other process or host has the same."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes have left half written, in a folder that nobody else writes to now."""
    for pattern in (".*.tmp", ".tmp*"):  # ours, and those of safetensors
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Writes `metrics.jsonl`, and keeps its text, which goes into checkpoints."""

    def __init__(self, path: Path, text: bytes = b"") -> None:
        """Begin a new file with `text`, that of the resumed checkpoint.

        The file that was there is replaced, not continued: a process that has lost the run without knowing it
        yet writes its lines into the old one, which has no name any more.
        """
        write_atomic(path, text)
        self.text = bytearray(text)
        self._written = len(text)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close()

    def write(
        self, name: str, value: float, unit: str, *, step: int, tokens: int, split: str = "train"
    ) -> None:
        """Append one value. Non-finite values are written as null with their name, so the file stays JSON."""
        line: dict[str, Any] = {"name": name, "value": value, "unit": unit, "step": step, "tokens": tokens}
        line.update(split=split, time=round(time.time(), 3))
        if not math.isfinite(value):
            line.update(value=None, nonfinite=str(value))
        self.text += json.dumps(line).encode() + b"\n"
        if len(self.text) - self._written > 1 << 13:
            self._write_out()

    def flush(self) -> None:
        """Bring all lines to disk."""
        self._write_out()
        os.fsync(self._file.fileno())

    def close(self, flush: bool = True) -> None:
        """Close the file; without `flush`, lines that are not in it yet are dropped."""
        if not self._file.closed:
            try:
                if flush:
                    self.flush()
            finally:
                self._file.close()

    def _write_out(self) -> None:
        while self._written < len(self.text):
            self._written += self._file.write(self.text[self._written :]) or 0


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
    """The command for a shell, without this machine's path to the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
