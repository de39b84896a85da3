"""The figures of optimizer steps on their way from the device to the host, which goes on in the meantime."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figures:
    """What is recorded of a step."""

    loss: float
    """Mean loss in nats per token."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    seconds: float
    """Since the figures of the step before were read, or since the step was launched, if that is later."""


class InFlight:
    """Steps that were launched and whose figures have not been read, the oldest first.

    On a GPU each step's figures are copied to pinned memory behind the step, and an event tells when they are
    there: reading them waits for that step alone, and not for the one launched after it.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[Tensor, torch.cuda.Event | None, float, float]] = deque()
        self._read = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, loss: Tensor, gradient_norm: Tensor, learning_rate: float, launched: float) -> None:
        """A step that was begun at `launched`, by time.perf_counter."""
        values, there = torch.stack([loss, gradient_norm]), None
        if values.is_cuda:
            on_host = torch.empty(2, dtype=values.dtype, pin_memory=True)
            values, there = on_host.copy_(values, non_blocking=True), torch.cuda.Event()
            there.record()
        self._steps.append((values, there, learning_rate, launched))

    def read(self) -> Figures:
        """The figures of the oldest step, once it is done."""
        values, there, rate, launched = self._steps.popleft()
        if there is not None:
            there.synchronize()
        loss, norm = values.tolist()
        begun, self._read = max(launched, self._read), time.perf_counter()
        return Figures(loss, norm, rate, self._read - begun)
