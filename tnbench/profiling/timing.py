"""How long a call takes: by itself with nothing of its inputs in the L2 cache, or one after the other.

By itself (`eager`, `replays`): before each call a buffer larger than the cache is read, not written: lines
that a writing flush leaves behind dirty would be written back at the expense of the call. Reading takes about
0.1 ms, behind which the host's share of a call hides as it hides behind earlier work in a model; what exceeds
it is part of the eager time, and of the launch share.

One after the other (`steady`): as the steps of a training run or the tokens of an answer follow each other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import pairwise

import torch

FEWEST = 3
"""Calls that are timed even where they take longer than the time allowed."""

FLUSHED = 256 << 20
"""Bytes read before a call: five times the L2 cache of an H100."""


def count(call: Callable[[], object], calls: int, seconds: float, device: str) -> int:
    """How many calls fit into the time allowed, from one that is thrown away: at least 3, at most `calls`."""
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    each = time.perf_counter() - started
    return max(FEWEST, min(calls, int(seconds / max(each, 1e-9))))


def eager(call: Callable[[], object], calls: int, seconds: float, device: str) -> list[float]:
    """Seconds of each of several calls: between CUDA events on a GPU, on the clock elsewhere."""
    if device == "cuda":  # tensors of a fresh size are mapped on the first call
        call()
    number = count(call, calls, seconds, device)
    return _gpu(call, number) if device == "cuda" else _cpu(call, number)


def steady(call: Callable[[], object], calls: int, seconds: float, device: str) -> list[float]:
    """Seconds from the end of each call to that of the next; on a GPU the host runs ahead, as in use."""
    call()
    number = count(call, calls, seconds, device)
    if device != "cuda":
        return _cpu(call, number)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
    call()
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [one.elapsed_time(next_) / 1e3 for one, next_ in pairwise(marks)]


def replays(captured: torch.cuda.CUDAGraph, calls: int, seconds: float) -> list[float]:
    """Seconds of each of several replays of a CUDA graph."""
    return _gpu(captured.replay, count(captured.replay, calls, seconds, "cuda"))


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """One call, on the current stream, as a CUDA graph.

    Raises:
        RuntimeError: the call does what cannot be captured.
    """
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    captured, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    captured.capture_begin(pool=pool)
    try:
        try:
            call()
        finally:
            captured.capture_end()
    except Exception:
        # torch leaves the allocator as it was during the capture: it would give no memory back any more.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    return captured


def _gpu(call: Callable[[], object], number: int) -> list[float]:
    buffer = torch.zeros(FLUSHED // 4, device="cuda")  # not kept: idle processes share one GPU
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(number)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(number)]
    for start, end in zip(starts, ends, strict=True):
        torch.sum(buffer)
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]


def _cpu(call: Callable[[], object], number: int) -> list[float]:
    seconds = []
    for _ in range(number):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
