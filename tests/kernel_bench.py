"""Campaigns of profile-kernels with made-up workers, for its tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnbench.profiling.kernels.campaign import Campaign, Measurement, Point
from tnbench.profiling.kernels.store import Store
from tnbench.profiling.pool import Pool
from tnbench.profiling.progress import Progress

WORKER = Path(__file__).with_name("fake_kernel_worker.py")
FINE = {"fine-1": "ours", "fine-3": "peer", "fine-9": "torch", "fine-2": "softmax"}
COMPILES = {"ours": "anew", "peer": "once"}
MEASUREMENT = Measurement(rounds=3, calls=3, seconds=0.01)


def point(length: int, implementations: dict[str, str], mode: str = "forward", graph: bool = False) -> Point:
    shape = {"batch": 2, "heads": 4, "key_dim": 64, "value_dim": 64, "decay": "geometric", "length": length}
    case = {"operator": "linear_attention", "mode": mode, "dtype": "bfloat16", "shape": shape}
    return Point(
        case=case,
        tokens=2 * length,
        floor_bytes=1000 * length,
        flops=10**6 * length,
        graph=graph,
        implementations=implementations,
        kernel_hash="0123",
        stack={"torch": "2", "triton": None},
        command="tnbench profile-kernels linear_attention",
        compiles={name: COMPILES[source] for name, source in implementations.items() if source in COMPILES},
    )


class Bench:
    """Campaigns in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "machine")
        self.store.folder.mkdir()

    def run(
        self, points: Sequence[Point], measurement: Measurement = MEASUREMENT, **options: Any
    ) -> Progress:
        with Pool(self.command, {"time": 0.5}) as pool:
            one = Campaign(pool, self.store, measurement, **options)
            return one.run(points, self.store.read(), {"device": "a machine", "versions": {"torch": "2"}})

    def command(self, name: str) -> list[str]:
        return [sys.executable, str(WORKER), name, str(self.folder)]

    def processes(self, name: str) -> int:
        return len(list(self.folder.glob(f"{name}.*")))

    def requests(self, name: str) -> list[str]:
        return [json.loads(line)["do"] for path in self.folder.glob(f"{name}.*") for line in path.open()]

    def statuses(self) -> dict[str, str]:
        return {row["implementation"]: row["status"] for row in self.store.read().blocks[-1].rows}
