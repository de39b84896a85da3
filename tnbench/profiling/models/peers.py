"""Models of other packages, as they are used best: today flash-linear-attention's RetNet.

Its loss comes in two forms, of which neither is the faster one everywhere: fused with the output layer
(`fla-retnet`), which saves the logits and multiplies for the gradient of fp32 weights in fp32, and fused by
itself over all logits (`fla-retnet-logits`).
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tnbench.config import ModelConfig
from tnbench.errors import first_line

NEEDED = ("transformers", "einops", "fla.models")


class Unsupported(Exception):
    """This model cannot be run here; the text says why."""


def obstacle(device: str) -> str | None:
    """Why flash-linear-attention's models cannot run here, or None."""
    for name in NEEDED:
        try:
            there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            there = False
        except Exception as error:  # a package that is there and cannot be imported, as without triton
            return f"{name} cannot be imported: {first_line(error)}"
        if not there:
            return f"{name} is not installed: pip install flash-linear-attention==0.6.0 einops transformers"
    return None if device == "cuda" else "its kernels need an NVIDIA GPU"


def retnet(
    config: ModelConfig, vocabulary: int, context: int, device: str, *, keeps_logits: bool = False
) -> nn.Module:
    """RetNet with all fused modules on: norms, gates, SwiGLU, and the loss.

    Five square matrices and a gated MLP of the same inner width give it TransNormerLLM's parameters at every
    size; keys and values are as wide as the model, so that its state has the same size too.

    Args:
        keeps_logits: the loss is fused by itself, not with the output layer.

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
            fuse_cross_entropy=keeps_logits,
            fuse_linear_cross_entropy=not keeps_logits,
        )
        with torch.device(device):
            return RetNetForCausalLM(shape)


def narrow_stream(model: Any) -> None:
    """A residual stream in bf16, as our models have it; autocast leaves the embedding in fp32."""
    model.model.embeddings.register_forward_hook(lambda module, inputs, out: out.to(torch.bfloat16))


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


def ready_to_decode(model: nn.Module, positions: int) -> None:
    """Make the tables of cosines for so many positions once; else every token makes them longer by one."""
    parameter = next(model.parameters())
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "_update_cos_sin_cache"):
            module._update_cos_sin_cache(positions, device=parameter.device, dtype=parameter.dtype)


def prefilled(model: nn.Module, tokens: Tensor) -> Any:
    """The outputs for a prompt: the logits of its last token, and the state."""
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1)


def next_token(model: nn.Module, token: Tensor, state: Any) -> Any:
    """The outputs for one more token (batch,), which moves the state."""
    return model(input_ids=token[:, None], past_key_values=state, use_cache=True, logits_to_keep=1)
