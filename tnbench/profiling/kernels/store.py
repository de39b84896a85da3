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

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.lines import Line, Lines, canonical
from tnbench.records import PACKAGE

FOLDERS = {"norm": "normalisation", "norm_gate": "normalisation", "add_norm": "normalisation"}
"""Folders of operators that are not called after them."""

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
        """Most bytes copied in a second of a session, NaN where none was measured.

        A roofline is a bound: a copy that something slowed must not make shares of it larger.
        """
        rates = (
            line["copy_bytes_per_second"]
            for line in self.rooflines
            if line["session"] == session and line.get("copy_bytes_per_second")
        )
        return max(rates, default=math.nan)


class Store(Lines):
    """The records of one machine."""

    command = "profile-kernels"

    def read(self) -> Records:
        """All records; none where there is no file."""
        records = Records()
        pending: dict[str, list[Line]] = {}
        blocks: dict[str, Block] = {}

        def take(line: Line) -> None:
            _take(line, records, pending, blocks)

        records.problems += self.each(take)
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
