"""Records of kernels: `results/kernels/<machine>/records.jsonl`, append-only, one JSON object a line.

| kind | one for each |
|---|---|
| `session` | start of the command: provenance, versions, options, device |
| `roofline` | measurement of the copy and matmul rate in a session |
| `row` | implementation at a point, within a block of interleaved rounds |
| `block` | finished block; rows without one were cut off and do not count |
| `energy` | row whose energy was measured |

The lines of a block are written at once. A broken line is ignored and reported.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError
from tnbench.profiling.kernels.cases import Case
from tnbench.records import PACKAGE, require_writable

RECORDS = "records.jsonl"
FOLDERS = {"norm": "normalisation", "norm_gate": "normalisation", "add_norm": "normalisation"}
"""Folders of operators that are not called after them."""

Line = dict[str, Any]


class RecordsError(OSError):
    """A record cannot be written. What was written before is kept."""


def slug(machine: str) -> str:
    """The folder of a machine.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine.lower())).strip("-") or "unknown"


APART = ("tune.py",)
"""Modules of kernels/ that take no part in a call; the others beside the operators' folders are shared."""
LOST = ("crashed", "hung")
"""Statuses that may be the machine's fault: such a row is measured once more by the next run."""


def kernel_hash(operator: str, root: Path = PACKAGE) -> str:
    """Hash of the files whose change makes an operator's measurements old: its folder, and what all share."""
    kernels = root / "kernels"
    folder = kernels / FOLDERS.get(operator, operator)
    total = hashlib.sha256()
    files = [path for path in folder.rglob("*") if path.suffix in (".py", ".json", ".yaml")]
    shared = [path for path in kernels.glob("*.py") if path.name not in APART]
    for path in sorted([*files, *shared]):
        if path.is_file():
            total.update(f"{path.relative_to(kernels).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def canonical(value: Mapping[str, Any]) -> str:
    """A mapping as text that does not depend on the order of its keys."""
    return json.dumps(value, sort_keys=True)


@dataclass
class Block:
    """One point, measured: all its rows come from the same interleaved rounds."""

    line: Line
    rows: list[Line]
    energy: dict[str, Line] = field(default_factory=dict)
    """By implementation."""

    @property
    def id(self) -> str:
        return self.line["block"]

    @property
    def case(self) -> dict[str, Any]:
        return self.line["case"]

    @property
    def implementations(self) -> list[str]:
        return [row["implementation"] for row in self.rows]

    @property
    def stack(self) -> str:
        """What code was measured: blocks that differ in it are not compared by age alone."""
        return canonical({name: self.line.get(name) for name in ("kernel_hash", "torch", "triton")})

    @property
    def commits(self) -> set[str]:
        """Of the revisions that are compared in it."""
        found = (row["implementation"] for row in self.rows if row["source"] == "revision")
        return {name.partition("@")[2] for name in found}

    @property
    def answered(self) -> int:
        """Implementations of this revision that neither crashed nor hung."""
        return sum(row["source"] != "revision" and row["status"] not in LOST for row in self.rows)

    def lost(self, implementations: Iterable[str]) -> bool:
        """Whether one of these crashed or hung."""
        wanted = set(implementations)
        return any(row["status"] in LOST and row["implementation"] in wanted for row in self.rows)

    def matches(self, point: Mapping[str, Any]) -> bool:
        """Whether it is a measurement of this point, made the same way with the same code."""
        return all(self.line.get(name) == value for name, value in point.items())


@dataclass
class Records:
    """What a records file holds."""

    sessions: dict[str, Line] = field(default_factory=dict)
    rooflines: list[Line] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    """In the order in which they were measured."""
    problems: list[str] = field(default_factory=list)

    def current(self, point: Mapping[str, Any], implementations: Iterable[str]) -> Block | None:
        """The latest block of this point that has all these implementations, or None.

        One in which any of them crashed or hung counts from the second such block on: it is tried once more.
        """
        wanted = set(implementations)
        fits = [one for one in self.blocks if one.matches(point) and wanted <= set(one.implementations)]
        whole = [one for one in fits if not one.lost(wanted)]
        if whole:
            return whole[-1]
        return fits[-1] if len(fits) > 1 else None

    def shown(self) -> list[Block]:
        """One block per case for the report: measured with the latest code, with the most implementations
        (revisions, crashes and hangs not counted), the latest of those; in the order in which the cases came
        up first."""
        chosen = []
        for blocks in self._latest():
            most = max(one.answered for one in blocks)
            chosen.append([one for one in blocks if one.answered == most][-1])
        return chosen

    def compared(self) -> list[tuple[Block, str]]:
        """For each case and revision the latest block in which the latest code was compared with it."""
        chosen: dict[tuple[str, str], tuple[Block, str]] = {}
        for blocks in self._latest():
            for block in blocks:
                for commit in sorted(block.commits):
                    chosen[canonical(block.case), commit] = block, commit
        return list(chosen.values())

    def _latest(self) -> list[list[Block]]:
        """The blocks of each case that were measured with the latest code."""
        by_case: dict[str, list[Block]] = {}
        for block in self.blocks:
            by_case.setdefault(canonical(block.case), []).append(block)
        return [[one for one in found if one.stack == found[-1].stack] for found in by_case.values()]

    def copy_rate(self, session: str) -> float:
        """Median copied bytes per second of a session, NaN where none was measured."""
        rates = sorted(
            line["copy_bytes_per_second"]
            for line in self.rooflines
            if line["session"] == session and line.get("copy_bytes_per_second")
        )
        if not rates:
            return math.nan
        middle = len(rates) // 2
        return rates[middle] if len(rates) % 2 else (rates[middle - 1] + rates[middle]) / 2


class Store:
    """The records of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORDS

    @contextmanager
    def writing(self):
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
                    f"another tnbench profile-kernels is measuring into {self.folder}; wait for it, "
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
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    text = text if file.read(1) == b"\n" else "\n" + text
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RecordsError(f"cannot write {self.path}: {reason}") from error

    def read(self) -> Records:
        """All records; none where there is no file."""
        records = Records()
        try:
            raw = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return records
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RequestError(f"cannot read {self.path}: {reason}") from error
        pending: dict[str, list[Line]] = {}
        blocks: dict[str, Block] = {}
        for number, text in enumerate(raw, start=1):
            if not text:
                continue
            try:
                _take(json.loads(text), records, pending, blocks)
            except (ValueError, KeyError, TypeError, AttributeError):
                records.problems.append(f"{RECORDS}: line {number} is broken and was ignored")
        records.blocks = list(blocks.values())
        return records


FIELDS = {
    "session": ("session",),
    "roofline": ("session",),
    "row": ("block", "implementation", "source", "status"),
    "block": (
        *("block", "session", "time", "rows", "case", "measurement", "kernel_hash", "command"),
        *("tokens", "floor_bytes", "flops"),
    ),
    "energy": ("block", "implementation", "window"),
}
"""What a line of a kind has at least."""


def _take(line: Line, records: Records, pending: dict[str, list[Line]], blocks: dict[str, Block]) -> None:
    """Add one line to what has been read.

    Raises:
        ValueError, KeyError, TypeError: it is not one of this program's lines.
    """
    fields = {name: line[name] for name in FIELDS[line["kind"]]}
    match line["kind"]:
        case "session":
            records.sessions[line["session"]] = line
        case "roofline":
            records.rooflines.append({**line, "copy_bytes_per_second": _rate(line)})
        case "row":
            pending.setdefault(line["block"], []).append(line)
        case "block":
            rows = pending.pop(line["block"], [])
            if len(rows) != line["rows"]:
                raise ValueError("rows are missing")
            Case.from_dict(fields["case"])
            blocks[line["block"]] = Block(line, rows)
        case "energy" if line["block"] in blocks:
            blocks[line["block"]].energy[line["implementation"]] = line


def _rate(line: Line) -> float | None:
    """Bytes copied a second; None where the measurement failed."""
    found = line.get("copy_bytes_per_second")
    return None if found is None else float(found)


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
