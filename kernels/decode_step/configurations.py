"""Launch configurations of the decode step: columns of the state and warps per program.

A program holds all rows of its columns in registers. Many small tiles keep enough loads in flight; below 64
bytes a row (16 columns) memory is read in pieces that waste it, which only pays where states are too few
for the card.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Configuration(NamedTuple):
    """Columns of the state per program, a power of two, and warps per program."""

    tile: int
    warps: int


# {rows of the state, up to: (where states fill the card, where they do not)}. Measured on one H100, 8 to
# 8192 states of 64, 128 and 256 rows, 8 and 512 of 32 and 512.
RULE = {
    32: (Configuration(64, 1), Configuration(16, 1)),
    64: (Configuration(32, 2), Configuration(16, 1)),
    128: (Configuration(64, 4), Configuration(16, 2)),
    256: (Configuration(64, 8), Configuration(16, 4)),
    512: (Configuration(64, 8), Configuration(16, 8)),
}

TABLE = Path(__file__).with_name("tuned.json")
"""{"architecture rows full or part": the fields of a `Configuration`}"""

FULL = 120 << 10
"""Bytes of states per multiprocessor from which the card counts as filled."""


@lru_cache
def tuned() -> dict[str, dict[str, int]]:
    """The measured configurations."""
    return json.loads(TABLE.read_text())


def key(rows: int, full: bool, architecture: str) -> str:
    """The row of tuned.json for states of up to so many rows, on a device of this architecture ("sm_90")."""
    return f"{architecture} {min(size for size in RULE if size >= rows)} {'full' if full else 'part'}"


@lru_cache
def lookup(rows: int, full: bool, architecture: str) -> Configuration:
    """The measured configuration, or the rule's, for states of at most 512 rows."""
    found = tuned().get(key(rows, full, architecture))
    size = min(size for size in RULE if size >= rows)
    return RULE[size][0 if full else 1] if found is None else Configuration(**found)


def configuration(rows: int, columns: int, heads: int, architecture: str, processors: int) -> Configuration:
    """For `heads` states in all of (rows, columns), on a device with so many multiprocessors."""
    return lookup(rows, 4 * heads * rows * columns >= FULL * processors, architecture)


def candidates(rows: int) -> list[Configuration]:
    """What tuning tries: 8 to 128 state values per thread."""
    return [
        Configuration(tile, warps)
        for tile in (8, 16, 32, 64, 128)
        for warps in (1, 2, 4, 8)
        if 8 <= rows * tile // (32 * warps) <= 128
    ]
