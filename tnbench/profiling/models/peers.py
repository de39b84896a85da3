"""Models of other packages, as they are used best: today flash-linear-attention's RetNet."""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tnbench.config import ModelConfig

NEEDED = ("fla.models", "einops")


class Unsupported(Exception):
    """This model cannot be run here; the text says why."""


def obstacle(device: str) -> str | None:
    """Why flash-linear-attention's models cannot run here, or None."""
    for name in NEEDED:
        try:
            there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            return f"{name} is not installed: pip install flash-linear-attention==0.6.0 einops"
    return None if device == "cuda" else "its kernels need an NVIDIA GPU"


def retnet(config: ModelConfig, vocabulary: int, context: int, device: str) -> nn.Module:
    """RetNet with all fused modules on: norms, gates, SwiGLU, and the loss fused with the output layer.

    Five square matrices and a gated MLP of the same inner width give it TransNormerLLM's parameters at every
    size; keys and values are as wide as the model, so that its state has the same size too.

    Raises:
        Unsupported: the package is not installed, or there is no GPU.
    """
    reason = obstacle(device)
    if reason is not None:
        raise Unsupported(reason)
    from fla.models.retnet import RetNetConfig, RetNetForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its fused loss rounds, which the docs say too
        shape = RetNetConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_heads=config.heads,
            expand_k=1.0,
            expand_v=1.0,
            intermediate_size=config.channel_width,
            vocab_size=vocabulary,
            max_position_embeddings=context,
            tie_word_embeddings=config.tie_embeddings,
            fuse_norm=True,
            fuse_swiglu=True,
            fuse_cross_entropy=False,
            fuse_linear_cross_entropy=True,
        )
        with torch.device(device):
            return RetNetForCausalLM(shape)


def training_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: the package makes the targets itself, and leaves each window's last one out."""
    return model(input_ids=inputs, labels=inputs).loss


def flops_per_token(config: ModelConfig, vocabulary: int) -> float:
    """Forward FLOPs of the matrix products of `retnet` per token, output layer included."""
    width = config.width
    layer = 2 * (5 * width**2 + 3 * width * config.channel_width) + 4 * width * config.head_dim
    return config.layers * layer + 2.0 * width * vocabulary


def state_values(config: ModelConfig) -> int:
    """Values of the recurrent states of a sequence."""
    return config.layers * config.width * config.head_dim


def prefilled(model: nn.Module, tokens: Tensor) -> Any:
    """The outputs for a prompt: the logits of its last token, and the state."""
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1)


def next_token(model: nn.Module, token: Tensor, state: Any) -> Any:
    """The outputs for one more token (batch,), which moves the state."""
    return model(input_ids=token[:, None], past_key_values=state, use_cache=True, logits_to_keep=1)
