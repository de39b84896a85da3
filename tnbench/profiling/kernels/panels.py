"""How points are laid out in tables and plots: one panel for each shape, along the axis that it scales in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tnbench.profiling.kernels.rows import SIZES
from tnbench.report.results import Frame

AXES = ("length", "rows", "batch")
"""Along which sizes a case is followed: the first that it has."""
OURS = ("ours", "revision")
"""Drawn in ink."""
FAILED = {
    "oom": "oom",
    "wrong": "wrong",
    "unsupported": "–",
    "error": "error",
    "crashed": "crash",
    "hung": "hung",
}
"""What stands in a cell without a time."""


@dataclass(frozen=True)
class Panel:
    """The rows of kernels.csv of one operator, mode, dtype and shape but for the axis."""

    operator: str
    mode: str
    dtype: str
    shape: dict[str, Any]
    axis: str
    rows: Frame

    @property
    def name(self) -> str:
        """`B4 H16 D128`."""
        letters = {
            "batch": "B",
            "heads": "H",
            "key_dim": "D",
            "value_dim": "E",
            "width": "W",
            "rows": "rows ",
        }
        shape = dict(self.shape)
        options = shape.pop("options", "")
        if shape.get("value_dim") == shape.get("key_dim"):
            shape.pop("value_dim", None)
        words = [f"{letters.get(name, name + ' ')}{value}" for name, value in shape.items()]
        other = [text for text in options.split(", ") if text and text != "decay = geometric"]
        return " ".join([*(text.removeprefix("form = ") for text in other), *words])

    @property
    def title(self) -> str:
        return f"{words(self.operator)}, {self.mode}, {self.dtype}, {self.name}".removesuffix(", ")

    @property
    def places(self) -> list[int]:
        """Values of the axis, ascending."""
        return sorted(int(value) for value in set(self.rows[self.axis]))

    @property
    def implementations(self) -> list[str]:
        return list(dict.fromkeys(self.rows["implementation"]))

    def cells(self, implementation: str) -> dict[int, Mapping[str, Any]]:
        """The rows of an implementation by the value of the axis."""
        mine = self.rows[self.rows["implementation"] == implementation]
        return {int(row[self.axis]): row for row in mine.to_dict("records")}


def words(name: str) -> str:
    """`linear attention`."""
    return name.replace("_", " ")


def seconds(row: Mapping[str, Any]) -> float:
    """The time that stands for a row of kernels.csv; NaN without."""
    return row["graph_seconds"] if pd.notna(row["graph_seconds"]) else row["latency_seconds"]


def panels(frame: Frame) -> Iterator[Panel]:
    """The panels of kernels.csv: operators and modes as they come, small shapes first."""
    made = []
    for (operator, mode, dtype), group in frame.groupby(["operator", "mode", "dtype"], sort=False):
        axis = next(name for name in AXES if group[name].notna().any())
        fixed = [name for name in (*SIZES, "options") if name != axis and group[name].notna().any()]
        parts = group.groupby(fixed, sort=False, dropna=False) if fixed else [((), group)]
        found = []
        for key, rows in parts:
            shape = {name: value for name, value in zip(fixed, key, strict=True) if pd.notna(value)}
            found.append(Panel(str(operator), str(mode), str(dtype), shape, axis, rows))
        made += sorted(found, key=_size)
    yield from made


def _size(panel: Panel) -> tuple:
    """Forms, then dims, before heads and batch: panels of one dim stand in one row of a figure."""
    shape = panel.shape
    dims = tuple(int(shape.get(name, 0)) for name in ("key_dim", "value_dim", "width"))
    return (shape.get("options", ""), *dims, int(shape.get("batch", 1)) * int(shape.get("heads", 1)))
