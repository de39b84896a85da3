"""`tnbench ablate` and `tnbench train`, behind the command line."""

from __future__ import annotations

import fcntl
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tnbench.ablation import display
from tnbench.ablation.collect import collect
from tnbench.ablation.estimate import seconds_per_run
from tnbench.ablation.execute import Ledger, default_workers, ended_outcomes, execute
from tnbench.ablation.suite import Suite, load_suite
from tnbench.ablation.workers import exclusive
from tnbench.config import run_id
from tnbench.data import prepare
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, read_metrics, require_writable, source_hash
from tnbench.report import terminal_table, write_reports
from tnbench.resolution import resolve
from tnbench.training import loop
from tnbench.training.environment import require_device

INTERRUPTED = 130
TRAIN_DEFAULTS = {"training.tokens": 2_000_000}
"""What `tnbench train` adds to the defaults of the configuration."""


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
        require_device(suite.variants[0].config.training)
    if mode == "plan":
        _show_plan(suite, workers, console)
        return 0
    if mode == "status":
        console.print(display.plan_line(suite), highlight=False)
        console.print(display.status_table(suite))
        return 0
    require_writable(suite.folder)
    ledger = None
    if mode == "run":
        with _alone(suite):
            console.print(display.plan_table(suite, ended_outcomes(suite)))
            console.print(display.plan_line(suite), "", sep="\n", highlight=False)
            with display.Watcher(suite, console) as watcher:
                ledger = execute(suite, workers=workers, keep_weights=keep == "weights", watch=watcher)
    return _report(suite, ledger, console)


def _show_plan(suite: Suite, workers: int | None, console: Console) -> None:
    outcomes = ended_outcomes(suite)
    with console.status("timing a few steps of each variant"):
        seconds = {variant.name: seconds_per_run(suite, variant) for variant in suite.variants}
    console.print(display.plan_table(suite, outcomes, seconds))
    missing = [run for run in suite.runs() if run.folder.id not in outcomes]
    count = min(workers, len(missing)) if workers else default_workers(suite, len(missing))
    known = [seconds[run.variant.name] for run in missing]
    if not missing:
        total = "nothing is missing"
    elif None in known:
        total = f"{len(missing)} runs are missing"
    else:
        rough = display.duration(sum(s for s in known if s) / max(count, 1))
        total = f"{len(missing)} runs are missing: about {rough} of training with {count} at a time"
    console.print(f"{display.plan_line(suite)}\n{total}", highlight=False)


@contextmanager
def _alone(suite: Suite) -> Iterator[None]:
    """One command at a time trains a suite in one folder; the lock goes with the process."""
    with open(suite.folder / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(
                f"another tnbench ablate is running {suite.name} in {suite.folder}; wait for it,"
                f" or write elsewhere with --results"
            ) from error
        yield


def _report(suite: Suite, ledger: Ledger | None, console: Console) -> int:
    results = collect(suite)
    if ledger is None and not (results.runs["outcome"] != "missing").any():
        raise RequestError(
            f"{suite.folder} holds no record of {suite.name} as it is now; run tnbench ablate {suite.name}"
        )
    paths = write_reports(results, suite.folder)
    console.print(terminal_table(results))
    counts = Counter(results.runs["outcome"])
    line = f"{len(results.runs)} runs: " + ", ".join(
        f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.most_common()
    )
    report = next(path for path in paths if path.suffix == ".html")
    console.print(f"{line}. Tables, plots and report: {report}", highlight=False, soft_wrap=True)
    for note in results.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if ledger is not None and ledger.interrupted:
        console.print(
            "interrupted: finished runs and checkpoints are kept; the same command goes on from there",
            highlight=False,
        )
        return INTERRUPTED
    if counts["failed"] and ledger is not None:
        for row in results.runs[results.runs["outcome"] == "failed"].itertuples():
            record = suite.folder / "runs" / str(row.run_id) / "manifest.json"
            console.print(
                f"failed: {row.variant}, seed {row.seed}: {row.reason} ({record})",
                highlight=False,
                soft_wrap=True,
            )
        return 1
    return 0


def train(
    *, settings: Mapping[str, Any], seed: int, device: str, results: Path, keep: str, console: Console
) -> int:
    """Train one configuration under `<results>/train/runs/<run id>/`; a rerun resumes.

    Returns:
        The exit status: 0, 1 if the run failed, 130 if interrupted.

    Raises:
        RequestError: the request is wrong; nothing has been run.
    """
    seeds = {"training.init_seed": seed, "training.data_seed": seed}
    where = {"training.device": chosen_device(device)}
    config = resolve(TRAIN_DEFAULTS, {**seeds, **where, **settings})
    require_device(config.training)
    data = prepare(config.data)
    import torch

    with torch.device("meta"):
        counts = LanguageModel(config.model, data.vocab_size, config.data.context).parameter_counts()
    folder = RunFolder(results / "train" / "runs" / run_id(config, data.hash, source_hash()))
    require_writable(folder.path)
    console.print(
        f"{config.model.preset}, {counts['non_embedding']:,} non-embedding parameters, "
        f"{config.training.total_steps} steps of {config.training.batch_tokens} tokens: {folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    with exclusive(folder), _progress(console, config.training.total_steps) as show:
        outcome = loop.run(
            config,
            folder,
            data,
            progress=show,
            attributes={"seed": config.training.data_seed},
            keep_weights=keep == "weights",
        )
    values, _ = read_metrics(folder.metrics)
    final = {value["name"]: value["value"] for value in values if value.get("split") == "report"}
    manifest = folder.read_manifest() or {}
    if outcome == "finished":
        console.print(
            f"finished: {final['val_bits_per_byte']:.4f} bits per byte, "
            f"{final['val_loss']:.4f} nats per token on the report-validation split (one run: no interval)",
            highlight=False,
        )
    elif outcome == "interrupted":
        console.print(
            "interrupted: the checkpoint is kept; the same command goes on from there", highlight=False
        )
        return INTERRUPTED
    else:
        console.print(
            f"{outcome.replace('_', ' ')}: {manifest.get('reason')} ({folder.manifest})",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if outcome == "failed" else 0


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Any]:
    """A progress bar on a terminal, a line at every tenth of the run elsewhere."""
    if not console.is_terminal:
        told = 0

        def tell(now: loop.Progress) -> None:
            nonlocal told
            tenth = math.floor(10 * now.step / steps)
            if now.phase == "training" and tenth > told:
                told = tenth
                console.print(
                    f"step {now.step} of {steps}: loss {now.loss:.4f} nats, "
                    f"{now.tokens_per_second:,.0f} tokens/s, about {display.duration(now.seconds_left)} left",
                    highlight=False,
                )

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("starting", total=steps)

        def show(now: loop.Progress) -> None:
            words = (
                "evaluating"
                if now.phase == "evaluating"
                else f"loss {now.loss:.4f} nats, {now.tokens_per_second:,.0f} tokens/s"
            )
            bar.update(task, completed=now.step, description=words)

        yield show
