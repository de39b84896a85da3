"""Train a run, from its configuration to its records: the same for CPU and GPU."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from tnbench.config import RunConfig
from tnbench.data import TokenData
from tnbench.records import ENDED, RunFolder
from tnbench.training.environment import StopRequest, require_device, settings
from tnbench.training.manifest import Manifest
from tnbench.training.trainer import Diverged, Progress, Stopped, Trainer

__all__ = ["Progress", "run"]


def run(
    config: RunConfig,
    folder: RunFolder,
    data: TokenData,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    attributes: Mapping[str, Any] | None = None,
    keep_weights: bool = True,
) -> str:
    """Train a run, or go on with it, and leave its records in `folder`, which is named by the run id.

    Records come to disk in an order that survives a crash: weights, metrics, the manifest with the outcome;
    only then is the checkpoint removed.

    Args:
        config: what to run.
        folder: where its records go; a checkpoint of the same run there is resumed.
        data: the prepared data of `config.data`.
        progress: told after every step and before every batch of an evaluation.
        stop: asked at the same times; true ends the run with a checkpoint, to be resumed. So does Ctrl-C.
        attributes: further entries of the manifest (suite, variant, seed).
        keep_weights: whether the final weights are written.

    Returns:
        `finished`, `diverged`, `out_of_memory`, `failed` (the manifest has the reason), or `interrupted`.
        A run that had ended before is left alone.

    Raises:
        RequestError: the device is not there; nothing has been run.
    """
    device = require_device(config.training)
    former = folder.outcome()
    if former in ENDED:
        folder.resume.unlink(missing_ok=True)
        return former

    manifest: Manifest | None = None
    trainer: Trainer | None = None
    outcome, reason, trace = "finished", None, None
    with settings(config.training) as flags, StopRequest(stop) as stopping:
        try:
            manifest = Manifest(folder, config, data, flags, attributes or {})
            trainer = Trainer(
                config, folder, data, manifest=manifest, device=device, stopping=stopping, progress=progress
            )
            trainer.complete()
            trainer.finish(keep_weights)
        except (Stopped, KeyboardInterrupt):
            outcome = "interrupted"
        except Diverged as diverged:
            outcome, reason = "diverged", str(diverged)
        except Exception as caught:
            outcome, reason = _outcome(caught, folder)
            trace = traceback.format_exc() if outcome == "failed" else None
        if trainer is not None:
            with suppress(OSError):
                trainer.metrics.close()
            if manifest is not None:
                manifest.describe_progress(trainer.state)
        if manifest is not None:
            try:
                manifest.end(outcome, reason, trace)
            except OSError:  # the former manifest stays, in which the run has not ended
                return "failed"
    if outcome in ENDED:
        folder.resume.unlink(missing_ok=True)
    return outcome


def _outcome(error: Exception, folder: RunFolder) -> tuple[str, str]:
    """What an error makes of a run, and the reason in one line."""
    line = str(error).strip().split("\n", 1)[0]
    signs = ("not enough memory", "DefaultCPUAllocator", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    ):
        return "out_of_memory", line or "no memory left"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "failed", f"the disk that holds {folder.path} is full"
    return "failed", f"{type(error).__name__}: {line}"
