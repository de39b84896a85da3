"""Token mixers on the operator `linear_attention`: GLA, norm attention and classical linear attention."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tnbench.kernels import gated_linear_attention
from tnbench.kernels.decode_step import decode_step
from tnbench.kernels.linear_attention import linear_attention
from tnbench.model import feature_maps
from tnbench.model.mixers.base import Parts, TokenMixer, projection_flops
from tnbench.model.norms import Activation, KernelNorm, gated
from tnbench.registry import alias, register

FUSED = {
    feature_maps.Identity: "none",
    feature_maps.Swish: "swish",
    feature_maps.OnePlusELU: "1+elu",
    feature_maps.ELU: "elu",
    feature_maps.ReLU: "relu",
    feature_maps.SquaredReLU: "squared-relu",
    feature_maps.Sigmoid: "sigmoid",
    feature_maps.Softmax: "softmax",
}
"""Feature maps that the decode step computes itself, by its names."""


class Slot(NamedTuple):
    """A state that is updated where it lies: S (batch, heads, key dim, value dim), fp32."""

    s: Tensor


class LinearMixer(TokenMixer):
    """Base: q, k, v (and u) from one projection, φ, position, the operator, and the output projection.

    φ comes before the position, as in the official code. Heads are contiguous: channel = head · d_h + j.
    """

    def __init__(self, width: int, heads: int, parts: Parts | None = None) -> None:
        super().__init__(width, heads, parts)
        self.position = self.parts.position
        self.decay = self.parts.decay
        self.feature_map = self.parts.feature_map
        self.scale = 1.0
        self.projection = nn.Linear(width, (4 if self.parts.gate else 3) * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    @property
    def value_dim(self) -> int:
        """Value channels per head that the state holds."""
        return self.head_dim

    def _attend(
        self, projected: Tensor, state: Tensor | None, start: int, output_state: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The output (batch, time, heads, value dim), the gate u (batch, time, width) if any, the state."""
        q, k, v, u = self._split(projected)
        q, k = self.position.rotate(self.feature_map(q), self.feature_map(k), start)
        out, state = linear_attention(
            q,
            k,
            self._values(v),
            self.decay(),
            scale=self.scale,
            initial_state=state,
            output_state=output_state,
            implementation=self.parts.implementation,
        )
        return out, u, state

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v (…, heads, head dim) and the gate u (…, width), if any, of the projection."""
        parts = projected.chunk(4 if self.parts.gate else 3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, self.head_dim)) for part in parts[:3])
        return q, k, v, (parts[3] if self.parts.gate else None)

    def _values(self, v: Tensor) -> Tensor:
        return v

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape, from an empty state."""
        return self.output(self._mixed(self.projection(x)))

    def _mixed(self, projected: Tensor) -> Tensor:
        """What the output projection takes, (batch, time, width), from an empty state."""
        out, u, _ = self._attend(projected, None, 0, output_state=False)
        return self._finish(out, u)

    def extend(self, x: Tensor, state: Tensor | Slot, start: int) -> tuple[Tensor, Tensor | Slot]:
        kept = state.s if isinstance(state, Slot) else state
        out, u, after = self._attend(self.projection(x), kept, start, output_state=True)
        assert after is not None
        if isinstance(state, Slot):
            state.s.copy_(after.detach())
        return self.output(self._finish(out, u)), (state if isinstance(state, Slot) else after)

    def allocate(self, batch: int, capacity: int, like: Tensor) -> Slot:
        """S = 0, whatever the capacity."""
        return Slot(self.initial_state(batch, like))

    def decode(self, x: Tensor, state: Slot, position: Tensor, tokens: int) -> Tensor:
        """S ← λ S + k vᵀ and q S in one launch, φ and the position with it where the operator takes them.

        This is the robust recurrence, whichever form `implementation` names for whole sequences.
        """
        q, k, v, u = self._split(self.projection(x))
        name, form = FUSED.get(type(self.feature_map)), self.position.kernel_form()
        if name is None or form is None:
            q, k = (self.feature_map(part)[:, None] for part in (q, k))
            q, k = (part[:, 0] for part in self.position.rotate(q, k, position))
            name, form = "none", (None, "cosine")
        out = decode_step(
            q,
            k,
            self._values(v),
            self.decay(),
            state.s,
            scale=self.scale,
            feature_map=name,
            theta=form[0],
            position=None if form[0] is None else position,
            form=form[1],
        )
        return self.output(self._finish(out, u))

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        """S = 0, (batch, heads, key dim, value dim), fp32 (fp64 for an fp64 model)."""
        shape = (batch, self.heads, self.position.key_dim(self.head_dim), self.value_dim)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.zeros(shape, dtype=dtype, device=like.device)

    def state_size(self, context: int) -> int:
        """H · key dim · value dim, whatever the context."""
        return self.heads * self.position.key_dim(self.head_dim) * self.value_dim

    def flops_per_token(self, context: int) -> float:
        """Projections, and 4 FLOPs per value of the state: k vᵀ and q S."""
        return projection_flops(self.projection, self.output) + 4 * self.state_size(context)


@register("mixer", "gla", reference="arXiv 2307.14995, eq. 3 and 4")
class GatedLinearAttention(LinearMixer):
    """Gated linear attention: (Norm(Q Kᵀ ⊙ M V) ⊙ U) W_o, with Q = φ(X W_q) and K = φ(X W_k).

    The official model has no activation on the gate U and none on V, no scale, and the norm runs over all
    heads' channels together. Retention (arXiv 2307.08621) is the same with a norm per head, a swish gate
    and the scale 1/√d_h.

    Parameters:
        norm_scope: `all` normalises the H·d_h channels together (official), `head` each head alone.
        gate_activation: activation on U.
        scaled: whether scores are multiplied by 1/√d_h.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        parts: Parts | None = None,
        *,
        norm_scope: Literal["all", "head"] = "all",
        gate_activation: Activation = "none",
        scaled: bool = False,
    ) -> None:
        super().__init__(width, heads, parts)
        self.norm_scope = norm_scope
        self.gate_activation: Activation = gate_activation
        self.scale = self.head_dim**-0.5 if scaled else 1.0
        self.inner_norm = self.parts.inner_norm(width if norm_scope == "all" else self.head_dim)

    def _mixed(self, projected: Tensor) -> Tensor:
        """In one operator where there is one for these parts and this device."""
        name = FUSED.get(type(self.feature_map))
        form = self.position.kernel_form()
        if (
            self.parts.implementation not in ("auto", "triton")
            or name not in gated_linear_attention.MAPS
            or form is None
            or form[0] is not None
            or not self.parts.gate
            or not isinstance(self.inner_norm, KernelNorm)
            or gated_linear_attention.obstacle(projected, self.heads) is not None
        ):
            return super()._mixed(projected)
        return gated_linear_attention.gated_linear_attention(
            projected,
            self.decay(),
            heads=self.heads,
            feature_map=name,
            scale=self.scale,
            norm=gated_linear_attention.Norm(**self.inner_norm.options()),
            per_head=self.norm_scope == "head",
            activation=self.gate_activation,
        )

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        together = self.norm_scope == "all"
        if together:
            out = out.flatten(-2)
        elif u is not None:
            u = u.unflatten(-1, (self.heads, self.head_dim))
        out = self.inner_norm(out) if u is None else gated(self.inner_norm, out, u, self.gate_activation)
        return out if together else out.flatten(-2)


@register("mixer", "norm-attention", reference="arXiv 2210.10340, eq. 10")
class NormAttention(LinearMixer):
    """Norm attention (TransNormer): Norm(Q (Kᵀ V)) W_o, a norm in place of the denominator, no gate."""

    refuses: ClassVar[dict[str, str]] = {"gate": "it has no gate; gla is norm attention with one"}

    def __init__(self, width: int, heads: int, parts: Parts | None = None) -> None:
        super().__init__(width, heads, parts)
        self.inner_norm = self.parts.inner_norm(width)

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        return self.inner_norm(out.flatten(-2))


@register("mixer", "linear-attention", reference="arXiv 2006.16236, eq. 9 and 10")
class ClassicalLinearAttention(LinearMixer):
    """Classical linear attention: Σ_j φ(q)·φ(k_j) v_j / Σ_j φ(q)·φ(k_j), with its denominator.

    The denominator is computed by the same operator, as one more value channel that is always 1.
    """

    needs_positive = True
    refuses: ClassVar[dict[str, str]] = {
        "position": "its denominator Σ φ(q)·φ(k) may cross zero once queries and keys are rotated",
        "inner_norm": "its denominator normalises the output already",
        "gate": "it has no gate",
    }
    eps = 1e-6

    @property
    def value_dim(self) -> int:
        """d_h values and the denominator."""
        return self.head_dim + 1

    def _values(self, v: Tensor) -> Tensor:
        return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        return (out[..., :-1] / (out[..., -1:] + self.eps)).flatten(-2)


alias(
    "mixer",
    "retention",
    {"name": "gla", "norm_scope": "head", "gate_activation": "swish", "scaled": True},
)
