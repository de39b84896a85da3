"""Records of models: `results/models/<machine>/records.jsonl`, append-only, one JSON object a line.

| kind | one for each |
|---|---|
| `session` | start of the command: provenance, versions, options, device |
| `roofline` | measurement of the copy and matmul rate in a session |
| `row` | variant at a point, within a block of interleaved rounds |
| `block` | finished point; rows without one were cut off and do not count |
| `largest` | variant whose largest context or batch was searched for |

The lines of a block are written at once. A broken line is ignored and reported.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tnbench.profiling.lines import Line, Lines, canonical
from tnbench.records import PACKAGE

SOURCES = (
    *("config.py", "model", "training", "evaluation/generation.py", "kernels"),
    "profiling/models/arms.py",
)
"""Files and folders of the package whose change makes measurements of models old."""
FAILED = "failed"
"""Status of what crashed, hung or raised an error: it is measured once more by the next run."""


def code_hash() -> str:
    """Hash of the source behind the numbers, tables of tuned kernels included."""
    total = hashlib.sha256()
    for name in SOURCES:
        root = PACKAGE / name
        files = [root] if root.is_file() else [*root.rglob("*.py"), *root.rglob("*.json")]
        for path in sorted(files):
            total.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


@dataclass
class Block:
    """One point, measured: all its rows come from the same rounds."""

    line: Line
    rows: list[Line]

    @property
    def case(self) -> dict[str, Any]:
        return self.line["case"]

    @property
    def arms(self) -> dict[str, str]:
        """Variant → digest of its configuration."""
        return {row["variant"]: row["config"] for row in self.rows}

    @property
    def stack(self) -> str:
        """What code was measured."""
        return canonical({name: self.line.get(name) for name in ("code", "torch", "triton")})

    @property
    def answered(self) -> int:
        """Variants that did not fail."""
        return sum(row["status"] != FAILED for row in self.rows)

    def failed(self, arms: Mapping[str, str]) -> bool:
        """Whether one of these failed."""
        return any(row["status"] == FAILED and row["variant"] in arms for row in self.rows)


@dataclass
class Records:
    """What a records file holds."""

    sessions: dict[str, Line] = field(default_factory=dict)
    rooflines: list[Line] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    """In the order in which they were measured."""
    largest: list[Line] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def current(self, key: Mapping[str, Any], arms: Mapping[str, str]) -> Block | None:
        """The latest block of this point that has all these variants, or None.

        One in which any of them failed counts from the second such block on: it is tried once more.
        """
        fits = [
            one
            for one in self.blocks
            if all(one.line.get(name) == value for name, value in key.items())
            and arms.items() <= one.arms.items()
        ]
        whole = [one for one in fits if not one.failed(arms)]
        if whole:
            return whole[-1]
        return fits[-1] if len(fits) > 1 else None

    def found(self, key: Mapping[str, Any]) -> Line | None:
        """The latest search of this key that did not fail, or None."""
        fits = [line for line in self.largest if all(line.get(name) == key[name] for name in key)]
        return next((line for line in reversed(fits) if line["status"] != FAILED), None)

    def shown(self) -> list[Block]:
        """One block per case for the report: measured with the latest code, with the most variants that did
        not fail, the latest of those; in the order in which the cases came up first."""
        by_case: dict[str, list[Block]] = {}
        for block in self.blocks:
            by_case.setdefault(canonical(block.case), []).append(block)
        chosen = []
        for blocks in by_case.values():
            latest = [one for one in blocks if one.stack == blocks[-1].stack]
            most = max(one.answered for one in latest)
            chosen.append([one for one in latest if one.answered == most][-1])
        return chosen

    def searched(self) -> list[Line]:
        """The latest search for each variant and case."""
        latest = {
            canonical({"case": line["case"], "variant": line["variant"]}): line for line in self.largest
        }
        return list(latest.values())

    def rate(self, session: str, name: str) -> float | None:
        """Median of a rate of a session: `copy_bytes_per_second` or `matmul_flops_per_second`."""
        known = [line[name] for line in self.rooflines if line["session"] == session and line.get(name)]
        return statistics.median(known) if known else None


class Store(Lines):
    """The records of one machine."""

    command = "profile-model"

    def read(self) -> Records:
        """All records; none where there is no file."""
        records, pending = Records(), {}
        records.problems += self.each(lambda line: _take(line, records, pending))
        return records


FIELDS = {
    "session": ("session",),
    "roofline": ("session",),
    "row": ("block", "variant", "config", "source", "diff", "status"),
    "block": ("block", "session", "time", "rows", "case", "measurement", "code", "command", "interleaved"),
    "largest": ("session", "time", "case", "variant", "config", "status", "code"),
}
"""What a line of a kind has at least."""
MEASURED = ("tokens", "flops", "floor_bytes", "times")
"""What a row with times has beside that."""
CASE = ("mode", "size", "context", "batch", "vocabulary", "precision", "suite", "limit")


def _take(line: Line, records: Records, pending: dict[str, list[Line]]) -> None:
    """Add one line to what has been read.

    Raises:
        ValueError, KeyError, TypeError: it is not one of this program's lines.
    """
    fields = {name: line[name] for name in FIELDS[line["kind"]]}
    match line["kind"]:
        case "session":
            records.sessions[line["session"]] = line
        case "roofline":
            records.rooflines.append(line)
        case "row":
            _ = [line[name] for name in MEASURED if line["status"] == "ok"]
            pending.setdefault(line["block"], []).append(line)
        case "block":
            rows = pending.pop(line["block"], [])
            if len(rows) != line["rows"] or not rows:
                raise ValueError("rows are missing")
            _ = [fields["case"][name] for name in CASE]
            records.blocks.append(Block(line, rows))
        case "largest":
            records.largest.append(line)
