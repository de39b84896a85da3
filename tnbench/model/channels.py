"""Channel mixers: the second half of a block, applied to every token alone.

All take `width` and `inner` (the GLU or FFN dimension) and map (batch, time, width) to the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tnbench.registry import register

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "swish": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
}


class GLU(nn.Module):
    """Gated linear unit (arXiv 2002.05202): (act(x W_u) ⊙ x W_v) W_o."""

    activation: ClassVar[str]
    matrices: ClassVar[int] = 3

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # W_u and W_v as one product: half as many launches, the same numbers.
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(ACTIVATIONS[self.activation](gate) * value)


@register("channel", "sglu", reference="arXiv 2307.14995, eq. 5")
class SGLU(GLU):
    """Simple GLU: (x W_v ⊙ x W_u) W_o, no activation."""

    activation = "none"


@register("channel", "swiglu", reference="arXiv 2002.05202, eq. 6")
class SwiGLU(GLU):
    """GLU with Swish: (swish(x W_u) ⊙ x W_v) W_o."""

    activation = "swish"


@register("channel", "geglu", reference="arXiv 2002.05202, eq. 6")
class GEGLU(GLU):
    """GLU with GELU: (gelu(x W_u) ⊙ x W_v) W_o."""

    activation = "gelu"


@register("channel", "glu", reference="arXiv 1612.08083")
class SigmoidGLU(GLU):
    """GLU with a sigmoid: (σ(x W_u) ⊙ x W_v) W_o."""

    activation = "sigmoid"


@register("channel", "ffn", reference="arXiv 1706.03762, section 3.3")
class FFN(nn.Module):
    """Plain feed-forward network: act(x W_1) W_2."""

    matrices: ClassVar[int] = 2

    def __init__(
        self, width: int, inner: int, *, activation: Literal["gelu", "relu", "swish", "none"] = "gelu"
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
