"""Token mixers that keep past tokens: softmax attention and block-diagonal attention."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tnbench.model.mixers.base import Parts, TokenMixer, projection_flops
from tnbench.registry import register

BACKENDS = {
    "auto": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "math": [SDPBackend.MATH],
}
"""What torch may take on a GPU, the fastest on Hopper first."""


class Cache(NamedTuple):
    """Keys (batch, heads, tokens, key dim) and values (batch, heads, tokens, head dim) of past tokens."""

    k: Tensor
    v: Tensor


class Buffers(NamedTuple):
    """Room for a cache, as long as the capacity; what is filled of it is told by the tokens seen."""

    k: Tensor
    v: Tensor


class CacheMixer(TokenMixer):
    """Base: q, k, v from one projection, position, scores over cached tokens, output projection."""

    refuses: ClassVar[dict[str, str]] = {
        "decay": "it has no recurrent state that could decay",
        "feature_map": "its scores are those of q and k themselves",
        "inner_norm": "its weights sum to one already",
        "gate": "it has no gate",
    }

    def __init__(self, width: int, heads: int, parts: Parts | None = None) -> None:
        super().__init__(width, heads, parts)
        self.position = self.parts.position
        self.projection = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def _project(self, x: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p.unflatten(-1, (self.heads, self.head_dim)) for p in self.projection(x).chunk(3, dim=-1))
        q, k = self.position.rotate(q, k, start)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _merge(self, out: Tensor) -> Tensor:
        """(batch, heads, time, head dim) to (batch, time, width), projected."""
        return self.output(out.transpose(1, 2).flatten(-2))

    @property
    def scale(self) -> float:
        """1/√d_h: the key dim that a position may have doubled does not enter."""
        return self.head_dim**-0.5

    def initial_state(self, batch: int, like: Tensor) -> Cache:
        """An empty cache."""
        key_dim = self.position.key_dim(self.head_dim)
        return Cache(
            like.new_zeros(batch, self.heads, 0, key_dim), like.new_zeros(batch, self.heads, 0, self.head_dim)
        )

    def _room(self, batch: int, tokens: int, like: Tensor) -> Buffers:
        key_dim = self.position.key_dim(self.head_dim)
        # Zeros, not what the memory held: a weight of 0 times NaN would be NaN.
        return Buffers(
            like.new_zeros(batch, self.heads, tokens, key_dim),
            like.new_zeros(batch, self.heads, tokens, self.head_dim),
        )

    def _cached_values(self) -> int:
        return self.heads * (self.position.key_dim(self.head_dim) + self.head_dim)

    def _flops(self, mean_length: float) -> float:
        return projection_flops(self.projection, self.output) + 2 * self._cached_values() * mean_length


@register("mixer", "softmax", reference="arXiv 1706.03762, eq. 1")
class SoftmaxAttention(CacheMixer):
    """Causal softmax attention, through torch's scaled_dot_product_attention, with a KV cache.

    Parameters:
        backend: what computes whole sequences on a GPU: `cudnn` or `flash` alone (torch raises RuntimeError
            for tensors that they do not take), `math`, or `auto`: cuDNN, else FlashAttention, else what torch
            has. Elsewhere torch chooses.
    """

    constant_state: ClassVar[bool] = False

    def __init__(
        self,
        width: int,
        heads: int,
        parts: Parts | None = None,
        *,
        backend: Literal["auto", "cudnn", "flash", "math"] = "auto",
    ) -> None:
        super().__init__(width, heads, parts)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        q, k, v = self._project(x, 0)
        return self._merge(self._whole(q, k, v))

    def _whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of whole sequences, (batch, heads, time, dim)."""
        if not q.is_cuda:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        with sdpa_kernel(BACKENDS[self.backend], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)

    def extend(self, x: Tensor, state: Cache | Buffers, start: int) -> tuple[Tensor, Cache | Buffers]:
        q, k, v = self._project(x, start)
        if isinstance(state, Buffers):
            end = start + x.shape[1]
            state.k[:, :, start:end] = k.detach()
            state.v[:, :, start:end] = v.detach()
            if start:
                k, v = state.k[:, :, :end], state.v[:, :, :end]
            return self._merge(self._last(q, k, v)), state
        k = torch.cat([state.k.to(k.dtype), k], dim=2)
        v = torch.cat([state.v.to(v.dtype), v], dim=2)
        return self._merge(self._last(q, k, v)), Cache(k, v)

    def _last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of the last tokens: q (…, m, d) over k and v (…, n, d), m <= n."""
        m, n = q.shape[-2], k.shape[-2]
        if m == n:
            return self._whole(q, k, v)
        bias = None  # of one token every score counts
        if m > 1:  # a bias that FlashAttention knows, not a mask of m · n values
            from torch.nn.attention.bias import causal_lower_right  # seconds: it brings the compiler along

            bias = causal_lower_right(m, n)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)

    def allocate(self, batch: int, capacity: int, like: Tensor) -> Buffers:
        """Keys and values of `capacity` tokens."""
        return self._room(batch, capacity, like)

    def decode(self, x: Tensor, state: Buffers, position: Tensor, tokens: int) -> Tensor:
        """Attention of one token to itself and all before it: its cost grows with `tokens`."""
        q, k, v = self._project(x[:, None], tokens)
        state.k.index_copy_(2, position, k)
        state.v.index_copy_(2, position, v)
        k, v = state.k[:, :, : tokens + 1], state.v[:, :, : tokens + 1]
        return self._merge(F.scaled_dot_product_attention(q, k, v, scale=self.scale))[:, 0]

    def state_size(self, context: int) -> int:
        """Keys and values of all tokens."""
        return self._cached_values() * context

    def flops_per_token(self, context: int) -> float:
        """Scores and weighted sum over half the square: (context + 1) / 2 tokens on average."""
        return self._flops((context + 1) / 2)


@register("mixer", "diag-attention", reference="arXiv 2210.10340, section 4.2")
class DiagAttention(CacheMixer):
    """Block-diagonal attention (TransNormer): causal within blocks of `block` tokens that do not overlap.

    Parameters:
        block: tokens in a block.
        activation: `softmax` (TransNormer T2), or `relu` (T1): ReLA (arXiv 2104.07012), whose weights do
            not sum to one, so that its output is normalised by the inner norm.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        parts: Parts | None = None,
        *,
        block: Annotated[int, Field(ge=1)] = 64,
        activation: Literal["softmax", "relu"] = "softmax",
    ) -> None:
        super().__init__(width, heads, parts)
        self.block, self.activation = block, activation
        self.inner_norm = self.parts.inner_norm(width) if activation == "relu" else nn.Identity()

    @classmethod
    def refusals(cls, **parameters: Any) -> dict[str, str]:
        """ReLA takes the inner norm that softmax has no need of."""
        taken = {"inner_norm"} if parameters.get("activation") == "relu" else set()
        return {part: reason for part, reason in cls.refuses.items() if part not in taken}

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, last: Tensor | None = None) -> Tensor:
        """Causal attention of tokens of a block: q (…, m, d) over k and v (…, n, d), m <= n.

        q are the last m of the n tokens; or else `last`, (m,), says at which of them each one stands.
        """
        m, n = q.shape[-2], k.shape[-2]
        if q.is_cuda and m == n and last is None and self.activation == "softmax":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        steps = torch.arange(n, device=q.device)
        mask = steps[None, :] <= (steps[n - m :] if last is None else last)[:, None]
        if self.activation == "softmax":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        scores = q @ k.transpose(-1, -2) * self.scale
        return (F.relu(scores) * mask).to(v.dtype) @ v

    def _output(self, out: Tensor) -> Tensor:
        return self.output(self.inner_norm(out.transpose(1, 2).flatten(-2)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        q, k, v = self._project(x, 0)
        return self._output(self._blocks(q, k, v))

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        time = q.shape[2]
        whole = time - time % self.block
        out = []
        if whole:
            blocks = (p[:, :, :whole].unflatten(2, (-1, self.block)).transpose(1, 2) for p in (q, k, v))
            qb, kb, vb = (p.flatten(0, 1) for p in blocks)  # (batch · blocks, heads, block, dim)
            done = self._weigh(qb, kb, vb).unflatten(0, (q.shape[0], -1))
            out.append(done.transpose(1, 2).flatten(2, 3))
        if whole < time:
            out.append(self._weigh(q[:, :, whole:], k[:, :, whole:], v[:, :, whole:]))
        return torch.cat(out, dim=2) if len(out) > 1 else out[0]

    def extend(self, x: Tensor, state: Cache | Buffers, start: int) -> tuple[Tensor, Cache | Buffers]:
        filled = start % self.block
        if isinstance(state, Buffers):
            begun = Cache(state.k[:, :, :filled], state.v[:, :, :filled])
            out, after = self.extend(x, begun, start)
            kept = (start + x.shape[1] - 1) % self.block + 1
            state.k[:, :, :kept] = after.k.detach()
            state.v[:, :, :kept] = after.v.detach()
            return out, state
        q, k, v = self._project(x, start)
        out = []
        first = min(self.block - filled, x.shape[1]) if filled else 0
        if first:  # the rest of a block that was begun
            head_k = torch.cat([state.k.to(k.dtype), k[:, :, :first]], dim=2)
            head_v = torch.cat([state.v.to(v.dtype), v[:, :, :first]], dim=2)
            out.append(self._weigh(q[:, :, :first], head_k, head_v))
            state = Cache(head_k, head_v)
        if first < x.shape[1]:
            out.append(self._blocks(q[:, :, first:], k[:, :, first:], v[:, :, first:]))
            kept = (x.shape[1] - first - 1) % self.block + 1
            state = Cache(k[:, :, -kept:], v[:, :, -kept:])
        return self._output(torch.cat(out, dim=2)), state

    def allocate(self, batch: int, capacity: int, like: Tensor) -> Buffers:
        """Keys and values of one block, whatever the capacity."""
        return self._room(batch, self.block, like)

    def decode(self, x: Tensor, state: Buffers, position: Tensor, tokens: int) -> Tensor:
        """Attention of one token to those of its block; the places behind it are masked."""
        q, k, v = self._project(x[:, None], position)
        place = position % self.block
        state.k.index_copy_(2, place, k)
        state.v.index_copy_(2, place, v)
        return self._output(self._weigh(q, state.k, state.v, place))[:, 0]

    def state_size(self, context: int) -> int:
        """Keys and values of one block at most."""
        return self._cached_values() * min(context, self.block)

    def flops_per_token(self, context: int) -> float:
        """Scores and weighted sum over the tokens of the block so far, on average."""
        whole, rest = divmod(context, self.block)
        pairs = whole * self.block * (self.block + 1) / 2 + rest * (rest + 1) / 2
        return self._flops(pairs / context)
