"""Norms over the last dimension. All take `width` and map (…, width) to (…, width).

On a GPU they are the Triton kernels of `tnbench.kernels.normalisation`, elsewhere plain torch. A norm that
can be fused with the sum in front of it has a method `added(x, branch)`, one that can be fused with a gate a
method `gated(x, u, activation)`. Blocks and mixers call the functions `add_norm` and `gated`, to which any
norm may be given.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tnbench.kernels import normalisation
from tnbench.registry import register

Epsilon = Annotated[float, Field(gt=0)]
Activation = Literal["none", "swish", "sigmoid"]


class Options(TypedDict, total=False):
    """Which norm `tnbench.kernels.normalisation` is to compute."""

    weight: Tensor | None
    bias: Tensor | None
    centred: bool
    eps: float


ACTIVATIONS = {"none": lambda u: u, "swish": F.silu, "sigmoid": F.sigmoid}


def add_norm(norm: nn.Module, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
    """norm(x') and x' = x + branch, in one kernel where the norm and the device have one.

    Args:
        norm: any norm of x's last dimension.
        x: the residual stream, (…, width).
        branch: what is still to be added to it, of x's shape; None: nothing, x' is x.

    Returns:
        (norm(x'), x').
    """
    if branch is None:
        return norm(x), x
    fused = getattr(norm, "added", None)
    if fused is None or not normalisation.takes_kernels(x):
        total = x + branch
        return norm(total), total
    return fused(x, branch)


def gated(norm: nn.Module, x: Tensor, u: Tensor, activation: Activation) -> Tensor:
    """norm(x) ⊙ a(u), in one kernel where the norm and the device have one.

    Args:
        norm: any norm of x's last dimension.
        x, u: of one shape, (…, width).
        activation: a.
    """
    fused = getattr(norm, "gated", None)
    if fused is None or not normalisation.takes_kernels(x):
        return norm(x) * ACTIVATIONS[activation](u)
    return fused(x, u, activation)


class KernelNorm(nn.Module):
    """Base of the norms that `tnbench.kernels.normalisation` computes."""

    def options(self) -> Options:
        """How the kernels' functions are told which norm it is: their keyword arguments."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return normalisation.norm(x, **self.options())

    def added(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        return normalisation.add_norm(x, branch, **self.options())

    def gated(self, x: Tensor, u: Tensor, activation: Activation) -> Tensor:
        return normalisation.norm(x, gate=u, activation=activation, **self.options())


@register("norm", "srmsnorm", reference="arXiv 2307.14995, eq. 8")
class SRMSNorm(KernelNorm):
    """Simple RMSNorm: x / (‖x‖₂ / √d), without weights."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def options(self) -> Options:
        return {"eps": self.eps}


@register("norm", "rmsnorm", reference="arXiv 1910.07467, eq. 4")
class RMSNorm(KernelNorm):
    """RMSNorm: x / (‖x‖₂ / √d) ⊙ g, with a learned gain g."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def options(self) -> Options:
        return {"weight": self.weight, "eps": self.eps}


@register("norm", "layernorm", reference="arXiv 1607.06450, eq. 3")
class LayerNorm(KernelNorm, nn.LayerNorm):
    """LayerNorm: (x − mean) / √variance ⊙ g + b, with learned gain and bias."""

    def __init__(self, width: int, *, eps: Epsilon = 1e-5, bias: bool = True) -> None:
        nn.LayerNorm.__init__(self, width, eps=eps, bias=bias)

    def options(self) -> Options:
        return {"weight": self.weight, "bias": self.bias, "centred": True, "eps": self.eps}

    def forward(self, x: Tensor) -> Tensor:
        if not normalisation.takes_kernels(x):
            return nn.LayerNorm.forward(self, x).to(x.dtype)
        return super().forward(x)


@register("norm", "none")
class NoNorm(nn.Module):
    """No norm: x."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
