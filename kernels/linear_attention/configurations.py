"""Launch configurations of the Triton kernels: measured once, committed in tuned.json, looked up. Nothing is
tuned at run time.

A shape class is an architecture, a kind of product (16 bit or fp32), the larger of the two head dims, whether
a backward follows, and ranges of the number of heads (over the whole batch) and of the length. What is not in
tuned.json is decided by `rule`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tnbench.kernels.layout import WIDEST

TUNED = Path(__file__).with_name("tuned.json")


class Launch(NamedTuple):
    """One kernel: tokens of a step, columns of a program's tile, warps, pipeline stages; `tma`: tiles are
    loaded by the tensor memory accelerator, where strides and pointers allow; `deep`: no spare buffer (see
    `look` in triton_kernels.py), for one more stage in the same memory; bound on registers, 0 for none."""

    chunk: int
    tile: int
    warps: int
    stages: int
    tma: bool = False
    deep: bool = False
    registers: int = 0


class Configuration(NamedTuple):
    """How one shape class is computed.

    programs: how many programs a walk is to have at least, which decides the number of segments; spans:
        parts of a segment for each of which the first launch computes an end-state; states, outputs,
        gradients: the kernels.
    """

    programs: int
    spans: int
    states: Launch
    outputs: Launch
    gradients: Launch


class Shape(NamedTuple):
    """What a configuration is chosen by."""

    capability: int  # 90 for sm_90
    processors: int  # multiprocessors
    half: bool  # whether products are 16 bit
    dim: int  # the larger head dim
    heads: int  # sequences times heads; 1 sequence for packed ones
    time: int
    training: bool  # whether a backward follows


def lookup(shape: Shape) -> Configuration:
    """The measured configuration of a shape class, or that of `rule`.

    Raises:
        ValueError: a head dim above 256, or an architecture older than sm_80.
    """
    if shape.dim > WIDEST:
        raise ValueError(f"head dims go up to {WIDEST}, got {shape.dim}")
    if shape.capability < 80:
        raise ValueError(
            f"the Triton kernels need compute capability 8.0, this GPU has {shape.capability / 10}"
        )
    return measured().get(key(shape)) or rule(shape)


def key(shape: Shape) -> str:
    """The name of a shape class in tuned.json."""
    product = "half" if shape.half else "single"
    mode = "training" if shape.training else "forward"
    dim = next(d for d in (16, 32, 64, 96, 128, 192, 256) if shape.dim <= d)
    heads = max(n for n in (1, 16, 48, 96) if n <= shape.heads)
    time = max(n for n in (1, 1449, 4097, 16385) if n <= max(shape.time, 1))
    return f"sm_{shape.capability} {product} {dim} {mode}, heads from {heads}, time from {time}"


@lru_cache
def measured() -> dict[str, Configuration]:
    if not TUNED.exists():
        return {}
    rows = json.loads(TUNED.read_text())
    return {name: from_json(row) for name, row in rows.items()}


def from_json(row: dict) -> Configuration:
    launches = {n: Launch(**row[n]) for n in ("states", "outputs", "gradients")}
    return Configuration(**{**row, **launches})


def to_json(configuration: Configuration) -> dict:
    row = configuration._asdict()
    return row | {n: row[n]._asdict() for n in ("states", "outputs", "gradients")}


def rule(shape: Shape) -> Configuration:
    """What a shape class takes that was not measured. Only fp32 products of head dims above 64 spill inside a
    loop."""
    older = shape.capability < 90
    if not shape.half:
        chunk, tile = 16 if older and shape.dim > 128 else 32, 16 if shape.dim > 128 else 32
        launch = Launch(chunk, tile, 4, 1)
        return Configuration(2 * shape.processors, 1, launch, launch, launch)
    if older or shape.dim > 128:
        chunk = 32 if older and shape.dim > 128 else 64
        walk = Launch(chunk, 32, 4, 1 if older and shape.dim > 64 else 2)
        summing = Launch(chunk, 64 if shape.dim <= 128 else 32, 4, 2)
        return Configuration(2 * shape.processors, 1, summing, walk, walk)
    launch = Launch(64, 64, 4, 3, tma=True, deep=True)
    walk = Launch(64, 64, 4, 3) if shape.dim <= 64 else launch
    return Configuration(shape.processors, 2, launch, walk, walk)
