"""Train a run, from its configuration to its records: the same for CPU and GPU."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tnbench.config import RunConfig
from tnbench.data import TokenData
from tnbench.records import ENDED, RunFolder
from tnbench.training import compilation
from tnbench.training.environment import StopRequest, require_device, settings
from tnbench.training.manifest import Manifest
from tnbench.training.trainer import Displaced, Diverged, Progress, Stopped, Trainer

__all__ = ["Progress", "Unrecorded", "run"]


class Unrecorded(RuntimeError):
    """The outcome of a run could not be written; the message says why."""


def run(
    config: RunConfig,
    folder: RunFolder,
    data: TokenData,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    mine: Callable[[], bool] = lambda: True,
    attributes: Mapping[str, Any] | None = None,
    keep_weights: bool = True,
) -> str:
    """Train a run, or go on with it, and leave its records in `folder`, which is named by the run id.

    Records come to disk in an order that survives a crash: weights, metrics, the manifest with the outcome;
    only then is the checkpoint removed. Where the memory does not suffice, the run goes on from its last
    checkpoint with smaller micro-batches, down to one sequence, and the same tokens per step; the manifest
    says so in a note and in `micro_batches`, a list of [steps done before, tokens].

    Args:
        config: what to run.
        folder: where its records go; a checkpoint of the same run there is resumed.
        data: the prepared data of `config.data`.
        progress: told after every step and before every batch of an evaluation.
        stop: asked at the same times; true ends the run with a checkpoint, to be resumed. So does Ctrl-C.
        mine: asked at the same times and before anything is written; false means that another process has
            taken the run over, and ends it on the spot.
        attributes: further entries of the manifest (suite, variant, seed).
        keep_weights: whether the final weights are written.

    Returns:
        `finished`, `diverged`, `out_of_memory`, `failed` (the manifest has the reason), `interrupted`, or
        `displaced` (another process has the run). A run that had ended before is left alone.

    Raises:
        RequestError: the device is not there; nothing has been run.
        Unrecorded: the disk is full or cannot be written, so that not even the outcome could be recorded;
            what was there before is still there.
    """
    device = require_device(config)
    former = folder.outcome()
    if former in ENDED:
        folder.resume.unlink(missing_ok=True)
        return former

    with settings(config.training) as flags, StopRequest(stop) as stopping:
        try:
            manifest = Manifest(folder, config, data, flags, attributes or {})
        except OSError as error:
            raise Unrecorded(_unwritable(error, folder) or str(error)) from error
        build = partial(
            Trainer,
            config,
            folder,
            data,
            manifest=manifest,
            device=device,
            stopping=stopping,
            progress=progress,
            mine=mine,
        )
        while True:
            ending = _attempt(build, manifest, keep_weights)
            if ending.outcome == "displaced" or not mine():
                return "displaced"
            if ending.smaller is None:
                break
            build = partial(build, micro_sequences=ending.smaller)
            _release(device)
        try:
            manifest.end(ending.outcome, ending.reason, ending.trace)
        except OSError as error:  # the former manifest stays, in which the run has not ended
            raise Unrecorded(ending.reason or _unwritable(error, folder) or str(error)) from error
    if ending.outcome in ENDED:
        folder.resume.unlink(missing_ok=True)
    return ending.outcome


@dataclass(frozen=True)
class _Ending:
    """How an attempt ended."""

    outcome: str
    reason: str | None = None
    trace: str | None = None
    smaller: int | None = None
    """Sequences per micro-batch with which another attempt is worthwhile."""


def _attempt(build: Callable[[], Trainer], manifest: Manifest, keep_weights: bool) -> _Ending:
    """Train until the run ends or fails. The trainer is gone when this returns, with what memory it held."""
    trainer: Trainer | None = None
    smaller = None
    outcome, reason, trace = "finished", None, None
    try:
        trainer = build()
        trainer.complete()
        trainer.finish(keep_weights)
    except Displaced:
        outcome = "displaced"
    except (Stopped, KeyboardInterrupt):
        outcome = "interrupted"
    except Diverged as diverged:
        outcome, reason = "diverged", str(diverged)
    except Exception as caught:
        outcome, reason = _outcome(caught, manifest.folder)
        trace = traceback.format_exc() if outcome == "failed" else None
        if outcome == "out_of_memory" and trainer is not None:
            smaller = trainer.smaller_micro_batch()
    if trainer is None:
        return _Ending(outcome, reason, trace)
    with suppress(OSError):
        trainer.metrics.close(flush=outcome != "displaced")
    if outcome != "displaced":
        manifest.describe_progress(trainer.state)
    if smaller is not None:
        had, batch = trainer.micro_sequences * trainer.context, trainer.sequences * trainer.context
        manifest.note(
            f"out of memory after step {trainer.state.step} with micro-batches of {had} tokens; "
            f"went on with {smaller * trainer.context}, and {batch} per step as before"
        )
    return _Ending(outcome, reason, trace, smaller)


def _release(device: torch.device) -> None:
    """Give back the memory of a trainer that is gone, before the next one asks for its own."""
    compilation.forget()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _outcome(error: Exception, folder: RunFolder) -> tuple[str, str]:
    """What an error makes of a run, and the reason in one line."""
    line = str(error).strip().split("\n", 1)[0]
    signs = ("not enough memory", "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    ):
        return "out_of_memory", line or "no memory left"
    if isinstance(error, OSError) and (reason := _unwritable(error, folder)):
        return "failed", reason
    return "failed", f"{type(error).__name__}: {line}"


def _unwritable(error: OSError, folder: RunFolder) -> str | None:
    """Why a run's folder cannot be written, or None if that is not what the error is about."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {folder.path} is full"
    ours = error.filename is None or folder.path in Path(error.filename).parents
    if ours and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{folder.path} cannot be written: {(error.strerror or 'no permission').lower()}"
    return None
