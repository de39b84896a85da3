"""Compiled code is shared by the runs of one process that differ in their seeds and numbers alone."""

from __future__ import annotations

from tnbench.config import RunConfig, digest

MOST = 6
"""Kinds of runs whose code is kept: it is looked through at every call."""
LIMIT = 256
"""Forms of one function, at most: blocks, training and evaluation, sizes of batches, for each kind of run."""

_kept: list[str] = []


def begin(config: RunConfig, vocab_size: int) -> bool:
    """Make room for the code of a run; False where it is there already, from a run of the same kind."""
    import torch._dynamo

    kind = _kind(config, vocab_size)
    if kind in _kept:
        return False
    if len(_kept) == MOST:
        forget()
    torch._dynamo.config.recompile_limit = LIMIT
    _kept.append(kind)
    return True


def forget() -> None:
    """Drop all compiled code."""
    import torch._dynamo

    torch._dynamo.reset()
    _kept.clear()


def _kind(config: RunConfig, vocab_size: int) -> str:
    """What the code depends on."""
    training = config.training
    names = ("device", "precision", "compile", "loss", "activation_checkpointing", "batch_tokens")
    return digest(
        {
            "model": config.model.model_dump(mode="json"),
            "vocabulary": vocab_size,
            "context": config.data.context,
            **{name: getattr(training, name) for name in names},
        }
    )
