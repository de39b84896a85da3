"""Energy of a call, from the GPU's own counter (NVML, millijoules), and what else NVML tells."""

# pyright: reportMissingImports=false
from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

LONGEST_WAIT = 2.0
"""Seconds to wait for the counter to move."""


@cache
def _library():
    """pynvml and the handle of the current GPU, or None and the reason."""
    try:
        import pynvml

        pynvml.nvmlInit()
        identity = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
    except Exception as error:  # of every kind: no driver, no library, a GPU that it does not list
        return None, f"NVML: {error or type(error).__name__}"


def state() -> dict[str, float | None]:
    """Clock of the multiprocessors in MHz, temperature in °C, power limit in W; None where NVML is silent."""
    pynvml, handle = _library() if torch.cuda.is_available() else (None, None)

    def ask(name: str, *arguments: int, unit: float = 1.0) -> float | None:
        if pynvml is None:
            return None
        try:
            return getattr(pynvml, name)(handle, *arguments) * unit
        except pynvml.NVMLError:
            return None

    return {
        "clock_mhz": ask("nvmlDeviceGetClockInfo", 1),  # NVML_CLOCK_SM
        "temperature_c": ask("nvmlDeviceGetTemperature", 0),  # NVML_TEMPERATURE_GPU
        "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", unit=1e-3),
    }


def measure(call: Callable[[], object], seconds: float, device: str) -> dict[str, Any]:
    """Joules of a call, over calls made back to back for about `seconds`; idle power is part of it.

    Watts are taken between two moves of the counter, which moves every few tens of milliseconds; calls run
    before, between and after, also while the counter is read, which takes milliseconds. Times the seconds of
    a call in this run they are its joules. Inputs that fit into the cache stay there.

    Returns:
        joules_per_call, watts, calls; the first two None, with a reason, where there is no counter.
    """
    if device != "cuda":
        return _nothing("no energy counter on a CPU")
    pynvml, handle = _library()
    if pynvml is None:
        return _nothing(str(handle))
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return _nothing(f"NVML: {error}")
    batch = _batch(call)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(
        handle
    )  # the next move is one of the calls that count
    began, calls = _mark(), 0
    ahead, started = [began], time.perf_counter()
    first: tuple[int, float] | None = None
    while True:
        for _ in range(batch):
            call()
        calls += batch
        ahead.append(_mark())
        if len(ahead) > 2:
            ahead.pop(0).synchronize()
        value, now = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
        if value != before:
            if first is None:
                first = value, now
            elif now - first[1] >= seconds:
                break
        elif now - started > seconds + LONGEST_WAIT:
            return _nothing("the energy counter does not move")
        before = value
    torch.cuda.synchronize()
    watts = (value - first[0]) / 1e3 / (now - first[1])
    return {
        "joules_per_call": watts * began.elapsed_time(ahead[-1]) / 1e3 / calls,
        "watts": watts,
        "calls": calls,
    }


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _batch(call: Callable[[], object]) -> int:
    """Calls of about 20 ms together: the counter is read between batches, with one batch ahead."""
    marks = [_mark()]
    for _ in range(3):
        call()
    marks.append(_mark())
    torch.cuda.synchronize()
    return max(1, int(20 / max(marks[0].elapsed_time(marks[1]) / 3, 1e-3)))


def _nothing(reason: str) -> dict[str, Any]:
    return {"joules_per_call": None, "watts": None, "calls": 0, "reason": reason}
