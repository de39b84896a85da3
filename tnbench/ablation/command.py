"""`tnbench ablate`, behind the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from tnbench.ablation import display
from tnbench.ablation.collect import collect, command_again
from tnbench.ablation.eval_plan import EvalPlan
from tnbench.ablation.eval_queue import Asked, preflight
from tnbench.ablation.execute import Ledger, ended_outcomes, execute
from tnbench.ablation.plan import show_plan
from tnbench.ablation.suite import Suite, load_suite
from tnbench.errors import INTERRUPTED, RequestError
from tnbench.profiling.lines import RecordsError
from tnbench.records import require_writable
from tnbench.report import terminal_evaluations, terminal_table, write_reports
from tnbench.report.evaluations import SCORE
from tnbench.report.results import Frame
from tnbench.training.environment import require_device, say_fall_back


def chosen_device(device: str) -> str:
    """`auto` is the GPU where torch sees one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def ablate(
    name: str,
    *,
    settings: Mapping[str, Any],
    seeds: int | None,
    workers: int | None,
    device: str,
    results: Path,
    keep: str,
    mode: str,
    console: Console,
) -> int:
    """Run what is missing of a suite and write its reports.

    Args:
        mode: `run`, `plan` (what it would cost), `status` (where its runs stand) or `report` (no runs).

    Returns:
        The exit status: 0, 1 if a run failed, 130 if interrupted.

    Raises:
        RequestError: the request is wrong; nothing has been run.
    """
    settings = {**settings, "training.device": settings.get("training.device", chosen_device(device))}
    suite = load_suite(name, results, settings=settings, seeds=seeds)
    if mode in ("run", "plan"):
        for variant in suite.variants:
            require_device(variant.config)
    if mode in ("run", "report"):
        _require_writable(suite)
    asked = _asked(suite, console) if mode in ("run", "plan") else None
    if mode == "plan":
        show_plan(suite, workers, asked, console)
        return 0
    if mode == "status":
        console.print(display.plan_line(suite), highlight=False)
        console.print(display.status_table(suite))
        return 0
    ledger = None
    if mode == "run":
        console.print(display.plan_table(suite, ended_outcomes(suite)))
        lines = [display.plan_line(suite), *display.evaluation_lines(suite, asked)]
        console.print(*lines, "", sep="\n", highlight=False, soft_wrap=True)
        for variant in suite.variants:
            say_fall_back(variant.config)
        with display.Watcher(suite, console) as watcher:
            ledger = execute(suite, workers=workers, keep_weights=keep == "weights", watch=watcher)
    return _report(suite, ledger, console)


def _require_writable(suite: Suite) -> None:
    require_writable(suite.folder)
    if suite.evals:
        require_writable(suite.evals.folder)


def _asked(suite: Suite, console: Console) -> Asked | None:
    """What is to be evaluated, proven before any training.

    Raises:
        RequestError: it cannot be; folders that are still empty are gone again.
    """
    if suite.evals is None:
        return None
    try:
        with console.status("reading the tasks of the evaluation"):
            return preflight(suite)
    except RequestError as error:
        for folder in (suite.folder, suite.evals.folder, suite.folder.parent):
            with suppress(OSError):
                folder.rmdir()
        raise RequestError(f"{suite.path}: {error}") from error


def _report(suite: Suite, ledger: Ledger | None, console: Console) -> int:
    results = collect(suite)
    every: Frame = pd.concat([results.runs, results.tuning])
    if ledger is None and (every["outcome"] == "missing").all():
        raise RequestError(
            f"{suite.folder} holds no record of {suite.name} as it is now; run {command_again(suite)}"
        )
    paths = write_reports(results, suite.folder)
    console.print(terminal_table(results))
    for table in terminal_evaluations(results):
        console.print(table)
    if ledger is not None and suite.evals:
        _write_tables(suite.evals)
    report = next(path for path in paths if path.suffix == ".html")
    counted = _counted(results.runs, "runs")
    counted += f"; {_counted(results.tuning, 'tuning runs')}" if len(results.tuning) else ""
    if results.evals and results.evals.tasks:
        values = results.evals.values
        counted += f"; {_counted(values[values['measure'] == SCORE], 'evaluations')}"
    console.print(f"{counted}. Tables, plots and report: {report}", highlight=False, soft_wrap=True)
    for note in results.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if ledger is not None and ledger.interrupted:
        console.print(
            "interrupted: finished runs and checkpoints are kept; the same command goes on from there",
            highlight=False,
        )
        return INTERRUPTED
    failed = every[every["outcome"] == "failed"]
    for row in failed.itertuples() if ledger is not None else ():
        record = suite.folder / "runs" / str(row.run_id) / "manifest.json"
        console.print(
            f"failed: {row.variant}, seed {row.seed}: {row.reason} ({record})",
            highlight=False,
            soft_wrap=True,
        )
    unrecorded = ledger.unrecorded if ledger is not None else {}
    for run in ledger.planned if ledger is not None else ():
        if reason := unrecorded.get(run.folder.id):
            console.print(
                f"failed: {run.variant.name}, seed {run.seed}: {reason}", highlight=False, soft_wrap=True
            )
    unanswered = _unanswered(ledger, results.notes, console) if ledger is not None else False
    return 1 if ledger is not None and (len(failed) or unrecorded or unanswered) else 0


def _unanswered(ledger: Ledger, notes: Sequence[str], console: Console) -> bool:
    """Whether an evaluation failed; says so where no note has. Too little memory is a result."""
    found = False
    for run in ledger.planned:
        for name, (outcome, reason) in ledger.evaluated.get(run.folder.id, {}).items():
            found = found or outcome != "out_of_memory"
            if not any(reason in note for note in notes):  # it could not be recorded
                line = f"not evaluated: {run.variant.name}, seed {run.seed}, {name}: {reason}"
                console.print(line, highlight=False, soft_wrap=True)
    return found


def _write_tables(plan: EvalPlan) -> None:
    """The tables of all evaluations, as `tnbench eval` writes them; while one runs, it does so at its end."""
    from tnbench.evaluation.evaluating import write_tables

    with suppress(RequestError, RecordsError), plan.store.writing():
        write_tables(plan.store)


def _counted(runs: Any, name: str) -> str:
    """`12 runs: 11 finished, 1 diverged`."""
    counts = Counter(runs["outcome"])
    ends = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.most_common())
    return f"{len(runs)} {name}: {ends}"
