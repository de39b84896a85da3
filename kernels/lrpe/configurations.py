"""Launch configurations of LRPE, by direction; as in normalisation/configurations.py."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Configuration(NamedTuple):
    """Tokens and channels per tile, warps per program, and in the backward programs per multiprocessor."""

    steps: int
    block: int
    warps: int
    waves: int = 4


RULE = {"forward": Configuration(1, 1024, 4), "backward": Configuration(4, 1024, 4, 3)}

TABLE = Path(__file__).with_name("tuned.json")
"""{"architecture direction": the fields of a `Configuration`}"""


@lru_cache
def tuned() -> dict[str, dict[str, int]]:
    """The measured configurations."""
    return json.loads(TABLE.read_text())


@lru_cache
def configuration(direction: str, channels: int, time: int, architecture: str) -> Configuration:
    """The measured configuration, or the rule's, its tile narrowed to the channels and tokens there are."""
    found = tuned().get(f"{architecture} {direction}")
    steps, block, warps, waves = RULE[direction] if found is None else Configuration(**found)
    while block >= 2 * channels and block > 32:
        block, warps = block // 2, max(1, warps // 2)
    while steps >= 2 * time:
        steps //= 2
    return Configuration(steps, block, warps, waves)


def candidates(direction: str) -> list[Configuration]:
    """What tuning tries, the rule's choice first."""
    tiles = [(256, 1), (512, 2), (1024, 4), (512, 4), (1024, 8)]
    if direction == "forward":
        found = [Configuration(steps, *tile) for tile in tiles for steps in (1, 2, 4)]
    else:
        found = [
            Configuration(steps, block, warps, waves // warps)
            for block, warps in tiles
            for steps in (4, 8, 16)
            for waves in (16, 20, 32)
            if waves >= warps
        ]
    return list(dict.fromkeys([RULE[direction], *found]))
