"""The paper's numbers, as data: `paper_figures/published/*.yaml`, with version, unit and inconsistencies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "published"
VERSIONS = ("v1", "v2")
"""Of arXiv 2307.14995; other sources are those of `sources.yaml`."""
LOSS_UNIT = "bits per token"
"""Unit of the paper's losses; PPL is about 2^loss."""


@cache
def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def ablations() -> tuple[str, ...]:
    """Names of the tables of ablations."""
    return tuple(_read("ablations"))


def ablation(name: str) -> Mapping[str, Any]:
    """A table of ablations: where it stands, its base by version, and its rows."""
    return _read("ablations")[name]


def efficiency(name: str) -> Mapping[str, Any]:
    """What is printed of a figure or table of speed or memory."""
    return _read("efficiency")[name]


def downstream() -> Mapping[str, Any]:
    """The benchmark table."""
    return _read("downstream")


def sources() -> Mapping[str, Mapping[str, str]]:
    """Source → title, reference, and how it was read."""
    return _read("sources")


def inconsistencies(names: tuple[str, ...]) -> list[str]:
    """What does not fit in the numbers of a figure, a sentence or two each."""
    known = _read("inconsistencies")
    return [" ".join(known[name].split()) for name in names]


def loss(row: Mapping[str, Any], version: str) -> float | None:
    """The training loss that a version prints in a row, bits per token; None where it has no such row."""
    found = row.get(version)
    return None if found is None else float(found[0])


def place(where: Mapping[str, str]) -> str:
    """`v1 table 5, v2 table 3`."""
    return ", ".join(f"{source} {at}" for source, at in where.items())
