"""LRPE with the rounding of the official code, for models that are to repeat its errors."""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.model.positions import LRPE


class RoundedLRPE(LRPE):
    """The cosine form of LRPE with positions in the dtype of the queries, as the official code computes it.

    Token start + i has the position start + i rounded to that dtype, and the phase θ n is rounded once more
    if θ has that dtype too. In fp32 nothing changes below position 2²⁴; in bf16, integers above 256 are not
    exact, so that the 2,048 positions of a training window have 641 values.
    """

    def kernel_form(self) -> None:
        """None: the decode step of `kernels.decode_step` has exact positions."""
        return

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """[x cos nθ, x sin nθ] of queries and keys (batch, time, heads, head dim) from token start on."""
        steps = torch.arange(q.shape[1], device=q.device).to(q.dtype) + start
        phase = self.theta * steps.view(-1, 1, 1)
        cos, sin = phase.cos().to(q.dtype), phase.sin().to(q.dtype)
        return torch.cat([q * cos, q * sin], dim=-1), torch.cat([k * cos, k * sin], dim=-1)
