"""A suite's records, small enough to be committed: python -m tnbench.ablation.thinning RESULTS/SUITE OUT

Manifests, tables, plots and the values of all evaluations are kept whole. Of what is recorded at every step
of the training, the loss at every tenth step stays, and all values of the last one. The manifest says so
(`metrics_every`), and a repeat is compared with what is left. Weights stay behind.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from tnbench.commands import run_alone
from tnbench.errors import RequestError
from tnbench.records import ENDED, RunFolder, read_metrics, write_atomic, write_json
from tnbench.report.words import counted

EVERY = 10
KEY = "metrics_every"
"""Entry of a manifest: of how many steps the training loss of one is still in the metrics."""
THINNED = "train_loss"
SPARSE = ("epochs",)
"""Values of the training that are recorded with evaluations only."""


def thin(values: list[dict[str, Any]], every: int = EVERY) -> list[dict[str, Any]]:
    """Those of a run's recorded values that are kept, in their order.

    Args:
        values: as `read_metrics` gives them.
        every: steps per training loss that is kept, beside that of the first and the last.
    """
    steps = sorted({value["step"] for value in values})
    if not steps:
        return []
    some, last = {*steps[::every], 1, steps[-1]}, steps[-1]
    return [
        value
        for value in values
        if value.get("split") != "train"
        or value["name"] in SPARSE
        or value["step"] == last
        or (value["name"] == THINNED and value["step"] in some)
    ]


def write(run: RunFolder, out: RunFolder) -> None:
    """Write a run's manifest and what is kept of its metrics.

    Raises:
        RequestError: it has not ended, or its metrics are damaged.
    """
    manifest = run.read_manifest()
    if manifest is None or run.outcome() not in ENDED:
        raise RequestError(f"{run.path} has not ended, or lost its result ({run.problem() or 'no outcome'})")
    values, problems = read_metrics(run.metrics)
    if problems:
        raise RequestError(problems[0])
    kept = {id(value) for value in (values if KEY in manifest else thin(values))}
    lines = [line for line in run.metrics.read_text().splitlines() if line]
    text = "".join(f"{line}\n" for line, value in zip(lines, values, strict=True) if id(value) in kept)
    write_atomic(out.metrics, text)
    write_json(out.manifest, {**manifest, KEY: manifest.get(KEY, EVERY)})


def main(
    suite: Annotated[Path, typer.Argument(help="A suite's folder of results.")],
    out: Annotated[Path, typer.Argument(help="Folder that is written: OUT/SUITE.")],
) -> None:
    """Copy a suite's records with thinned metrics and without weights."""
    runs = [RunFolder(path) for path in sorted((suite / "runs").glob("*")) if path.is_dir()]
    if not runs:
        raise RequestError(
            f"{suite} has no runs; name a suite's folder of results, such as results/quickstart"
        )
    target = out / suite.resolve().name
    if target.exists() and target.resolve() == suite.resolve():
        raise RequestError(f"{suite} would be written over itself; name another folder")
    unfinished = [run.id for run in runs if run.outcome() not in ENDED]
    if unfinished:
        raise RequestError(
            f"{counted(len(unfinished), 'run')} of {suite} did not end ({unfinished[0]}); "
            f"tnbench ablate {suite.resolve().name} goes on with them"
        )
    for run in runs:
        write(run, RunFolder(target / "runs" / run.id))
    for path in sorted(suite.iterdir()):
        if path.is_file():
            shutil.copy(path, target / path.name)
    typer.echo(f"{target}: {counted(len(runs), 'run')}")


if __name__ == "__main__":
    run_alone(main)
