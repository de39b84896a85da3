"""Token mixers: linear attention in its forms, softmax attention and block-diagonal attention.

A mixer maps (batch, time, width) to the same shape and to its state after the last token, a tuple of tensors
of which the first dimension is the batch: linear attention keeps the sum of k vᵀ, (batch, heads, key dim,
value dim), in fp32; softmax attention keys and values of all tokens, and block-diagonal attention those of a
block, (batch, heads, tokens, dim).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .components_tnbench import (
    ACTIVATIONS,
    FEATURE_MAPS,
    NORMS,
    POSITIONS,
    WIDEST,
    build,
    decay,
    has_kernels,
    linear_attention,
    wide,
)

SHORT = 128  # up to this length, one masked product is faster than chunks and their states
CHUNK = 64


@dataclass
class Place:
    """Where the tokens of a call stand in their sequences.

    Args:
        seen: tokens before them, padding included.
        steps: (1 or batch, time), each token's position in its sequence; 0 for padding.
        pads: (batch,), padding tokens on the left of each sequence; None for none.
        real: (batch, time), False for padding; None where there is none.
    """

    seen: int
    steps: Tensor
    pads: Tensor | None
    real: Tensor | None


State = tuple[Tensor, ...]


def powers(log_decay: Tensor | None, exponents: Tensor, heads: int) -> Tensor:
    """λ^exponent per head, in fp32 or better: (heads, *exponents.shape)."""
    if log_decay is None:
        return torch.ones((heads, *exponents.shape), device=exponents.device)
    return torch.exp(log_decay.view(heads, *[1] * exponents.ndim) * exponents)


def step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token by the robust recurrence S ← λ S + k vᵀ, o = scale · q S (arXiv 2307.14995, alg. 4)."""
    if log_decay is not None:
        state = state * log_decay.exp().view(-1, 1, 1)
    state = state + k[:, 0, :, :, None] * v[:, 0, :, None, :]
    return scale * (q[:, 0, :, None, :] @ state).transpose(1, 2), state


def chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor | None, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ_{j<=i} λ^(i-j) (q_i · k_j) v_j, linear in time: a masked product inside each chunk, a state between.

    λ is only ever raised to non-negative powers, so that strong decays cannot overflow.

    Args:
        q, k, v: (batch, time, heads, dim).
        log_decay: (heads,), or None.
        scale: factor on the output.
        state: (batch, heads, key dim, value dim), left by the tokens before; None for none.
        last: whether the state after the last token is wanted.

    Returns:
        (batch, time, heads, value dim), and the state or None.
    """
    if has_kernels(v) and q.dtype == v.dtype and max(q.shape[-1], v.shape[-1]) <= WIDEST:
        given = {"scale": scale, "initial_state": state, "output_state": last}
        return linear_attention.linear_attention(q, k, v, log_decay, implementation="triton", **given)
    time, heads = q.shape[1:3]
    length = time if time <= SHORT else CHUNK
    whole = time - time % length
    if whole < time:
        (q, q2), (k, k2), (v, v2) = (x.split([whole, time - whole], dim=1) for x in (q, k, v))
        head, state = chunks(q, k, v, log_decay, scale, state, True)
        tail, state = chunks(q2, k2, v2, log_decay, scale, state, last)
        return torch.cat([head, tail], dim=1), state
    # (batch, heads, chunks, length, dim)
    qc, kc, vc = (x.unflatten(1, (-1, length)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    steps = torch.arange(length, device=q.device)
    distance = steps[:, None] - steps[None, :]
    mask = powers(log_decay, distance.clamp(min=0), heads) * (distance >= 0)
    out = ((qc @ kc.transpose(-1, -2)) * mask.to(q.dtype)[:, None]) @ vc
    if state is not None or last or qc.shape[2] > 1:
        left = powers(log_decay, length - 1 - steps, heads)[:, None, :, None]
        added = (wide(kc) * left).transpose(-1, -2) @ wide(vc)
        factor = powers(log_decay, torch.full((1, 1), length, device=q.device), heads)
        states = [torch.zeros_like(added[:, :, 0]) if state is None else state]
        for one in added.unbind(2):
            states.append(factor * states[-1] + one)
        reach = powers(log_decay, steps + 1, heads)[:, None, :, None].to(q.dtype)
        out = out + (qc * reach) @ torch.stack(states[:-1], dim=2).to(q.dtype)
        state = states[-1]
    out = out.permute(0, 2, 3, 1, 4).flatten(1, 2)
    return (out if scale == 1.0 else out * scale), state


class LinearMixer(nn.Module):
    """Base: q, k, v (and u) from one projection, φ, position, linear attention, output projection."""

    gateable, positioned, denominator = False, True, False

    def __init__(self, composition: dict[str, Any], layer: int) -> None:
        super().__init__()
        width, self.heads = composition["width"], composition["heads"]
        self.head_dim = width // self.heads
        self.gate = self.gateable and composition["gate"]
        self.position = position(composition if self.positioned else {**composition, "position": None}, layer)
        self.decay = decay(composition["decay"], self.heads, layer, composition["layers"])
        self.feature_map = FEATURE_MAPS[composition["feature_map"]["name"]]
        self.scale = 1.0
        self.projection = nn.Linear(width, (4 if self.gate else 3) * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, place: Place, state: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        parts = self.projection(x).chunk(4 if self.gate else 3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, self.head_dim)) for part in parts[:3])
        with torch.autocast(x.device.type, enabled=False):  # it would round states and decays
            out, after = self._attend(q, k, v, place, state[0] if state else None, keep)
        out = self.output(self._finish(out.to(v.dtype), parts[3] if self.gate else None))
        return out, (after,) if keep and after is not None else None

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        single = q.shape[1] == 1 and state is not None
        if single:
            q, k, v = wide(q), wide(k), wide(v)
        q, k = self.position(self.feature_map(q), self.feature_map(k), place.steps)
        if place.real is not None:
            k = k * place.real[..., None, None]
        if self.denominator:
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        log_decay = self.decay(q.device)
        if single and state is not None:
            return step(q, k, v, log_decay, self.scale, state)
        return chunks(q, k, v, log_decay, self.scale, state, keep)

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        """What the output projection takes, of the attention (batch, time, heads, value dim) and the gate."""
        raise NotImplementedError


class GatedLinearAttention(LinearMixer):
    """(Norm(Q Kᵀ ⊙ M V) ⊙ a(U)) W_o (arXiv 2307.14995, eq. 3 and 4); retention with a norm per head."""

    gateable = True

    def __init__(
        self,
        composition: dict[str, Any],
        layer: int,
        norm_scope: str = "all",
        gate_activation: str = "none",
        scaled: bool = False,
    ) -> None:
        super().__init__(composition, layer)
        self.together, self.activation = norm_scope == "all", ACTIVATIONS[gate_activation]
        self.scale = self.head_dim**-0.5 if scaled else 1.0
        width = composition["width"] if self.together else self.head_dim
        self.inner_norm = build(NORMS, composition["inner_norm"], width)

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        out = self.inner_norm(out.flatten(-2) if self.together else out)
        out = out if self.together else out.flatten(-2)
        return out if u is None else out * self.activation(u)


class NormAttention(LinearMixer):
    """Norm(Q (Kᵀ V)) W_o (arXiv 2210.10340, eq. 10)."""

    def __init__(self, composition: dict[str, Any], layer: int) -> None:
        super().__init__(composition, layer)
        self.inner_norm = build(NORMS, composition["inner_norm"], composition["width"])

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        return self.inner_norm(out.flatten(-2))


class ClassicalLinearAttention(LinearMixer):
    """Σ φ(q)·φ(k_j) v_j / Σ φ(q)·φ(k_j) (arXiv 2006.16236), the denominator as one more value channel."""

    positioned, denominator = False, True

    def _finish(self, out: Tensor, u: Tensor | None) -> Tensor:
        return (out[..., :-1] / (out[..., -1:] + 1e-6)).flatten(-2)


class CacheMixer(nn.Module):
    """Base: q, k, v from one projection, position, scores over kept tokens, output projection."""

    def __init__(self, composition: dict[str, Any], layer: int) -> None:
        super().__init__()
        width, self.heads = composition["width"], composition["heads"]
        self.head_dim = width // self.heads
        self.scale = self.head_dim**-0.5  # where a position doubles the key dim, too
        self.position = position(composition, layer)
        self.projection = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def project(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (batch, heads, time, dim)."""
        q, k, v = (p.unflatten(-1, (self.heads, self.head_dim)) for p in self.projection(x).chunk(3, dim=-1))
        q, k = self.position(q, k, place.steps)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class SoftmaxAttention(CacheMixer):
    """Causal softmax attention with a cache that grows."""

    def __init__(self, composition: dict[str, Any], layer: int, backend: str = "auto") -> None:
        super().__init__(composition, layer)

    def forward(
        self, x: Tensor, place: Place, state: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        q, k, v = self.project(x, place)
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        time, total = q.shape[2], k.shape[2]
        whole, mask = time == total and place.pads is None, None
        if place.pads is not None:
            key = torch.arange(total, device=x.device)
            query = key[total - time :, None]
            # Padding sees itself: a row of which nothing counts would be NaN.
            mask = (key <= query) & (key >= place.pads[:, None, None]) | (key == query)
            mask = mask[:, None]
        elif not whole and time > 1:
            from torch.nn.attention.bias import causal_lower_right  # seconds, and seldom needed

            mask = causal_lower_right(time, total)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole, scale=self.scale)
        return self.output(out.transpose(1, 2).flatten(-2)), (k, v) if keep else None


class DiagAttention(CacheMixer):
    """Causal attention within blocks of tokens that do not overlap (arXiv 2210.10340): softmax, or ReLA."""

    def __init__(
        self, composition: dict[str, Any], layer: int, block: int = 64, activation: str = "softmax"
    ) -> None:
        super().__init__(composition, layer)
        self.block, self.relu = block, activation == "relu"
        norm = composition["inner_norm"] if self.relu else {"name": "none"}
        self.inner_norm = build(NORMS, norm, composition["width"])

    def forward(
        self, x: Tensor, place: Place, state: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        q, k, v = self.project(x, place)
        if x.shape[1] == 1 and state is not None:
            out, after = self._single(q, k, v, place, state)
        elif place.pads is None and place.seen % self.block == 0:
            out, last = self._aligned(q, k, v)
            after = (last[0].clone(), last[1].clone())  # not all of k and v
        else:
            out, after = self._anywhere(q, k, v, place, state)
        out = self.output(self.inner_norm(out.transpose(1, 2).flatten(-2)))
        return out, after if keep else None

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if not self.relu:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        scores = q @ k.transpose(-1, -2) * self.scale
        return (F.relu(scores) * mask).to(v.dtype) @ v

    def _single(self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: State) -> tuple[Tensor, State]:
        """One token: it replaces what its place in the block held; the places behind it are masked."""
        slot = (place.steps % self.block)[:, None, :, None]
        kept = [old.scatter(2, slot.expand_as(new), new) for old, new in zip(state, (k, v), strict=True)]
        mask = torch.arange(self.block, device=q.device) <= slot
        return self._weigh(q, kept[0], kept[1], mask), (kept[0], kept[1])

    def _aligned(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, State]:
        """Tokens of which the first begins a block; the last block is filled up with zeros."""
        time = q.shape[2]
        q, k, v = (F.pad(x, (0, 0, 0, -time % self.block)) for x in (q, k, v))
        steps = torch.arange(self.block, device=q.device)
        blocks = (x.unflatten(2, (-1, self.block)) for x in (q, k, v))
        qb, kb, vb = (x.transpose(1, 2).flatten(0, 1) for x in blocks)  # (batch · blocks, heads, block, dim)
        out = self._weigh(qb, kb, vb, steps <= steps[:, None]).unflatten(0, (q.shape[0], -1))
        last = (k[:, :, -self.block :], v[:, :, -self.block :])
        return out.transpose(1, 2).flatten(2, 3)[:, :, :time], last

    def _anywhere(
        self, q: Tensor, k: Tensor, v: Tensor, place: Place, state: State | None
    ) -> tuple[Tensor, State]:
        """Tokens that go on with a begun block, or sequences that begin at different places of the batch.

        Each sequence is laid out from the beginning of its block on, padding behind the end.
        """
        batch, _, time, _ = q.shape
        pads = place.pads if place.pads is not None else q.new_zeros(1, dtype=torch.int64)
        begun = (place.seen - pads).clamp(min=0) % self.block
        steps = place.seen + torch.arange(time, device=q.device) - pads[:, None]  # below 0: padding
        slot = steps - (place.seen - pads).clamp(min=0)[:, None] + begun[:, None]
        length = self.block - 1 + time
        length += -length % self.block
        index = torch.where(steps < 0, length, slot).expand(batch, -1)[:, None, :, None]
        laid = []
        for n, new in enumerate((q, k, v)):
            empty = new.new_zeros(batch, self.heads, length + 1, new.shape[-1])
            if n and state is not None:
                empty[:, :, : self.block] = state[n - 1]
            laid.append(empty.scatter(2, index.expand_as(new), new)[:, :, :length])
        out, _ = self._aligned(*laid)
        out = out.gather(2, index.clamp(max=length - 1).expand_as(v))
        last = slot[:, -1:].clamp(min=0) // self.block * self.block + torch.arange(
            self.block, device=q.device
        )
        last = last.expand(batch, -1)[:, None, :, None]
        kept = [x.gather(2, last.expand(-1, *x.shape[1:2], -1, x.shape[-1])) for x in laid[1:]]
        return out, (kept[0], kept[1])


MIXERS = {
    "gla": GatedLinearAttention,
    "norm-attention": NormAttention,
    "linear-attention": ClassicalLinearAttention,
    "softmax": SoftmaxAttention,
    "diag-attention": DiagAttention,
}


def position(composition: dict[str, Any], layer: int) -> nn.Module:
    """What turns a layer's queries and keys."""
    spec = composition["position"]
    if spec is None or spec["name"] not in POSITIONS:
        spec = {"name": "none"}
    heads = composition["heads"]
    return build(POSITIONS, spec, composition["width"] // heads, heads, layer)


def mixer(composition: dict[str, Any], layer: int) -> nn.Module:
    """The token mixer of a layer, counted from 0 at the bottom; a list of mixers splits the layers."""
    specs = composition["mixer"]
    return build(MIXERS, specs[layer * len(specs) // composition["layers"]], composition, layer)
