"""Presets: whole models at several sizes.

A size fixes width, layers and heads for every family, so that only the channel mixer's inner dimension
differs between families: it is chosen so that the parameters match those of TransNormerLLM.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tnbench.errors import RequestError, nearest
from tnbench.registry import register


class Size(NamedTuple):
    """Shape of a size; `channel_width` is TransNormerLLM's, about 2.75 times the width as in the paper."""

    width: int
    layers: int
    heads: int
    channel_width: int


# 0.8m has four layers and, with a narrower channel mixer, the parameters of a four-layer GPT-2 of width 128.
# Small sizes name their non-embedding parameters. From 385m on, shapes and names are the paper's (table 1),
# whose numbers include a tied embedding of 50,272 rows.
SIZES = {
    "0.1m": Size(64, 2, 4, 176),
    "0.4m": Size(96, 3, 4, 264),
    "0.8m": Size(128, 4, 4, 300),
    "1m": Size(128, 5, 4, 352),
    "3m": Size(192, 6, 4, 528),
    "10m": Size(256, 12, 4, 704),
    "35m": Size(512, 10, 4, 1408),
    "100m": Size(768, 13, 6, 2112),
    "385m": Size(1024, 24, 8, 2816),
    "1b": Size(2048, 16, 16, 5632),
    "3b": Size(2560, 32, 20, 6912),
    "7b": Size(4096, 30, 32, 11008),
    "13b": Size(5120, 36, 40, 13824),
    "65b": Size(8192, 72, 64, 22016),
    "175b": Size(12288, 88, 96, 32768),
}


OUTER_NORMS = ("token_norm", "channel_norm", "final_norm")


def shape(size: str) -> Size:
    """The shape of a named size.

    Raises:
        RequestError: no such size.
    """
    name = size.lower()
    if name not in SIZES:
        near, known = nearest(name, SIZES), f"known: {', '.join(SIZES)}"
        hint = f"{near} ({known})" if near.startswith("did") else known
        raise RequestError(f"model.size: no size {size!r}, {hint}")
    return SIZES[name]


def _values(size: str, channel_width: int | None = None, **components: Any) -> dict[str, Any]:
    s = shape(size)
    return {
        "width": s.width,
        "layers": s.layers,
        "heads": s.heads,
        "channel_width": channel_width or s.channel_width,
        "position": "none",
        "decay": "none",
        "feature_map": "none",
        "gate": False,
        **dict.fromkeys(OUTER_NORMS, "srmsnorm"),
        "inner_norm": "none",
        **components,
    }


def _matched(size: str, square_matrices: float, channel_matrices: int, extra: int = 0) -> int:
    """Inner dimension with which a block has the parameters of TransNormerLLM's: 5 d² + 3 d f.

    Args:
        square_matrices: d × d matrices of the token mixer.
        channel_matrices: d × inner matrices of the channel mixer.
        extra: other parameters per block.

    The result is a multiple of about width / 32 (at most 64), which tensor cores want and which keeps the
    families within 0.5 % of each other.
    """
    s = shape(size)
    target = 5 * s.width**2 + 3 * s.width * s.channel_width
    exact = (target - square_matrices * s.width**2 - extra) / (channel_matrices * s.width)
    multiple = min(64, 2 ** int(math.log2(s.width / 32)))
    return round(exact / multiple) * multiple


@register("preset", "transnormerllm", reference="arXiv 2307.14995")
def transnormerllm(size: str, convention: str) -> dict[str, Any]:
    """TransNormerLLM: GLA, decay, LRPE, SGLU, SRMSNorm (v1: 1+elu, LRPE in all layers; v2: swish, Mix)."""
    v1 = convention == "v1"
    return _values(
        size,
        mixer="gla",
        position={"name": "lrpe", "form": "rotation", "layers": "all"}
        if v1
        else {"name": "lrpe", "layers": "first"},
        decay="official",
        feature_map="1+elu" if v1 else "swish",
        gate=True,
        inner_norm="srmsnorm",
        channel="sglu",
    )


@register("preset", "transformer", reference="arXiv 2302.13971")
def transformer(size: str, convention: str) -> dict[str, Any]:
    """A strong Transformer: pre-norm, RMSNorm, RoPE, SwiGLU, softmax attention (LLaMA's recipe)."""
    return _values(
        size,
        _matched(size, square_matrices=4, channel_matrices=3, extra=2 * shape(size).width),
        mixer="softmax",
        position="rope",
        **dict.fromkeys(OUTER_NORMS, "rmsnorm"),
        channel="swiglu",
        scale_embeddings=False,
    )


@register("preset", "gpt2", reference="karpathy/nanoGPT")
def gpt2(size: str, convention: str) -> dict[str, Any]:
    """A GPT-2-style Transformer: pre-norm LayerNorm without bias, learned positions, GELU FFN."""
    return _values(
        size,
        _matched(size, square_matrices=4, channel_matrices=2, extra=2 * shape(size).width),
        mixer="softmax",
        position="ape",
        **{place: {"name": "layernorm", "bias": False} for place in OUTER_NORMS},
        channel="ffn",
        scale_embeddings=False,
    )


def _transnormer(size: str, activation: str, feature_map: str) -> dict[str, Any]:
    return _values(
        size,
        _matched(size, square_matrices=4, channel_matrices=3),
        mixer=[{"name": "diag-attention", "activation": activation}, "norm-attention"],
        position={"name": "lrpe", "form": "householder"},
        feature_map=feature_map,
        inner_norm="srmsnorm",
        channel="swiglu",
    )


@register("preset", "transnormer-t1", reference="arXiv 2210.10340")
def transnormer_t1(size: str, convention: str) -> dict[str, Any]:
    """TransNormer T1: block-diagonal ReLA in the lower half, norm attention with elu above, SwiGLU."""
    return _transnormer(size, "relu", "elu")


@register("preset", "transnormer-t2", reference="arXiv 2210.10340")
def transnormer_t2(size: str, convention: str) -> dict[str, Any]:
    """TransNormer T2: block-diagonal softmax in the lower half, norm attention with 1+elu above, SwiGLU."""
    return _transnormer(size, "softmax", "1+elu")


@register("preset", "retnet", reference="arXiv 2307.08621")
def retnet(size: str, convention: str) -> dict[str, Any]:
    """A RetNet-like model: retention (RoPE, its own decay, norm per head, swish gate), GELU FFN."""
    return _values(
        size,
        _matched(size, square_matrices=5, channel_matrices=2, extra=2 * shape(size).width),
        mixer="retention",
        position="rope",
        decay="retnet",
        gate=True,
        **dict.fromkeys(OUTER_NORMS, "rmsnorm"),
        inner_norm="srmsnorm",
        channel="ffn",
        scale_embeddings=False,
    )
