"""Where and how a run computes: device, threads, determinism, precision, and how it is asked to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from tnbench import registry
from tnbench.config import Component, RunConfig, TrainingConfig
from tnbench.errors import RequestError
from tnbench.kernels import devices
from tnbench.model.mixers.linear import LinearMixer
from tnbench.training import losses


def require_device(config: RunConfig) -> torch.device:
    """The run's device.

    Raises:
        RequestError: it is not there, or the operator's implementation, the loss or compiled bf16 cannot run
            on it, or the whole model is to be compiled for examples.
    """
    training = config.training
    if training.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("training.device = cuda: torch sees no GPU here; use training.device=cpu")
    device = torch.device(training.device)
    reason = devices.obstacle(torch.empty(0, device=device))
    if config.model.implementation == "triton" and reason is not None:
        raise RequestError(
            f"model.implementation = triton: the kernels cannot run here, {reason}; set auto or chunked"
        )
    if device.type == "cpu" and training.compile and training.precision != "fp32":
        # Inductor's vectorised transpose of bf16 blocks reads what it has not written (seen with torch 2.13).
        raise RequestError(
            f"training.compile with training.precision = {training.precision} gives NaN on a CPU, by a "
            "defect of torch: set training.precision=fp32 or training.compile=false"
        )
    if training.compile is True and isinstance(config.data.corpus, Component):
        raise RequestError(
            f"training.compile = true does not go with {config.data.corpus.name}, which scores only some "
            "tokens: set training.compile=blocks or false"
        )
    losses.require(training)
    return device


def say_fall_back(config: RunConfig) -> None:
    """Says, once, where `auto` does without the Triton kernels; for runs in processes that say nothing."""
    mixers = (registry.find("mixer", component.name).target for component in config.model.mixer)
    linear = any(isinstance(mixer, type) and issubclass(mixer, LinearMixer) for mixer in mixers)
    reason = devices.obstacle(torch.empty(0, device=config.training.device))
    if linear and config.model.implementation == "auto" and reason is not None:
        devices.fall_back("linear_attention", "chunked", reason)


@contextmanager
def settings(training: TrainingConfig) -> Iterator[dict[str, Any]]:
    """Set torch's threads, and deterministic algorithms where they are asked for or free, as on a CPU.

    Gives the flags for the record.

    On leaving, everything is put back, the global random generators too.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS need not repeat itself
    torch.set_num_threads(training.threads)
    repeats = training.deterministic or training.device == "cpu"
    torch.use_deterministic_algorithms(repeats, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  costs time only
    try:
        with torch.random.fork_rng(
            devices=[torch.cuda.current_device()] if training.device == "cuda" else []
        ):
            yield {
                "deterministic_algorithms": repeats,
                "warn_only": True,
                "threads": training.threads,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "cublas_workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"],
            }
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """The context of a forward pass: activations in bf16 or fp16 (docs/models.md), no change for `fp32`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=precision != "fp32")


class StopRequest:
    """True once the run should stop at its next step: the caller wants it, or Ctrl-C was pressed.

    As a context it holds a first Ctrl-C back until the step is complete, because a step that is cut short
    cannot be resumed; a second one interrupts at once. A caller's own handler for Ctrl-C is left in place.
    """

    def __init__(self, wanted: Callable[[], bool] | None) -> None:
        self._wanted = wanted
        self._pressed = False
        self._holds = False

    def __call__(self) -> bool:
        return self._pressed or (self._wanted is not None and self._wanted())

    def __enter__(self) -> StopRequest:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)
            self._holds = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, *signal_and_frame: object) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
