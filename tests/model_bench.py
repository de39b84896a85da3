"""Campaigns of profile-model with made-up workers, for its tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnbench.profiling.models.campaign import Campaign, Measurement, Point, Session
from tnbench.profiling.models.largest import Axis, Search
from tnbench.profiling.models.store import Store
from tnbench.profiling.models.variants import Variant
from tnbench.profiling.progress import Progress
from tnbench.resolution import resolve

WORKER = Path(__file__).with_name("fake_model_worker.py")
MEASUREMENT = Measurement(rounds=3, calls=3, seconds=0.01)
CONFIG = resolve(
    {"model.preset": "transnormerllm", "model.size": "0.1m"},
    {"data.context": 64, "training.batch_tokens": 64, "training.steps": 1},
)
LINE = {"device": "NVIDIA H100 80GB HBM3", "command": "tnbench profile-model", "versions": {"torch": "2"}}


def point(names: Sequence[str], context: int = 1024, mode: str = "train", batch: int = 1) -> Point:
    variants = [
        Variant(
            name, {} if index == 0 else {"model.gate": False}, CONFIG, "fla-retnet" * name.endswith("peer")
        )
        for index, name in enumerate(names)
    ]
    case = {
        "mode": mode,
        "size": "0.1m",
        "context": context,
        "batch": batch,
        "vocabulary": 64,
        "precision": "bf16",
        "device": "cpu",
        "threads": 1,
        "suite": "",
        "limit": None,
    }
    placed = tuple(variant.at(context, batch) for variant in variants)
    return Point(case, placed, "0123", {"torch": "2", "triton": None}, "tnbench profile-model --mode train")


class Bench:
    """Campaigns in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "machine")
        self.store.folder.mkdir()

    def session(self, **options: Any) -> Session:
        limits = {"prepare": 20.0, "time": 0.5, "energy": 5.0, "roofline": 20.0}
        return Session(self.command, self.store, limits=limits, **options)

    def run(
        self, points: Sequence[Point], measurement: Measurement = MEASUREMENT, **options: Any
    ) -> Progress:
        return Campaign(self.session(**options), measurement).run(points, self.store.read(), LINE)

    def search(self, points: list[Point], axis: Axis, guess: int | None) -> Progress:
        search = Search(self.session(), axis, lambda point, variant: guess, 1 << 30)
        return search.run(points, self.store.read(), LINE)

    def command(self, name: str) -> list[str]:
        return [sys.executable, str(WORKER), name, str(self.folder)]

    def processes(self, name: str) -> int:
        return len(list(self.folder.glob(f"{name}.*")))

    def requests(self, name: str) -> list[str]:
        paths = sorted(self.folder.glob(f"{name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(line)["do"] for path in paths for line in path.open()]

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["variant"]: row for row in self.store.read().blocks[-1].rows}
