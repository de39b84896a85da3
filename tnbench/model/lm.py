"""The language model: embedding, blocks, final norm, output layer."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tnbench import registry
from tnbench.config import ModelConfig
from tnbench.model.block import Block, build, check_composition
from tnbench.model.decays import LearnedDecay
from tnbench.model.positions import NoPosition, Position


@dataclass
class State:
    """What has to be kept of the tokens seen so far, to go on with the next."""

    tokens: int
    """Tokens seen."""
    layers: list[Any]
    """The token mixers' states."""


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

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        x = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.width)
        return self.position.embed(x, start)

    def _logits(self, x: Tensor) -> Tensor:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.final_norm(x), weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, time, vocabulary) for tokens (batch, time)."""
        x = self._embed(tokens, 0)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self._logits(x)

    def initial_state(self, batch: int) -> State:
        """The state before the first token."""
        weight = self.embedding.weight
        mixers = [block.token_mixer for block in self.blocks]
        return State(0, [mixer.initial_state(batch, weight) for mixer in mixers])  # type: ignore[operator]

    def prefill(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits for tokens (batch, time) that follow on `state` (default: none), and the next state."""
        state = state or self.initial_state(tokens.shape[0])
        x = self._embed(tokens, state.tokens)
        layers = []
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state = block.extend(x, layer_state, state.tokens)  # type: ignore[operator]
            layers.append(layer_state)
        return self._logits(x), State(state.tokens + tokens.shape[1], layers)

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


def embedding_position(config: ModelConfig, context: int) -> Position:
    """The position that acts on embeddings, or one without effect."""
    place = getattr(registry.find("position", config.position.name).target, "place", "nothing")
    if place == "embedding":
        return build("position", config.position, config.width, context)
    return NoPosition(config.head_dim, config.heads, 0)
