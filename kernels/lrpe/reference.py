"""The definition of LRPE on queries and keys, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Phases and products in fp32, and in fp64 for fp64 inputs."""
    return x if x.dtype == torch.float64 else x.float()


def rotate(
    q: Tensor, k: Tensor, theta: Tensor, *, start: int = 0, form: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """Shapes, forms and errors as in `tnbench.kernels.lrpe.rotate`."""
    # In 16 bits, positions above 256 or 2048 are not exact and phases would be off by radians.
    angle = wide(theta)
    steps = torch.arange(start, start + q.shape[1], device=q.device, dtype=angle.dtype)
    phase = steps.view(-1, 1, 1) * angle
    cos, sin = phase.cos(), phase.sin()

    def turned(x: Tensor) -> Tensor:
        values = wide(x)
        if form == "cosine":
            return torch.cat([values * cos, values * sin], dim=-1).to(x.dtype)
        a, b = values.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)

    return turned(q), turned(k)
