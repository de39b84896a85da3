"""The records of whole models as curves and pairs, for the figures that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import Pair
from tnbench.paper_figures.shared.tables import OURS, Row, Stamp
from tnbench.statistics import Interval

MODES = {"train": "training", "prefill": "prefill", "decode": "decoding"}
OURSELVES, RIVAL = "transnormerllm", "transformer"


class Machine:
    """What was measured of whole models on one machine."""

    def __init__(self, where: str, records: Any) -> None:
        self.where, self.records = where, records
        self.blocks = records.shown()

    def device(self, session: str) -> str:
        """As the session names it."""
        return str(self.records.sessions.get(session, {}).get("device"))

    def sizes(self, mode: str) -> list[str]:
        """Sizes that were measured in a mode, each once."""
        return list(dict.fromkeys(block.case["size"] for block in self.blocks if block.case["mode"] == mode))

    def at(self, mode: str, size: str) -> dict[int, Any]:
        """Context → block with the fewest sequences, of a mode and size; suites' own blocks left out."""
        found: dict[int, Any] = {}
        for block in self.blocks:
            case = block.case
            if (case["mode"], case["size"]) != (mode, size) or case["suite"]:
                continue
            there = found.get(case["context"])
            if there is None or case["batch"] < there.case["batch"]:
                found[case["context"]] = block
        return dict(sorted(found.items()))

    def setting(self, block: Any) -> str:
        """`NVIDIA H100, 385m, batch 1, bf16`."""
        case = block.case
        device = self.device(block.line["session"])
        return f"{device}, {case['size']}, batch {case['batch']}, {case['precision']}"

    def pairs(self, blocks: dict[int, Any], own: str = OURSELVES, other: str = RIVAL) -> list[Pair]:
        """Two variants at every context at which both have times of the same rounds."""
        found = []
        for context, block in blocks.items():
            rows = {row["variant"]: row for row in block.rows if row["status"] == "ok" and row.get("times")}
            if own in rows and other in rows and block.line["interleaved"]:
                found.append(
                    Pair(
                        str(context),
                        _per_token(rows[own]),
                        _per_token(rows[other]),
                        own,
                        other,
                        self.where,
                        self.setting(block),
                        (block.line["block"],),
                        block.line["command"],
                        MODES[block.case["mode"]],
                    )
                )
        return found

    def rows(self, blocks: dict[int, Any], measure: str) -> list[Row]:
        """A measure of every variant at every context: `speed`, `time per token`, `peak memory`, `state`."""
        unit, of = MEASURES[measure]
        found = []
        for context, block in blocks.items():
            for row in block.rows:
                number = of(row) if row["status"] == "ok" else None
                if number is None:
                    continue
                rounds = len(row["times"]["rounds"]) if row.get("times") else 1
                found.append(
                    Row(
                        row["variant"],
                        OURS,
                        measure,
                        unit,
                        setting=self.setting(block),
                        at=str(context),
                        value=Interval(number, float("nan"), float("nan"), rounds),
                        where=self.where,
                        runs=(block.line["block"],),
                        command=block.line["command"],
                    )
                )
        return found

    @property
    def stamps(self) -> list[Stamp]:
        """The source of the measurements."""
        from tnbench.profiling.models.store import code_hash

        codes = dict.fromkeys(block.line["code"] for block in self.blocks)
        return [Stamp(self.where, "models", code, code_hash(), "tnbench profile-model") for code in codes]


def _per_token(row: Any) -> Sequence[float]:
    return [seconds / row["tokens"] for seconds in row["times"]["rounds"]]


def _time(row: Any) -> float | None:
    return 1e3 * row["times"]["median"] / row["tokens"] if row.get("times") else None


def _speed(row: Any) -> float | None:
    return row["tokens"] / row["times"]["median"] if row.get("times") else None


def _peak(row: Any) -> float | None:
    return row["peak_memory_bytes"] / 1e9 if row.get("peak_memory_bytes") else None


def _state(row: Any) -> float | None:
    return row["state_bytes"] / 1e6 if row.get("state_bytes") else None


MEASURES: dict[str, tuple[str, Any]] = {
    "speed": ("tokens/s", _speed),
    "time per token": ("ms", _time),
    "peak memory": ("GB", _peak),
    "state": ("MB", _state),
}
"""Measure → unit, and the number of a row."""


def machines(records: Records, mode: str) -> list[Machine]:
    """The machines on which models were measured in a mode."""
    found = (Machine(where, one) for where, one in records.models())
    return [machine for machine in found if machine.sizes(mode)]
