"""Records of times over the block size: `kernels/<machine>/block-sizes.jsonl`, one line for each point.

A point is one case of linear attention. Its line holds an arm for each implementation and block size: how it
was launched, whether it was right, its peak of memory, and its times in the interleaved rounds. A broken line
is ignored and reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.lines import RECORDS, Line, Lines, canonical

FILE = "block-sizes.jsonl"
KEY = ("case", "blocks", "measurement", "threads", "kernel_hash", "torch", "triton")
"""What a line must agree in to be a current measurement of a point."""
FIELDS = (*KEY, "id", "device", "way", "command", "arms")
ARM = ("implementation", "block", "taken", "status", "reason", "errors", "peak_memory_bytes", "seconds")
"""Of an arm, among others. taken: the block that the code itself takes for the case; status: `ok`, `wrong`,
`oom` or `error`; seconds: a summary as in `samples`, None where the arm was refused."""


class Store(Lines):
    """The records of one machine, beside those of `profile-kernels`."""

    command = "profile-kernels or block_sizes"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / FILE

    def read(self) -> tuple[list[Line], list[str]]:
        """The lines in the order in which they were measured, and what was wrong with others."""
        found: list[Line] = []

        def take(line: Line) -> None:
            if line["kind"] != "point":
                raise ValueError("no point")
            for name in FIELDS:
                line[name]
            Case.from_dict(line["case"])
            for arm in line["arms"]:
                for name in ARM:
                    arm[name]
            found.append(line)

        problems = self.each(take)
        return found, [text.replace(RECORDS, FILE, 1) for text in problems]


def current(lines: Sequence[Line], key: Mapping[str, Any]) -> Line | None:
    """The latest line that agrees with `key` in all of `KEY`, or None."""
    fits = [line for line in lines if all(line[name] == key[name] for name in KEY)]
    return fits[-1] if fits else None


def shown(lines: Sequence[Line]) -> list[Line]:
    """The latest line of each case: forward, then with the backward, each by length."""
    latest = {canonical(line["case"]): line for line in lines}
    return sorted(
        latest.values(), key=lambda line: (line["case"]["mode"] == "both", line["case"]["shape"]["length"])
    )
