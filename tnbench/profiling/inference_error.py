"""The paper's original inference against its robust one: python -m tnbench.profiling.inference_error

The original algorithm (arXiv 2307.14995, alg. 3) keeps kv_t = Σ_j λ^(−j) k_j v_jᵀ and reads λ^t q_t kv_t; the
robust one (alg. 4) keeps S_t = λ^t kv_t. They are equal on paper. Here both decode the same queries, keys and
values step by step in fp32, bf16 and fp16, and every output is compared with float64, per head.

- `original`: everything in the dtype, as printed.
- `robust`: the state in fp32, inputs and outputs in the dtype: what the models decode with.
- `robust-narrow`: the state stored in the dtype, each step computed in fp32. It has the state precision of
  `original`, so that what is left between the two is the algorithm. In fp32 it is `robust`.

Queries and keys are φ(x) with φ = swish, values are x, and x ~ N(0, σ²) with σ = 0.02 √(heads · head dim):
what a projection with the initial weights N(0, 0.02²) makes of an input of unit root mean square, as SRMSNorm
gives it. φ is computed in fp32 and its result rounded to the dtype; float64 starts from the rounded
numbers and from λ = exp(−s) with the fp32 slope s, so that only the decoding differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from tnbench.commands import run_alone
from tnbench.errors import RequestError, nearest
from tnbench.kernels.linear_attention import chunked, original, recurrent
from tnbench.model.decays import OfficialDecay
from tnbench.profiling.inference_error_model import decode_model
from tnbench.profiling.inference_error_report import FOLDER, report, require_alike, require_alone, write
from tnbench.records import command_line, now, provenance, require_writable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEGMENT = 256
"""Steps of which inputs and outputs are held at a time."""
NEAR = 3.0
"""How far below the logarithm of the limit the overflow is looked for, as the largest value need not grow
from step to step.
"""
PER_DECADE = 8
"""Positions per factor of ten at which errors are kept."""
WINDOW = 64
"""Errors are taken over the last 1/64 of the steps up to a position."""
APPROACH = (0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0)
"""Shares of the predicted overflow step at which errors of `original` are kept as well."""
INIT_STD = 0.02
"""Standard deviation of the initial weights, as in the official code."""


def log_limit(dtype: torch.dtype) -> float:
    """Logarithm of the smallest number that rounds to infinity: the largest one plus half its last place.

    >>> round(math.exp(log_limit(torch.float16)))
    65520
    """
    info = torch.finfo(dtype)
    return math.log(info.max) + math.log1p(info.eps / 2 / (2 - info.eps))


def overflow_step(slope: float, dtype: torch.dtype) -> int:
    """The first step t at which λ^(−t) = exp(slope · t) is infinite in `dtype`.

    >>> overflow_step(0.5, torch.float32), overflow_step(0.5, torch.float16)
    (178, 23)
    """
    return math.ceil(log_limit(dtype) / slope)


def products_flush(study: Study, dtype: torch.dtype) -> bool:
    """Whether matrix products of the shape that reads a state take subnormal numbers as zero, as λ^t q."""
    size = (study.seeds, study.heads, study.head_dim, study.head_dim)
    subnormal = torch.full(size, torch.finfo(dtype).tiny / 4, dtype=dtype, device=study.device)
    return not bool((subnormal[:, :, :1] @ torch.full_like(subnormal, 1024.0)).any())


@dataclass(frozen=True)
class Study:
    """What is decoded: heads of one layer, and how long.

    Raises:
        ValueError: numbers that do not go together.
    """

    heads: int = 8
    head_dim: int = 64
    layer: int = 0
    layers: int = 24
    length: int = 24576
    seeds: int = 4
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "layers", "length", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"layer = {self.layer} must be one of 0 to {self.layers - 1}")

    @property
    def log_decay(self) -> Tensor:
        """−s per head, (heads,), fp32: the official decay of the layer."""
        return OfficialDecay(self.heads, self.layer, self.layers).log_decay.to(self.device)

    @property
    def slopes(self) -> list[float]:
        """s per head."""
        return [-float(x) for x in self.log_decay]

    @property
    def deviation(self) -> float:
        """σ, the standard deviation of the projections."""
        return INIT_STD * math.sqrt(self.heads * self.head_dim)

    def inputs(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Steps before the segment, and q, k, v (seeds, time, heads, head dim), segment after segment.

        The numbers are drawn on the CPU, from one stream per seed: the same on every device, for any number
        of seeds and, before rounding, in every dtype.
        """
        streams = [torch.Generator().manual_seed(seed) for seed in range(self.seeds)]
        shape = (3, SEGMENT, self.heads, self.head_dim)
        for start in range(0, self.length, SEGMENT):
            x = torch.stack([torch.randn(shape, generator=stream) for stream in streams], dim=1)
            x = self.deviation * x[:, :, : self.length - start]
            x = torch.cat([F.silu(x[:2]), x[2:]]).to(self.device, dtype)
            yield start, x[0], x[1], x[2]


State = Tensor | None
Decode = Callable[[Tensor, Tensor, Tensor, Tensor, int, State], tuple[Tensor, State]]
"""(q, k, v, log decay (heads,), steps before, state) to the outputs, and the state after them."""


def decode_original(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, start: int, kv: State):
    """The operator `original`, continued after `start` steps.

    The operator counts its steps from 1 and hands on λ^t kv_t, so that a sequence in segments would never
    overflow. Here q and k come scaled by the powers that belong to their steps, computed as the operator
    does, and the operator is told of no decay: kv_t goes from segment to segment as it is. Bit for bit the
    operator on the whole sequence.
    """
    steps = torch.arange(start + 1, start + 1 + q.shape[1], device=q.device, dtype=torch.float32)
    exponents = steps[:, None] * log_decay
    shrink, grow = (power.exp().to(q.dtype)[None, :, :, None] for power in (exponents, -exponents))
    return original(q * shrink, k * grow, v, initial_state=kv, output_state=True)


def decode_robust(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, start: int, state: State):
    """The operator `recurrent`: the state in fp32."""
    return recurrent(q, k, v, log_decay, initial_state=state, output_state=True)


def decode_narrow(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, start: int, state: State):
    """The robust recurrence with its state rounded to the inputs' dtype after every step."""
    outputs = []
    for t, stored in enumerate(_states(k.float(), v.float(), log_decay, state, keep=k.dtype)):
        outputs.append((q[:, t, :, None, :].float() @ stored).squeeze(-2))
        state = stored
    return torch.stack(outputs, dim=1).to(q.dtype), state


def _states(k: Tensor, v: Tensor, log_decay: Tensor, state: State, *, keep: torch.dtype) -> Iterator[Tensor]:
    """S_t = λ S_{t−1} + k_t v_tᵀ in the dtype of k and v, rounded to `keep` each time; one buffer for all."""
    factor = log_decay.to(k.dtype).exp().view(-1, 1, 1)
    size = (k.shape[0], *k.shape[2:], v.shape[-1])
    state = k.new_zeros(size) if state is None else state.to(k.dtype, copy=True)
    for t in range(k.shape[1]):
        state.mul_(factor).addcmul_(k[:, t, :, :, None], v[:, t, :, None, :])
        if keep != k.dtype:
            state.copy_(state.to(keep))
        yield state


ALGORITHMS: dict[str, Decode] = {
    "original": decode_original,
    "robust": decode_robust,
    "robust-narrow": decode_narrow,
}


class Float64:
    """The reference, in float64, and the step at which the state of the original form leaves a dtype."""

    def __init__(self, study: Study, dtype: torch.dtype) -> None:
        self.log_decay, self.limit = study.log_decay.double(), log_limit(dtype)
        self.state: State = None
        self.overflow = np.zeros((study.seeds, study.heads), dtype=np.int64)
        """First step at which λ^(−t) · max(1, |S_t|, |k_t|, |k_t v_tᵀ|) overflows; 0: none."""

    def decode(self, start: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Outputs (seeds, time, heads, head dim)."""
        q, k, v, before = q.double(), k.double(), v.double(), self.state
        out, after = chunked(q, k, v, self.log_decay, initial_state=before, output_state=True)
        assert after is not None
        self.state = after
        end = start + q.shape[1]
        size = after.abs().amax((0, 2, 3)).clamp(min=1).log()
        near = size - end * self.log_decay >= self.limit - NEAR
        heads = (near.cpu().numpy() & (self.overflow == 0).any(axis=0)).nonzero()[0].tolist()
        if heads:
            first = self.overflow[:, heads]
            _note_first(first, self._overflows(start, k[:, :, heads], v[:, :, heads], before, heads), start)
            self.overflow[:, heads] = first
        return out

    def _overflows(self, start: int, k: Tensor, v: Tensor, before: State, heads: list[int]) -> Tensor:
        """Whether the state of the original form is infinite, (seeds, time, heads), step by step."""
        state = None if before is None else before[:, heads]
        states = _states(k, v, self.log_decay[heads], state, keep=torch.float64)
        largest = torch.stack([state.abs().amax((-2, -1)) for state in states], dim=1)
        key, value = k.abs().amax(-1), v.abs().amax(-1)
        size = torch.stack([largest, key, key * value]).amax(0).clamp(min=1).log()
        steps = torch.arange(start + 1, start + 1 + k.shape[1], device=k.device)
        return size - steps[:, None] * self.log_decay[heads] >= self.limit


def _note_first(first: np.ndarray, hit: Tensor, start: int) -> None:
    """Enter the first steps at which `hit` (seeds, time, heads) holds into `first`, where that has none."""
    found = hit.cpu().numpy()
    new = (first == 0) & found.any(axis=1)
    first[new] = start + 1 + found.argmax(axis=1)[new]


class Trial:
    """One algorithm in one dtype on its way through the sequence, with its errors."""

    def __init__(self, study: Study, decode: Decode) -> None:
        self.decode, self.log_decay = decode, study.log_decay
        self.heads = torch.arange(study.heads, device=study.device)
        self.state: State = None
        self.first = np.zeros((study.seeds, study.heads), dtype=np.int64)
        """First step with an output that is not finite; 0: none."""
        self.errors = np.full((study.seeds, study.length, study.heads), np.inf, dtype=np.float32)
        """‖o_t − o64_t‖ / ‖o64_t‖ over the channels of a head."""

    def run(self, start: int, q: Tensor, k: Tensor, v: Tensor, exact: Tensor) -> None:
        """Decode a segment. A head is left out once it is infinite for all seeds, as it stays so."""
        if not len(self.heads):
            return
        q, k, v, exact = (x[:, :, self.heads] for x in (q, k, v, exact))
        out, self.state = self.decode(q, k, v, self.log_decay[self.heads], start, self.state)
        error = (out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        finite = out.isfinite().all(-1)
        heads = self.heads.cpu().numpy()
        self.errors[:, start : start + q.shape[1], heads] = error.where(finite, torch.inf).float().cpu()
        first = self.first[:, heads]
        _note_first(first, ~finite, start)
        self.first[:, heads] = first
        alive = (first == 0).any(axis=0)
        if not alive.all():
            keep = torch.from_numpy(np.flatnonzero(alive)).to(self.heads.device)
            self.heads, self.state = self.heads[keep], self.state[:, keep]  # type: ignore[index]


def positions(length: int, predicted: int | None = None) -> list[int]:
    """Steps from 1 to `length` at which errors are kept: log-spaced, and closer before a predicted step."""
    grid = np.geomspace(1, length, 1 + max(1, round(PER_DECADE * math.log10(length))))
    near = [math.floor(share * predicted) for share in APPROACH] if predicted else []
    return sorted({t for t in (*np.rint(grid).astype(int).tolist(), *near) if 1 <= t <= length})


def quartiles(errors: np.ndarray, where: list[int]) -> dict[str, list]:
    """Quartiles of errors (seeds, length) around steps, as far as all are finite.

    Over the seeds and the last t / WINDOW steps up to t.
    """
    where = [t for t in where if np.isfinite(errors[:, t - 1]).all()]
    found = [np.quantile(errors[:, t - 1 - t // WINDOW : t], [0.25, 0.5, 0.75]) for t in where]
    names = ("low", "median", "high")
    kept = {
        name: [float(f"{x:.2e}") for x in column]
        for name, column in zip(names, np.transpose(found), strict=True)
    }
    return {"position": where, **kept}


def measure(study: Study, name: str, say: Callable[[str], None]) -> tuple[list[dict], list[dict]]:
    """Decode with every algorithm in one dtype.

    Returns:
        The series of errors, one per algorithm and head, and the overflow steps of `original`, per head.
    """
    dtype = DTYPES[name]
    exact = Float64(study, dtype)
    trials = {
        algorithm: Trial(study, decode)
        for algorithm, decode in ALGORITHMS.items()
        if (name, algorithm) != ("fp32", "robust-narrow")
    }
    for start, q, k, v in study.inputs(dtype):
        if start % (16 * SEGMENT) == 0:
            say(f"{name}: step {start:,} of {study.length:,}")
        outputs = exact.decode(start, q, k, v)
        for trial in trials.values():
            trial.run(start, q, k, v, outputs)
    series, steps = [], []
    for head, slope in enumerate(study.slopes):
        predicted = overflow_step(slope, dtype)
        for algorithm, trial in trials.items():
            where = positions(study.length, predicted if algorithm == "original" else None)
            label = {"dtype": name, "algorithm": algorithm, "head": head + 1}
            series.append(label | quartiles(trial.errors[:, :, head], where))
        steps.append(
            {
                "dtype": name,
                "head": head + 1,
                "slope": slope,
                "predicted": predicted,
                "state": [int(step) or None for step in exact.overflow[:, head]],
                "seen": [int(step) or None for step in trials["original"].first[:, head]],
            }
        )
    return series, steps


def study_record(study: Study, dtypes: list[str], threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, operator and model, and return the record."""
    torch.set_num_threads(threads)
    chosen = {name: DTYPES[name] for name in dtypes}
    found = [measure(study, name, say) for name in dtypes]
    say("model")
    return {
        "schema": 1,
        "heads": study.heads,
        "head_dim": study.head_dim,
        "layer": study.layer,
        "layers": study.layers,
        "length": study.length,
        "seeds": study.seeds,
        "deviation": study.deviation,
        "device": torch.cuda.get_device_name() if study.device == "cuda" else "cpu",
        "threads": threads,
        "log_limits": {name: log_limit(dtype) for name, dtype in chosen.items()},
        "products_flush": {name: products_flush(study, dtype) for name, dtype in chosen.items()},
        "overflow": [row for _, steps in found for row in steps],
        "series": [row for series, _ in found for row in series],
        "model": decode_model(chosen, study.seeds, study.device),
        "measured": now(),
        "command": command_line(),
        "provenance": provenance(),
    }


def _chosen(dtype: str) -> list[str]:
    names = dtype.split(",")
    for name in names:
        if name not in DTYPES:
            raise RequestError(f"--dtype {dtype}: no dtype {name!r}, {nearest(name, DTYPES)}")
    return list(dict.fromkeys(names))


def main(
    context: typer.Context,
    heads: Annotated[int, typer.Option(help="Heads, each with its slope of the official decay.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 64,
    layer: Annotated[int, typer.Option(help="Layer, from 0; later ones have smaller slopes.")] = 0,
    layers: Annotated[int, typer.Option(help="Layers of the model that the layer is one of.")] = 24,
    length: Annotated[int, typer.Option(max=1 << 24, help="Steps decoded.")] = 24576,
    dtype: Annotated[str, typer.Option(help="Any of fp32, bf16, fp16, with commas.")] = "fp32,bf16,fp16",
    seeds: Annotated[int, typer.Option(help="Sequences decoded, each from its own seed.")] = 4,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    results: Annotated[Path, typer.Option(help="Where the records are written.")] = Path("results"),
    redraw: Annotated[
        bool, typer.Option("--report", help="Table and figure again, from the records.")
    ] = False,
) -> None:
    """Compare the paper's original inference with its robust one: error over the position, per head."""
    folder = results / FOLDER
    if redraw:
        require_alone(context, "redraw", "results")
        typer.echo(report(folder))
        return
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise RequestError(f"--device {device}: torch has no such device here; take cpu")
    dtypes = _chosen(dtype)
    try:
        study = Study(heads, head_dim, layer, layers, length, seeds, device)
    except ValueError as error:
        raise RequestError(str(error)) from error
    require_writable(folder)
    sizes = ("heads", "head_dim", "layer", "layers", "length", "seeds")
    require_alike(folder, {name: getattr(study, name) for name in sizes}, dtypes)
    write(folder, study_record(study, dtypes, threads, partial(typer.echo, err=True)))
    typer.echo(report(folder))
    typer.echo(f"records, tables and figure: {folder}")


if __name__ == "__main__":
    run_alone(main)
