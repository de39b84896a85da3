"""The records of kernels as curves and pairs, for the figures that show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import Pair
from tnbench.paper_figures.shared.tables import OURS, Row
from tnbench.profiling.kernels.store import Block
from tnbench.profiling.kernels.store import Records as KernelRecords
from tnbench.profiling.kernels.verdicts import reported_seconds, timed
from tnbench.statistics import Interval

MODES = {"forward": "forward", "both": "forward and backward", "backward": "backward"}


class Machine:
    """What was measured of one operator on one machine."""

    def __init__(self, where: str, records: KernelRecords, operator: str) -> None:
        self.where, self.records = where, records
        self.blocks = [block for block in records.shown() if block.case["operator"] == operator]

    @property
    def device(self) -> str:
        """As the sessions name it."""
        names = dict.fromkeys(str(one.get("device")) for one in self.records.sessions.values())
        return ", ".join(names)

    def at(self, mode: str, axis: str, **fixed: Any) -> dict[int, Block]:
        """Value of an axis of the shape → block, of those that have the other sizes."""
        found = {
            block.case["shape"][axis]: block
            for block in self.blocks
            if block.case["mode"] == mode
            and all(
                block.case["shape"].get(name, block.case.get(name)) == value for name, value in fixed.items()
            )
        }
        return dict(sorted(found.items()))

    def pairs(self, blocks: Mapping[Any, Block], own: str, other: str, setting: str) -> list[Pair]:
        """Both implementations at every point at which both have a time: graph times where both have them."""
        found = []
        for value, block in blocks.items():
            rows = {row["implementation"]: row for row in block.rows if timed(row)}
            if own in rows and other in rows:
                mine, others = rows[own], rows[other]
                way = "graph" if mine.get("graph") and others.get("graph") else "eager"
                found.append(
                    Pair(
                        str(value),
                        mine[way]["rounds"],
                        others[way]["rounds"],
                        own,
                        other,
                        self.where,
                        setting,
                        (block.id,),
                        block.line["command"],
                        MODES[block.case["mode"]],
                    )
                )
        return found

    def rows(
        self, blocks: Mapping[Any, Block], measure: str, setting: str, names: Sequence[str]
    ) -> list[Row]:
        """The time, or the peak memory, of implementations at every point."""
        unit, of = MEASURES[measure]
        found = []
        for name in names:
            for value, block in blocks.items():
                row = next((one for one in block.rows if one["implementation"] == name), None)
                number = of(row) if row is not None else math.nan
                if row is None or not math.isfinite(number):
                    continue
                rounds = len(row["eager"]["rounds"]) if timed(row) else 1
                found.append(
                    Row(
                        name,
                        OURS,
                        f"{measure}, {MODES[block.case['mode']]}",
                        unit,
                        setting=setting,
                        at=str(value),
                        value=Interval(number, math.nan, math.nan, rounds),
                        where=self.where,
                        runs=(block.id,),
                        command=block.line["command"],
                    )
                )
        return found


def _bytes(row: Mapping[str, Any]) -> float:
    return math.nan if row.get("peak_memory_bytes") is None else row["peak_memory_bytes"] / 1e6


MEASURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "time": ("ms", lambda row: 1e3 * reported_seconds(row)),
    "peak memory": ("MB", _bytes),
}
"""Measure → unit, and the number of a row."""


def machines(records: Records, operator: str) -> list[Machine]:
    """The machines that have records of an operator."""
    found = (Machine(where, one, operator) for where, one in records.kernels())
    return [machine for machine in found if machine.blocks]
