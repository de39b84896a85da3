"""Launch configurations of the norms, by operation and row width.

`tuned.json` holds what was measured, by architecture (`python -m tnbench.kernels.tune normalisation`
measures); everything else takes `by_rule`. A row of width w is held in next_power_of_2(w) lanes, the `block`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Configuration(NamedTuple):
    """Rows per tile, warps per program; in sums over rows also programs per multiprocessor and stages."""

    rows: int
    warps: int
    waves: int = 0
    stages: int = 1


WIDEST = {"forward": 32768, "backward": 16384, "summing": 8192}
"""Widest block that the rule holds in registers (half of it forward in fp32); wider rows are read again.

The table may hold wider ones, where a pipeline keeps the row in shared memory.
"""

SUMMING = ("weighted_backward", "affine_backward")
"""Operations that sum over rows too (dw; dw and db): each program walks many tiles."""

WIDE_BLOCK = 8192
"""Columns per step of rows that are read more than once."""

OPERATIONS = (
    "norm",
    "norm_backward",
    "add_norm",
    "add_norm_backward",
    "norm_gate",
    "norm_gate_backward",
    "weighted_backward",
    "affine_backward",
)

TABLE = Path(__file__).with_name("tuned.json")
"""{"architecture operation block": the fields of a `Configuration`}"""


@lru_cache
def tuned() -> dict[str, dict[str, int]]:
    """The measured configurations."""
    return json.loads(TABLE.read_text())


def widest(operation: str, size: int) -> int:
    """For elements of `size` bytes."""
    if operation in SUMMING:
        return WIDEST["summing"]
    if operation.endswith("backward"):
        return WIDEST["backward"]
    return WIDEST["forward"] // max(1, size // 2)


def by_rule(operation: str, block: int) -> Configuration:
    """Without a measurement: as many values per thread as keep about 64 bytes of its loads in flight."""
    if operation in SUMMING:
        # Few programs, since each leaves a row of sums behind, and many bytes in flight in each.
        warps = min(max(block // 256, 8), 16)
        return Configuration(max(1, warps * 512 // block), warps, 16 // warps)
    per_thread = 32 if operation == "norm" else 16
    lanes = 32 * per_thread
    if block <= lanes:
        # Several short rows, each inside one warp: no exchange between warps.
        return Configuration(max(1, 4 * lanes // block), 4)
    return Configuration(1, min(block // lanes, 32))


@lru_cache
def configuration(operation: str, block: int, size: int, architecture: str) -> Configuration | None:
    """The measured configuration of a block of elements of `size` bytes, or that of the rule.

    Rows of fp32 go by rows of as many bytes in 16 bits, twice as wide. None: wider than registers hold.
    """
    lanes = block * max(1, size // 2)
    found = tuned().get(f"{architecture} {operation} {lanes}")
    if found is not None:
        return Configuration(**found)
    return by_rule(operation, lanes) if block <= widest(operation, size) else None


def candidates(operation: str, block: int) -> list[Configuration]:
    """What tuning tries, the rule's choice first."""
    found = [by_rule(operation, block)]
    for per_thread in (8, 16, 32):
        if operation in SUMMING:
            for warps in (4, 8, 16):
                rows = warps * 32 * per_thread // block
                for waves in {max(1, 8 // warps), 16 // warps, 32 // warps} if rows else ():
                    found += [Configuration(rows, warps, waves, stages) for stages in (1, 2, 3)]
            continue
        warps = block // (32 * per_thread)
        if 1 <= warps <= 32:
            found.append(Configuration(1, warps))
        if block <= 2048:
            warps = min(max(block * 4 // (32 * per_thread), 1), 8)
            found.append(Configuration(max(1, warps * 32 * per_thread // block), warps))
    return list(dict.fromkeys(found))
