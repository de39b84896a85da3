"""Positions: how order enters the model, apart from decay.

A position acts on the embeddings (`place = "embedding"`) or on queries and keys (`place = "scores"`).
The paper's other names are combinations: LRPE-d is `lrpe` with a decay, *exponential decay only* is `none`
with a decay, and Mix is `lrpe` in the first layer with a decay everywhere.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tnbench.errors import RequestError
from tnbench.kernels import lrpe
from tnbench.registry import alias, hint, register

BASE = 10000.0


class Position(nn.Module):
    """Base: no effect, no parameters.

    Scores positions are built per layer from (head dim, heads, layer), embedding positions once per model
    from (width, context). While decoding, `start` is a tensor (1,) of int64 on the device, because a CUDA
    graph would freeze a number.
    """

    place: ClassVar[Literal["nothing", "embedding", "scores"]] = "nothing"

    @property
    def limit(self) -> int | None:
        """The most tokens that a sequence may have; None for any number."""
        return None

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, time, heads, head dim) of tokens start, start + 1, …"""
        return q, k

    def kernel_form(self) -> tuple[Tensor | None, str] | None:
        """θ and form with which `kernels.decode_step` does what `rotate` does; θ None: `rotate` does nothing.

        None where that operator cannot do it, so that `rotate` has to be called.
        """
        return None

    def embed(self, x: Tensor, start: int | Tensor) -> Tensor:
        """Embeddings (batch, time, width) of tokens start, start + 1, …"""
        return x

    def key_dim(self, head_dim: int) -> int:
        """Dimension of queries and keys after `rotate`."""
        return head_dim


@register("position", "none")
class NoPosition(Position):
    """No position: order enters through the decay alone, or not at all."""

    def __init__(self, head_dim: int, heads: int, layer: int) -> None:
        super().__init__()

    def kernel_form(self) -> tuple[Tensor | None, str]:
        return None, "cosine"


@register("position", "ape", reference="arXiv 2307.14995, table 5; arXiv 1810.04805")
class LearnedAbsolute(Position):
    """Learned absolute position embeddings: x_t + P_t, one row per position of the context."""

    place = "embedding"

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, width))

    @property
    def limit(self) -> int:
        return len(self.weight)

    def embed(self, x: Tensor, start: int | Tensor) -> Tensor:
        """x_t + P_t; for one token, (batch, width), if `start` is a tensor, which is not checked.

        Raises:
            ValueError: a position beyond the context that the model was built for.
        """
        if isinstance(start, Tensor):
            return x + self.weight[start].to(x.dtype)
        end = start + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"learned absolute positions end at {len(self.weight)}, asked for {end}")
        return x + self.weight[start:end].to(x.dtype)


def angles(theta: Tensor, start: int | Tensor, time: int) -> Tensor:
    """nθ for n = start … start + time − 1, always in fp32 or better: (time, *theta.shape).

    In bf16, integers above 256 are not exact, and phases would be off by radians.
    """
    wide = theta if theta.dtype == torch.float64 else theta.float()
    if isinstance(start, Tensor):
        steps = (start + torch.arange(time, device=theta.device)).to(wide.dtype)
    else:
        steps = torch.arange(start, start + time, device=theta.device, dtype=wide.dtype)
    return steps.view(-1, *[1] * theta.ndim) * wide


def rotate_pairs(x: Tensor, phase: Tensor) -> Tensor:
    """Turn channels j and j + d/2 of x (batch, time, heads, d) by `phase` (time, heads or 1, d/2)."""
    cos, sin = phase.cos().to(x.dtype), phase.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _require_even(name: str, head_dim: int) -> None:
    if head_dim % 2:
        raise RequestError(f"position {name} rotates pairs of channels, but the head dim {head_dim} is odd")


class _PerLayer(Position):
    """Base of scores positions that may be confined to the first layer, as in the paper's Mix."""

    place = "scores"

    def __init__(self, layer: int, layers: Literal["all", "first"]) -> None:
        super().__init__()
        self.active = layers == "all" or layer == 0


@register("position", "rope", reference="arXiv 2104.09864, eq. 16")
class RoPE(_PerLayer):
    """Rotary position embedding: pair j of a head turns by n · 10000^(−2j/d_h)."""

    theta: Tensor

    def __init__(
        self, head_dim: int, heads: int, layer: int, *, layers: Literal["all", "first"] = "all"
    ) -> None:
        super().__init__(layer, layers)
        _require_even("rope", head_dim)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32)
        self.register_buffer("theta", (BASE ** (-2 * pairs / head_dim))[None], persistent=False)

    def kernel_form(self) -> tuple[Tensor | None, str]:
        return self.theta if self.active else None, "rotation"

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        if not self.active:
            return q, k
        if not isinstance(start, Tensor) and lrpe.takes_kernels(q):
            return lrpe.rotate(q, k, self.theta, start=start, form="rotation")
        phase = angles(self.theta, start, q.shape[1])
        return rotate_pairs(q, phase), rotate_pairs(k, phase)


@register("position", "lrpe", reference="arXiv 2307.14995, eq. 1; arXiv 2307.09270")
class LRPE(_PerLayer):
    """Linearized relative position encoding with learned θ: scores depend on t − s through exp(iθ(t − s)).

    Forms:
        cosine: the official code. x becomes [x cos nθ, x sin nθ], twice as wide; the score is
            Σ_j q_j k_j cos(θ_j (t − s)), one θ per channel, at first 10000^(−2j/d) over all heads.
        rotation: channel pairs turn by nθ as in RoPE; one θ per pair (d/2 a layer, as v1 counts them).
        householder: the first half of a head's channels turn, after a learned reflection x − 2v(v·x)/(v·v)
            (the TransNormer code's mixed form).
    """

    def __init__(
        self,
        head_dim: int,
        heads: int,
        layer: int,
        *,
        form: Literal["cosine", "rotation", "householder"] = "cosine",
        layers: Literal["all", "first"] = "all",
    ) -> None:
        super().__init__(layer, layers)
        self.form = form
        if not self.active:
            return
        if form != "cosine":
            _require_even(f"lrpe ({form})", head_dim)
        if form == "householder" and head_dim % 4:
            raise RequestError(f"position lrpe (householder) needs a head dim divisible by 4, not {head_dim}")
        angles_per_head = {"cosine": head_dim, "rotation": head_dim // 2, "householder": head_dim // 4}[form]
        width = heads * head_dim
        channel = torch.arange(heads * angles_per_head, dtype=torch.float32)
        self.theta = nn.Parameter((BASE ** (-2 * channel / width)).view(heads, angles_per_head))
        if form == "householder":
            self.reflection = nn.Parameter(torch.ones(heads, head_dim) / head_dim**0.5)

    def key_dim(self, head_dim: int) -> int:
        """Twice the head dim in the cosine form."""
        return 2 * head_dim if self.active and self.form == "cosine" else head_dim

    def kernel_form(self) -> tuple[Tensor | None, str] | None:
        if not self.active:
            return None, "cosine"
        return None if self.form == "householder" else (self.theta, self.form)

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        if not self.active:
            return q, k
        if not isinstance(start, Tensor) and self.form != "householder" and lrpe.takes_kernels(q):
            return lrpe.rotate(q, k, self.theta, start=start, form=self.form)
        phase = angles(self.theta, start, q.shape[1])
        if self.form == "cosine":
            cos, sin = phase.cos().to(q.dtype), phase.sin().to(q.dtype)
            return torch.cat([q * cos, q * sin], dim=-1), torch.cat([k * cos, k * sin], dim=-1)
        if self.form == "rotation":
            return rotate_pairs(q, phase), rotate_pairs(k, phase)
        return self._reflect_and_rotate(q, phase), self._reflect_and_rotate(k, phase)

    def _reflect_and_rotate(self, x: Tensor, phase: Tensor) -> Tensor:
        normal = self.reflection / self.reflection.norm(dim=-1, keepdim=True)
        normal = normal.to(x.dtype)
        x = x - 2 * normal * (x * normal).sum(-1, keepdim=True).to(x.dtype)  # autocast sums in fp32
        turning, still = x.chunk(2, dim=-1)
        return torch.cat([rotate_pairs(turning, phase), still], dim=-1)


alias("position", "mix", {"name": "lrpe", "layers": "first"})
hint("position", "lrpe-d", "it is lrpe with a decay: set model.position=lrpe and model.decay=official")
hint("position", "exp-decay", "it is a decay alone: set model.position=none and model.decay=official")
