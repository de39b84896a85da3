"""The language model: embedding, blocks, final norm, output layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tnbench import registry
from tnbench.config import ModelConfig
from tnbench.kernels.linear_attention import AUTOCAST
from tnbench.model.block import Block, build, check_composition
from tnbench.model.decays import LearnedDecay
from tnbench.model.norms import add_norm
from tnbench.model.positions import NoPosition, Position

BlockCall = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(block, x, branch) → (x, branch): how a block is computed."""


@dataclass
class State:
    """What has to be kept of the tokens seen so far, to go on with the next."""

    tokens: int
    """Tokens seen."""
    layers: list[Any]
    """The token mixers' states."""
    position: Tensor | None = None
    """`tokens` once more, (1,) int64 on the device: only of a state that is written where it lies."""
    capacity: int | None = None
    """The most tokens that the state can hold; None for any number."""


class LanguageModel(nn.Module):
    """A language model composed from a configuration.

    `forward` computes all logits at once; `prefill` does the same and returns the state, and `step` continues
    one token at a time. The three give the same logits.

    Args:
        config: sizes and components.
        vocab_size: tokens in the vocabulary.
        context: tokens in a training window; only learned absolute positions are bound by it.

    Raises:
        RequestError: components that do not go together.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        check_composition(config)
        self.config, self.vocab_size = config, vocab_size
        self.activation_checkpointing = False
        # Empty, because `initialise` draws it: nn.Embedding's own draw costs seconds on the meta device.
        empty = torch.empty(vocab_size, config.width)
        self.embedding = nn.Embedding.from_pretrained(empty, freeze=False)
        self.position = embedding_position(config, context)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = build("norm", config.final_norm, config.width)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        self.initialise(torch.initial_seed())

    def initialise(self, seed: int) -> None:
        """Draw the weights: N(0, init_std) for every matrix and learned position, as in the official code.

        Each tensor has a stream of its own, named after it, so that variants of one seed share the weights
        that they have in common.
        """
        if self.embedding.weight.is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) or (
                module is self.position and module is not None
            ):
                weight = getattr(module, "weight", None)
                if isinstance(weight, nn.Parameter):
                    stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
                    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(stream, "big") >> 1)
                    nn.init.normal_(weight, std=self.config.init_std, generator=generator)

    @property
    def layers(self) -> list[Block]:
        """The blocks, from the bottom."""
        return cast(list[Block], list(self.blocks))

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix, (vocabulary, width): the embedding's own where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _embed(self, tokens: Tensor, start: int | Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.width)
        x = self.position.embed(x, start)
        device = x.device.type
        if device in AUTOCAST and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # the stream keeps the dtype that it begins with
        return x

    def apply_block(self, block: nn.Module, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """One block, of which the backward pass recomputes the activations if that is asked for.

        Shapes as in `Block.forward`.
        """
        if self.activation_checkpointing and self.training:
            x = x if branch is None else x + branch  # one tensor is kept in place of two
            return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
        return block(x, branch)

    def hidden(self, tokens: Tensor, *, apply: BlockCall | None = None) -> Tensor:
        """What the output layer multiplies: the last block's stream after the final norm.

        Args:
            tokens: (batch, time).
            apply: computes a block in place of `apply_block`, which it may be a compiled form of.

        Returns:
            (batch, time, width), in the residual stream's dtype.
        """
        apply = apply or self.apply_block
        x, branch = self._embed(tokens, 0), None
        for block in self.blocks:
            x, branch = apply(block, x, branch)
        return add_norm(self.final_norm, x, branch)[0]

    def forward(self, tokens: Tensor, *, apply: BlockCall | None = None) -> Tensor:
        """Logits (batch, time, vocabulary) for tokens (batch, time); `apply` as in `hidden`."""
        return F.linear(self.hidden(tokens, apply=apply), self.output_weight)

    def initial_state(self, batch: int) -> State:
        """The state before the first token."""
        weight = self.embedding.weight
        mixers = [block.token_mixer for block in self.blocks]
        return State(0, [mixer.initial_state(batch, weight) for mixer in mixers])  # type: ignore[operator]

    def prefill(
        self, tokens: Tensor, state: State | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """Logits for tokens (batch, time) that follow on `state` (default: none), and the next state.

        With `last_only`, logits (batch, 1, vocabulary) of the last token alone. A state from `allocate` is
        written where it lies and returned itself.

        Raises:
            ValueError: tokens beyond its capacity, or beyond the learned positions.
        """
        hidden, state = self.extend(tokens, state, last_only=last_only)
        return F.linear(hidden, self.output_weight), state

    def extend(
        self, tokens: Tensor, state: State | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """What the output layer multiplies, (batch, time or 1, width); else as `prefill`."""
        state = state or self.initial_state(tokens.shape[0])
        self.require_room(state, tokens.shape[1])
        x, branch = self._embed(tokens, state.tokens), None
        layers = []
        for block, layer_state in zip(self.layers, state.layers, strict=True):
            x, branch, layer_state = block.extend(x, branch, layer_state, state.tokens)
            layers.append(layer_state)
        if last_only:
            x, branch = x[:, -1:], None if branch is None else branch[:, -1:]
        hidden = add_norm(self.final_norm, x, branch)[0]
        seen = state.tokens + tokens.shape[1]
        if state.position is None:
            return hidden, State(seen, layers)
        state.tokens = seen
        state.position.fill_(seen)
        return hidden, state

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (batch, vocabulary) for the next token (batch,), and the next state."""
        logits, state = self.prefill(token[:, None], state)
        return logits[:, 0], state

    def parameter_counts(self) -> dict[str, int]:
        """`total` and `non_embedding` parameters: without embedding, untied head and learned positions."""
        total = sum(p.numel() for p in self.parameters())
        outside = self.embedding.weight.numel() + (0 if self.head is None else self.head.weight.numel())
        outside += sum(p.numel() for p in self.position.parameters())
        return {"total": total, "non_embedding": total - outside}

    def state_size(self, context: int) -> int:
        """Values kept per sequence after at most `context` tokens, over all layers."""
        return sum(block.token_mixer.state_size(context) for block in self.layers)

    def flops_per_token(self, context: int) -> float:
        """Forward FLOPs of the matrix products per token, output layer included (training: thrice)."""
        head = 2.0 * self.config.width * self.vocab_size
        return head + sum(block.flops_per_token(context) for block in self.layers)

    def undecayed_parameters(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: embeddings, positions and decays."""
        return {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, Position | LearnedDecay | nn.Embedding)
            for parameter, _ in module.named_parameters(recurse=False)
        }

    @property
    def constant_state(self) -> bool:
        """Whether an allocated state and the cost of a step are the same for every number of tokens."""
        return all(block.token_mixer.constant_state for block in self.layers)

    @torch.no_grad()
    def allocate(self, batch: int, capacity: int) -> State:
        """The state before the first token, in buffers that `prefill` and `decode` write where they lie.

        Args:
            batch: sequences.
            capacity: the most tokens that a sequence will have; models of constant state take any number.
        """
        weight = self.embedding.weight
        layers = [block.token_mixer.allocate(batch, capacity, weight) for block in self.layers]
        position = torch.zeros(1, dtype=torch.int64, device=weight.device)
        return State(0, layers, position, None if self.constant_state else capacity)

    @torch.no_grad()
    def decode(self, token: Tensor, state: State) -> Tensor:
        """Logits (batch, vocabulary) of what follows on one more token (batch,); `state` is updated in place.

        Args:
            token: (batch,), on the model's device.
            state: from `allocate`.

        Raises:
            ValueError: a state that `allocate` has not made, or one token beyond its capacity or beyond the
                learned positions.
        """
        if state.position is None:
            raise ValueError("decode updates its state where it lies: it needs one from allocate")
        self.require_room(state, 1)
        logits = self.decode_at(token, state.layers, state.position, state.tokens)
        state.position += 1
        state.tokens += 1
        return logits

    def require_room(self, state: State, more: int) -> None:
        """Raises ValueError if `more` tokens would be beyond the state's capacity or a learned position."""
        end, limit = state.tokens + more, self.position.limit
        if limit is not None and end > limit:
            raise ValueError(f"learned absolute positions end at {limit}, asked for {end}")
        if state.capacity is not None and end > state.capacity:
            raise ValueError(f"the state was allocated for {state.capacity} tokens, asked for {end}")

    def decode_at(self, token: Tensor, layers: list[Any], position: Tensor, tokens: int) -> Tensor:
        """`decode` without its checks and counts, which is what torch.compile and CUDA graphs take.

        Args:
            token: (batch,).
            layers: the token mixers' allocated states, changed where they lie.
            position: (1,) int64 on the device, tokens seen so far.
            tokens: the same number on the host; without effect in models of constant state.
        """
        x, branch = self._embed(token, position), None
        for block, state in zip(self.layers, layers, strict=True):
            x, branch = block.decode(x, branch, state, position, tokens)
        return F.linear(add_norm(self.final_norm, x, branch)[0], self.output_weight)


def embedding_position(config: ModelConfig, context: int) -> Position:
    """The position that acts on embeddings, or one without effect."""
    place = getattr(registry.find("position", config.position.name).target, "place", "nothing")
    if place == "embedding":
        return build("position", config.position, config.width, context)
    return NoPosition(config.head_dim, config.heads, 0)
