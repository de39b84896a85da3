"""Norms over the last dimension. All take `width` and map (…, width) to (…, width)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from tnbench.registry import register

Epsilon = Annotated[float, Field(gt=0)]


def _wide(x: Tensor) -> Tensor:
    """Mean squares are summed in fp32 at least, as in the official code."""
    return x if x.dtype == torch.float64 else x.float()


@register("norm", "srmsnorm", reference="arXiv 2307.14995, eq. 8")
class SRMSNorm(nn.Module):
    """Simple RMSNorm: x / (‖x‖₂ / √d), without weights."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


@register("norm", "rmsnorm", reference="arXiv 1910.07467, eq. 4")
class RMSNorm(nn.Module):
    """RMSNorm: x / (‖x‖₂ / √d) ⊙ g, with a learned gain g."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


@register("norm", "layernorm", reference="arXiv 1607.06450, eq. 3")
class LayerNorm(nn.LayerNorm):
    """LayerNorm: (x − mean) / √variance ⊙ g + b, with learned gain and bias."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-5, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


@register("norm", "none")
class NoNorm(nn.Module):
    """No norm: x."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
