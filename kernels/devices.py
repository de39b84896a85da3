"""Where the Triton kernels can run, and what `auto` takes where they cannot."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on a CPU, for tests; it is asked for before they are imported."""

OLDEST = 80
"""Compute capability from which the kernels are compiled and tested (80: A100)."""

quick_launches = True
"""Whether kernels may be launched past Triton's own launcher, whose hooks then see nothing of it."""

_log = logging.getLogger("tnbench")
F = TypeVar("F", bound=Callable[..., object])


class Machine(NamedTuple):
    """Compute capability (90 for sm_90) and number of multiprocessors of a device."""

    capability: int
    processors: int

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability}"


@lru_cache
def machine(index: int | None) -> Machine:
    """Of the CUDA device with this index; the interpreter stands for an sm_90 with one multiprocessor."""
    if INTERPRETED or index is None:
        return Machine(90, 1)
    major, minor = torch.cuda.get_device_capability(index)
    return Machine(10 * major + minor, torch.cuda.get_device_properties(index).multi_processor_count)


def _constant(function: F) -> F:
    """torch.compile takes the result for granted and does not look inside: it depends on the machine alone.

    What `torch.compiler.assume_constant_result` does, without its import of the whole compiler (1.4 s).
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def obstacle(x: Tensor) -> str | None:
    """Why the Triton kernels cannot take this tensor, or None if they can."""
    return _obstacle(x.dtype, x.device.type, x.device.index)


@_constant
def _obstacle(dtype: torch.dtype, device: str, index: int | None) -> str | None:
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"they compute in bf16, fp16 or fp32, not {str(dtype).removeprefix('torch.')}"
    if INTERPRETED:
        return None
    if device != "cuda" or torch.version.hip is not None:
        return f"they need an NVIDIA GPU, and the tensors are on {device}"
    if not _triton():
        return "triton is not installed"
    capability = machine(index).capability
    if capability < OLDEST:
        return f"they need compute capability {OLDEST / 10}, this GPU has {capability / 10}"
    return None


@lru_cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def on(x: Tensor) -> torch.cuda.device:
    """The device of a tensor as the current one, which Triton launches on; nothing changes for a CPU's."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


def together(x: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError for a tensor that is not on x's device: a launch that was kept takes addresses, and
    would follow them where the GPU cannot."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, as the first operand is, got {other.device}")


@_constant
def fall_back(operator: str, fallback: str, reason: str) -> None:
    """Says which form `auto` takes in place of the Triton kernels: once for each reason in a process."""
    if reason not in _said:
        _said.add(reason)
        _log.warning("%s: the %s form instead of the Triton kernels (%s)", operator, fallback, reason)


_said: set[str] = set()
