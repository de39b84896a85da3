"""Memory of a call: measured at its peak, and predicted for this package's own kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import DTYPES


def peak(run: Callable[[], object], device: str) -> int | None:
    """Bytes allocated at the peak of `run` beyond those before it; its results count. None if unknown."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    return _host_peak(run)


def _host_peak(run: Callable[[], object]) -> int | None:
    """From torch's profiler, which sees each allocation of its CPU allocator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = run()
    del result
    try:
        events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]  # type: ignore[attr-defined]
    except AttributeError:
        return None
    held = highest = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        highest = max(highest, held)
    return highest


def available(device: str) -> int:
    """Bytes that can be allocated now."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 1 << 62


def poison(shapes: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Leave NaN in the free memory of the GPU, in blocks of these shapes.

    The next tensors of these sizes are given out of them, so that a value that a kernel never writes shows.
    """
    held = [torch.full(shape, torch.nan, dtype=dtype, device="cuda") for shape, dtype in shapes]
    torch.cuda.synchronize()
    del held


def linear_attention(case: Case) -> int | None:
    """Bytes beyond q, k, v, do of the Triton kernels: o, gradients, and the states at the ends of segments.

    The cut into segments is the kernels' own plan for this GPU; None without a GPU or without such a plan.
    """
    try:
        from tnbench.kernels.linear_attention.plans import Plan
    except ImportError:  # no triton, or the kernels of another revision
        return None
    if not torch.cuda.is_available():
        return None
    shape = case.shape
    stem, key, value = (shape["batch"], shape["length"], shape["heads"]), shape["key_dim"], shape["value_dim"]
    device = torch.cuda.current_device()
    plan = Plan((*stem, key), (*stem, value), DTYPES[case.dtype], device, None, False, case.trains)
    ends = plan.span_units * shape["heads"] * key * value * 4 if plan.split else 0
    results = (2 * (key + value) if case.trains else value) * math.prod(stem) * case.item_size
    return results + ends * (2 if case.trains else 1)
