"""`tnbench train`, behind the command line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tnbench.ablation import leases
from tnbench.ablation.command import INTERRUPTED, chosen_device
from tnbench.config import RunConfig, run_id
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, read_metrics, require_writable, source_hash
from tnbench.report.results import METRICS
from tnbench.report.words import duration
from tnbench.resolution import resolve
from tnbench.training import loop
from tnbench.training.environment import require_device

TRAIN_DEFAULTS = {"training.tokens": 2_000_000}
"""What `tnbench train` adds to the defaults of the configuration."""


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
    require_device(config)
    data = prepare(config.data)
    folder = RunFolder(results / "train" / "runs" / run_id(config, data.hash, source_hash()))
    outcome = complete(
        config,
        data,
        folder,
        attributes={"seed": config.training.data_seed},
        keep=keep,
        console=console,
    )
    return exit_status(outcome)


def exit_status(outcome: str) -> int:
    """0 for a run that has ended, with whatever result; 1 or 130 for one that has not."""
    return {"interrupted": INTERRUPTED, "failed": 1, "displaced": 1}.get(outcome, 0)


def complete(
    config: RunConfig,
    data: TokenData,
    folder: RunFolder,
    *,
    attributes: Mapping[str, Any],
    keep: str,
    console: Console,
) -> str:
    """Train a run in the foreground, or what is missing of it, and say how it ended.

    Args:
        config, data, folder, attributes: as in `training.loop.run`.
        keep: `weights` or `none`.
        console: shows the progress.

    Returns:
        The outcome, as `training.loop.run` gives it.

    Raises:
        RequestError: the folder cannot be written, or another process trains the run; nothing has been run.
    """
    import torch

    with torch.device("meta"):
        counts = LanguageModel(config.model, data.vocab_size, config.data.context).parameter_counts()
    require_writable(folder.path)
    console.print(
        f"{config.model.preset}, {counts['non_embedding']:,} non-embedding parameters, "
        f"{config.training.total_steps} steps of {config.training.batch_tokens} tokens: {folder.path}",
        highlight=False,
        soft_wrap=True,
    )
    lease = leases.acquire(folder)
    if lease is None:
        raise RequestError(
            f"{leases.holder(folder) or 'another process'} is training {folder.path}; wait for it"
        )
    unrecorded = None
    with lease, _progress(console, config.training.total_steps) as show:
        try:
            outcome = loop.run(
                config,
                folder,
                data,
                progress=show,
                mine=lease.mine,
                attributes=attributes,
                keep_weights=keep == "weights",
            )
        except loop.Unrecorded as error:
            outcome, unrecorded = "failed", str(error)
    values, _ = read_metrics(folder.metrics)
    final = {value["name"]: value["value"] for value in values if value.get("split") == "report"}
    if outcome == "finished":
        line = f"finished: {_figures(final)} on the report-validation split (one run: no interval)"
    elif outcome == "interrupted":
        line = "interrupted: the checkpoint is kept; the same command goes on from there"
    elif outcome == "displaced":
        line = f"stopped: another process has taken the run over ({folder.path})"
    else:
        reason = unrecorded or (folder.read_manifest() or {}).get("reason")
        line = f"{outcome.replace('_', ' ')}: {reason} ({folder.manifest})"
    console.print(line, highlight=False, soft_wrap=True)
    return outcome


def _figures(final: Mapping[str, float]) -> str:
    """What a finished run reports: of text, or of examples by their parts."""
    loss = f"{final['val_loss']:.4f} nats per token"
    if "val_bits_per_byte" in final:
        return f"{final['val_bits_per_byte']:.4f} bits per byte, {loss}"
    errors = [
        f"{METRICS[name].label} {value:.4f}"
        for name, value in final.items()
        if name in METRICS and name.endswith("_error")
    ]
    return ", ".join([loss, *errors])


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
                    f"{now.tokens_per_second:,.0f} tokens/s, about {duration(now.seconds_left)} left",
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
