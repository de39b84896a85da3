"""Made-up records of a suite, as its runs and its report would have left them, for the tests of figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnbench.records import source_hash


def suite(
    root: Path,
    name: str,
    values: Mapping[str, Sequence[float | None]],
    *,
    margin: float | None = 0.01,
    code: str | None = None,
) -> Path:
    """Write a suite's folder.

    Args:
        values: variant → bits per byte by seed, the base first; None: the run diverged.
        code: hash of the source behind the runs; None: the present one.
    """
    folder = root / name
    rows = []
    for number, (variant, found) in enumerate(values.items()):
        for seed, value in enumerate(found):
            run = f"{number:02d}{seed:02d}{name.encode().hex()[:8]}"
            _run(folder / "runs" / run, seed, value, code or source_hash())
            rows.append(f"{variant},{seed},{run}")
    (folder / "runs.csv").write_text("\n".join(["variant,seed,run_id", *rows]) + "\n")
    base, *others = values
    lines = [f"{one},{base},val_bits_per_byte,{margin or ''},0.05" for one in others]
    (folder / "comparisons.csv").write_text("\n".join(["variant,base,metric,margin,alpha", *lines]) + "\n")
    return folder


def _run(folder: Path, seed: int, value: float | None, code: str) -> None:
    folder.mkdir(parents=True)
    final = {} if value is None else {"report": {"values": {"val_bits_per_byte": value}, "text_bytes": 9}}
    manifest: dict[str, Any] = {
        "run_id": folder.name,
        "outcome": "finished" if value is not None else "diverged",
        "steps": 10,
        "command": "cli.py ablate made-up",
        "config": {
            "model": {"size": "0.1m"},
            "data": {"context": 64},
            "training": {"data_seed": seed, "init_seed": seed, "batch_tokens": 640, "precision": "fp32"},
        },
        "data": {"corpus": "made-up"},
        "provenance": {"source_hash": code},
        "evaluation": final,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    line = {
        "name": "val_bits_per_byte",
        "value": value,
        "unit": "bits per byte",
        "step": 10,
        "split": "report",
    }
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" if value is not None else "")
