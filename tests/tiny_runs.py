"""A run that takes a second, and what is read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tnbench.config import RunConfig
from tnbench.records import RunFolder, read_metrics
from tnbench.resolution import resolve

MEASURED = {"step_seconds", "tokens_per_second", "peak_memory_bytes"}
TINY = {
    "model.width": 32,
    "model.layers": 2,
    "model.heads": 4,
    "model.channel_width": 48,
    "data.context": 32,
    "training.steps": 12,
    "training.batch_tokens": 256,
    "training.evaluations": 3,
}


def tiny(corpus: Path, **training: Any) -> RunConfig:
    return resolve(TINY, {"data.corpus": str(corpus)}, {f"training.{k}": v for k, v in training.items()})


def values(folder: RunFolder) -> list[tuple[Any, ...]]:
    """All metric values that do not measure the machine, exactly and in order."""
    lines, problems = read_metrics(folder.metrics)
    assert not problems
    kept = [line for line in lines if line["name"] not in MEASURED]
    return [tuple(line[key] for key in ("name", "value", "unit", "step", "tokens", "split")) for line in kept]


def same_run(folder: RunFolder, other: RunFolder) -> bool:
    weights, others = load_file(folder.weights), load_file(other.weights)
    assert weights.keys() == others.keys()
    return all(torch.equal(weights[n], others[n]) for n in weights) and values(folder) == values(other)


def manifest(folder: RunFolder) -> dict[str, Any]:
    found = folder.read_manifest()
    assert found is not None
    return found
