"""Work that is done in halves where memory does not suffice for the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the CPU had no memory left: torch tells the latter by a RuntimeError."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def in_halves(items: Sequence[T], compute: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """compute(items), or that of both halves one after the other.

    Args:
        compute: gives a result for each item, whatever other items stand beside it.

    Raises:
        Exception: what `compute` raises; for want of memory, if a single item is too much.
    """
    try:
        return compute(items)
    except Exception as error:
        if len(items) < 2 or not is_out_of_memory(error):
            raise
    # Outside the handler, whose traceback holds the tensors of the attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(items) // 2
    return [*in_halves(items[:middle], compute), *in_halves(items[middle:], compute)]
