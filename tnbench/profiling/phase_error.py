"""LRPE's phases at long positions in 16 bits: python -m tnbench.profiling.phase_error

The official code computes the phase nθ of position n in the dtype of the activations. Here its error is
taken against float64 at every position up to 128k, and what it does to the scores of LRPE's cosine form,
Σ_j q_j k_j cos(θ_j (t − s)) (arXiv 2307.14995, eq. 1), which depend on the distance t − s alone on paper.

| form | positions | θ | compared with |
|---|---|---|---|
| `positions` | in the dtype | in fp32, as under autocast | float64 |
| `both` | in the dtype | in the dtype, as in a model loaded in it | float64 from the rounded θ |
| `theta` | in fp32 | rounded to the dtype, then in fp32: ours in a model loaded in it | float64 from θ |
| `ours` | in fp32 | in fp32 | float64 |

θ is the official start, 10000^(−2j/d) over the d channels of all heads. Phase errors are those of the first
head, whose channels turn fastest: the largest over its channels and the positions of a bin, in radians, not
wrapped. For scores, queries and keys are swish(x), x ~ N(0, σ²) with σ = 0.02 √d, rounded to the dtype, and
`LRPE` or the official rounding of it (`interop.official_position`) rotates them; their product is taken in
float64. The error is that of all heads together: root mean square over queries, keys and positions of a
bin, over that of the scores. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from tnbench.commands import run_alone
from tnbench.errors import RequestError
from tnbench.interop.official_position import RoundedLRPE
from tnbench.model.positions import BASE, LRPE, angles
from tnbench.profiling.inference_error_report import require_alone
from tnbench.profiling.phase_error_report import (
    CASES,
    DISTANCES,
    FOLDER,
    RECORDS,
    code_hash,
    read,
    table,
    write,
)
from tnbench.records import command_line, now, provenance, require_writable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PER_OCTAVE = 4
"""Bins of positions per doubling."""
WINDOW = 8
"""Positions of a run; fewer where the bin is shorter."""
BLOCK = 4096
"""Positions whose phases are held at a time."""


@dataclass(frozen=True)
class Study:
    """What is rotated, and how far.

    Raises:
        ValueError: a number that is too small.
    """

    heads: int = 8
    head_dim: int = 128
    length: int = 131072
    draws: int = 2
    """Pairs of queries and keys at every position."""
    windows: int = 48
    """Runs of `WINDOW` positions in a bin at which scores are computed."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")

    @property
    def theta(self) -> Tensor:
        """The official start of θ, (heads, head dim), fp32."""
        channels = torch.arange(self.heads * self.head_dim, dtype=torch.float32)
        return (BASE ** (-2 * channels / len(channels))).view(self.heads, self.head_dim)

    @property
    def edges(self) -> list[int]:
        """Where the bins of positions begin, and the length."""
        count = math.ceil(PER_OCTAVE * math.log2(self.length))
        begins = {round(2 ** (place / PER_OCTAVE)) for place in range(count)}
        return [*sorted(begin for begin in begins if begin < self.length), self.length]

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Queries and keys (draws, WINDOW, heads, head dim), fp32."""
        shape = (2, self.draws, WINDOW, self.heads, self.head_dim)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        q, k = F.silu(0.02 * math.sqrt(self.heads * self.head_dim) * x)
        return q, k


def phases(form: str, dtype: torch.dtype, theta: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Phases of the positions begin … end − 1 as a form has them, and as they should be.

    Args:
        theta: (channels,), fp32.

    Returns:
        Two tensors (positions, channels), float64; infinite where a position is.
    """
    steps = torch.arange(begin, end)[:, None]
    rounded = theta.to(dtype)
    exact = rounded if form == "both" else theta
    if form in ("positions", "both"):
        found = (rounded if form == "both" else theta) * steps.to(dtype)
    else:
        found = angles(rounded if form == "theta" else theta, begin, end - begin)
    return found.double(), steps.double() * exact.double()


def phase_errors(study: Study, form: str, dtype: torch.dtype) -> tuple[list[float | None], int | None]:
    """Errors of the phases of the first head.

    Returns:
        The largest in each bin, radians, None where one is not finite; and the first such position.
    """
    theta = study.theta[0]
    largest = torch.empty(study.length, dtype=torch.float64)
    for begin in range(0, study.length, BLOCK):
        end = min(begin + BLOCK, study.length)
        found, exact = phases(form, dtype, theta, begin, end)
        largest[begin:end] = (found - exact).abs().amax(1)
    lost = (~largest.isfinite()).nonzero()
    bins = [_kept(largest[begin:end].max().item()) for begin, end in pairwise(study.edges)]
    return bins, int(lost[0]) if len(lost) else None


def _kept(error: float) -> float | None:
    return float(f"{error:.4g}") if math.isfinite(error) else None


def rotation(study: Study, form: str, dtype: torch.dtype) -> LRPE:
    """The module that rotates as a form does."""
    kind = RoundedLRPE if form in ("positions", "both") else LRPE
    made = kind(study.head_dim, study.heads, 0).requires_grad_(False)
    made.theta.data = study.theta.to(dtype if form in ("both", "theta") else torch.float32)
    return made


def score_errors(study: Study, form: str, dtype: torch.dtype) -> dict[int, list[float | None]]:
    """Distance → relative error of the scores in each bin; None: not finite, or no such distance."""
    q, k = (x.to(dtype) for x in study.inputs())
    lrpe, edges = rotation(study, form, dtype), study.edges
    theta = lrpe.theta.double() if form == "both" else study.theta.double()
    generator = torch.Generator().manual_seed(1)
    found: dict[int, list[float | None]] = {distance: [] for distance in DISTANCES}
    for begin, end in pairwise(edges):
        long = min(WINDOW, end - begin)
        starts = torch.randint(begin, end - long + 1, (study.windows,), generator=generator).tolist()
        query, key = q[:, :long], k[:, :long]
        turned = [lrpe.rotate(query, key[:0], start)[0].double() for start in starts]
        for distance, errors in found.items():
            if begin < distance:
                errors.append(None)
                continue
            exact = (query.double() * key.double() * (theta * distance).cos()).sum(-1)
            keys = [lrpe.rotate(query[:0], key, start - distance)[1].double() for start in starts]
            off = [((x * y).sum(-1) - exact).square().mean() for x, y in zip(turned, keys, strict=True)]
            errors.append(_kept((torch.stack(off).mean() / exact.square().mean()).sqrt().item()))
    return found


def study_record(study: Study, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and return the record."""
    torch.set_num_threads(1)
    series = []
    for name, form in CASES:
        say(f"{name}, {form}")
        bins, lost = phase_errors(study, form, DTYPES[name])
        scores = score_errors(study, form, DTYPES[name])
        series.append(
            {
                "dtype": name,
                "form": form,
                "phase": bins,
                "first_lost": lost,
                "score": {str(distance): errors for distance, errors in scores.items()},
            }
        )
    return {
        "schema": 1,
        "study": "phase-error",
        **asdict(study),
        "begins": study.edges[:-1],
        "code": code_hash(),
        "measured": now(),
        "command": command_line(),
        "provenance": provenance(),
        "series": series,
    }


def main(
    context: typer.Context,
    heads: Annotated[int, typer.Option(help="Heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Channels of a head.")] = 128,
    length: Annotated[int, typer.Option(max=1 << 22, help="Positions.")] = 131072,
    results: Annotated[Path, typer.Option(help="Where the records are written.")] = Path("results"),
    redraw: Annotated[bool, typer.Option("--report", help="The table again, from the records.")] = False,
) -> None:
    """Errors of LRPE's phases and scores in bf16, fp16 and fp32 over the position; half a minute on a CPU."""
    folder = results / FOLDER
    if redraw:
        require_alone(context, "redraw", "results")
        typer.echo(table(read(folder)))
        return
    try:
        study = Study(heads, head_dim, length)
    except ValueError as error:
        raise RequestError(str(error)) from error
    if (folder / RECORDS).exists():
        there = read(folder)
        if any(there.get(name) != value for name, value in asdict(study).items()):
            raise RequestError(f"{folder} holds another study; choose another folder with --results")
    require_writable(folder)
    record = study_record(study, partial(typer.echo, err=True))
    write(folder, record)
    typer.echo(table(record))
    typer.echo(f"records: {folder}")


if __name__ == "__main__":
    run_alone(main)
