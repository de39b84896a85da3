"""What the machine can do at this moment: bytes copied and products computed a second."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tnbench.profiling import energy, timing


def measure(device: str) -> dict[str, Any]:
    """Medians of a device copy of 1 GiB (bytes counted twice, read and written) and of an 8192³ bf16 product.

    On a CPU 128 MiB, and 1024³ in fp32. With the GPU's clock, temperature and power limit (`energy.state`).
    """
    gpu = device == "cuda"
    source = torch.ones((1 << 30 if gpu else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    copy = _median(partial(target.copy_, source), device)
    moved = 2 * source.nbytes
    del source, target
    size, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = _median(partial(torch.mm, a, b), device)
    rates = {"copy_bytes_per_second": moved / copy, "matmul_flops_per_second": 2 * size**3 / product}
    del a, b
    if gpu:
        torch.cuda.empty_cache()
    return rates | energy.state()


def _median(call, device: str) -> float:
    seconds = sorted(timing.eager(call, 30, 0.5, device))
    return seconds[len(seconds) // 2]
