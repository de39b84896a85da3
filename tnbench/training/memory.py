"""Peak memory of a run, apart from what the process held before it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory held since construction, in bytes, less what was held at construction.

    - CUDA: bytes in tensors (`torch.cuda.max_memory_allocated`), without the allocator's unused blocks.
    - Linux, CPU: resident memory of the process (VmHWM of /proc/self/status) without pages of files (RssFile:
      libraries, token files). The heap is trimmed and the high-water mark reset at the start, so that earlier
      work in the process does not count. Where the mark cannot be reset, an earlier, higher peak is seen.
    - elsewhere: what the process's own peak (`ru_maxrss`) rose by.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept = 0
        gc.collect()
        self._start = self._reset()

    def read(self) -> int:
        """The peak so far, in bytes."""
        self._kept = max(self._kept, self._high() - self._start)
        return self._kept

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """What is done inside, such as writing a checkpoint, does not count."""
        self.read()
        try:
            yield
        finally:
            self._reset()

    def _reset(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        if not STATUS.exists():
            return self._high()
        with suppress(OSError, AttributeError):  # musl and macOS have no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # some sandboxes forbid it
            CLEAR.write_text("5")
        return _status("VmRSS") - _status("RssFile")

    def _high(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if STATUS.exists():
            return _status("VmHWM") - _status("RssFile")
        import resource  # not on Windows

        high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return high if sys.platform == "darwin" else high * 1024


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
