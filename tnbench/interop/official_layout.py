"""OpenNLPLab's TransNormerLLM layout: its config.json as our configuration, and its tensors as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tnbench import registry
from tnbench.config import LABELS, NORM_PLACES, ModelConfig, check
from tnbench.errors import RequestError, nearest, shortened
from tnbench.model.presets import SIZES, Size

MODEL_TYPE = "transnormer"
ARCHITECTURE = "TransnormerForCausalLM"
NORM = "simplermsnorm"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

FEATURE_MAPS = {
    "swish": "swish",
    "silu": "swish",
    "none": "none",
    "1+elu": "1+elu",
    "elu": "elu",
    "relu": "relu",
    "sigmoid": "sigmoid",
}
"""Our feature maps by `linear_act_fun`. The official code takes any other word for `none`."""

Token = Annotated[int, Field(ge=0)] | None
Flag = Annotated[int, Field(ge=0, le=1)] | bool


class OfficialConfig(BaseModel):
    """What config.json says about the model; the other keys are of no effect on what it computes.

    The defaults are those of the official configuration class.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    vocab_size: Annotated[int, Field(ge=1, le=2**31)]
    """Rows of the embedding."""
    decoder_embed_dim: Annotated[int, Field(ge=1, le=2**20)]
    """Width."""
    decoder_layers: Annotated[int, Field(ge=1, le=256)]
    """Blocks."""
    decoder_attention_heads: Annotated[int, Field(ge=1, le=1024)]
    """Heads."""
    glu_dim: Annotated[int, Field(ge=-1, le=2**24)]
    """Inner dimension of SGLU; −1 stands for the width."""
    linear_use_lrpe_list: list[Flag]
    """For each layer, whether it has LRPE."""
    linear_act_fun: str = "silu"
    """φ on queries and keys."""
    hidden_dim: int | None = None
    """Channels of all heads together; None for the width."""
    no_scale_embedding: bool = False
    """Whether embeddings are not multiplied by the root of the width."""
    norm_type: str = NORM
    """The norm at all places."""
    bias: bool = False
    """Whether projections have a bias."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights."""
    gate_dim: int | None = None
    """Rank of TNL3's gate, which the layout of the others does not have."""
    tie_word_embeddings: bool = True
    """Whether the output layer is the embedding (the default of transformers 4)."""
    pad_token_id: Token = 0
    bos_token_id: Token = 1
    eos_token_id: Token = 2


def read_config(path: Path, values: Mapping[str, Any]) -> OfficialConfig:
    """config.json, checked for what the layout and our model can hold.

    Raises:
        RequestError: another architecture, a key that is missing or wrong, or a model that ours cannot be.
    """
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind != MODEL_TYPE and classes != [ARCHITECTURE]:
        what = f"model_type {shortened(kind)}" if kind else "no model_type"
        raise RequestError(f"{path} is of another architecture: {what}, TransNormerLLM's is {MODEL_TYPE}")
    if values.get("gate_dim") is not None:
        raise RequestError(
            f"{path}: gate_dim = {shortened(values['gate_dim'])} is the low-rank gate of TNL3, which has "
            "another layout; the 385M, 1B, 7B and TNL2 checkpoints can be read"
        )
    try:
        config: OfficialConfig = check(OfficialConfig, values, "")
        _require_expressible(config)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    return config


def _require_expressible(config: OfficialConfig) -> None:
    width, heads, layers = config.decoder_embed_dim, config.decoder_attention_heads, config.decoder_layers
    if width % heads:
        raise RequestError(f"decoder_attention_heads = {heads} does not divide decoder_embed_dim = {width}")
    if config.glu_dim == 0:
        raise RequestError("glu_dim = 0: expected a size, or -1 for decoder_embed_dim")
    if config.hidden_dim not in (None, width):
        raise RequestError(
            f"hidden_dim = {config.hidden_dim} is not decoder_embed_dim = {width}; ours has one width"
        )
    if config.norm_type != NORM:
        raise RequestError(
            f"norm_type = {shortened(config.norm_type)}: expected {NORM} (the official code takes any other "
            "word for LayerNorm)"
        )
    if config.bias:
        raise RequestError("bias = true: our projections have none, nor have those of the published models")
    if config.linear_act_fun not in FEATURE_MAPS:
        raise RequestError(
            f"linear_act_fun = {shortened(config.linear_act_fun)}, "
            f"{nearest(config.linear_act_fun, FEATURE_MAPS)} (the official code takes it for its nearest "
            "torch function, or for none)"
        )
    flags = config.linear_use_lrpe_list
    if len(flags) < layers:
        raise RequestError(f"linear_use_lrpe_list has {len(flags)} entries for {layers} layers")
    if _lrpe_layers(config) is None:
        raise RequestError(
            "linear_use_lrpe_list: ours has LRPE in no layer, in the first alone or in all of them"
        )


def _lrpe_layers(config: OfficialConfig) -> str | None:
    """`none`, `first` or `all`; None for any other list."""
    first, *rest = [bool(flag) for flag in config.linear_use_lrpe_list[: config.decoder_layers]]
    if not any(rest):
        return "first" if first else "none"
    return "all" if first and all(rest) else None


def to_ours(config: OfficialConfig) -> ModelConfig:
    """The configuration of our model that computes what the official one does.

    LRPE in its cosine form with θ over the channels of all heads, ALiBi slopes times 1 − l/(L−1) + 1e-5, a
    norm over all heads, a gate and values without activation, no scale of the scores.
    """
    registry.load()
    width, glu = config.decoder_embed_dim, config.glu_dim
    size = Size(width, config.decoder_layers, config.decoder_attention_heads, width if glu == -1 else glu)
    layers = _lrpe_layers(config)
    values = {
        "preset": "transnormerllm",
        "size": next((name for name, shape in SIZES.items() if shape == size), "official"),
        "convention": "v2",
        **size._asdict(),
        "mixer": {"name": "gla", "norm_scope": "all", "gate_activation": "none", "scaled": False},
        "position": "none" if layers == "none" else {"name": "lrpe", "form": "cosine", "layers": layers},
        "decay": {"name": "official", "temperature": True},
        "feature_map": FEATURE_MAPS[config.linear_act_fun],
        "gate": True,
        **{place: {"name": "srmsnorm", "eps": 1e-6} for place in NORM_PLACES},
        "channel": "sglu",
        "tie_embeddings": config.tie_word_embeddings,
        "scale_embeddings": not config.no_scale_embedding,
        "init_std": config.init_std,
    }
    return check(ModelConfig, values, "model")


def from_ours(config: ModelConfig, vocab_size: int, tokens: Mapping[str, int | None]) -> dict[str, Any]:
    """config.json for a model of ours.

    Args:
        config: the model's.
        vocab_size: rows of the embedding.
        tokens: `pad_token_id`, `bos_token_id` and `eos_token_id`.

    Raises:
        RequestError: the layout cannot say what the configuration asks for.
    """
    position, depth = config.position, config.layers
    has_lrpe = position.name == "lrpe"
    all_layers = has_lrpe and position.parameters.get("layers") == "all"
    words = {ours: word for word, ours in reversed(FEATURE_MAPS.items())}
    official = OfficialConfig(
        vocab_size=vocab_size,
        decoder_embed_dim=config.width,
        decoder_layers=depth,
        decoder_attention_heads=config.heads,
        glu_dim=config.channel_width,
        linear_use_lrpe_list=[int(has_lrpe and (all_layers or layer == 0)) for layer in range(depth)],
        linear_act_fun=words.get(config.feature_map.name, "none"),
        hidden_dim=config.width,
        no_scale_embedding=not config.scale_embeddings,
        init_std=config.init_std,
        tie_word_embeddings=config.tie_embeddings,
        **tokens,  # type: ignore[arg-type]
    )
    expected = to_ours(official)
    for layer in range(depth):
        if config.mixer_of(layer) != expected.mixer_of(layer):
            raise _not_in_layout("mixer", config.mixer_of(layer), expected.mixer_of(layer))
    for key in ModelConfig.model_fields:
        given, wanted = getattr(config, key), getattr(expected, key)
        if given != wanted and key not in (*LABELS, "implementation", "mixer"):
            raise _not_in_layout(key, given, wanted)
    return {
        "architectures": [ARCHITECTURE],
        "auto_map": {
            "AutoConfig": "configuration_transnormer.TransnormerConfig",
            "AutoModelForCausalLM": f"modeling_transnormer.{ARCHITECTURE}",
        },
        "model_type": MODEL_TYPE,
        **official.model_dump(mode="json", exclude={"gate_dim"}),
        "add_bos_token": False,
        "use_cache": True,
    }


def _not_in_layout(key: str, given: Any, wanted: Any) -> RequestError:
    def text(value: Any) -> str:
        if not hasattr(value, "parameters"):
            return str(value).lower()
        inside = ", ".join(f"{name}: {str(item).lower()}" for name, item in value.parameters.items())
        return f"{value.name} ({inside})" if inside else value.name

    return RequestError(
        f"model.{key} = {text(given)} cannot be written in TransNormerLLM's layout: it has {text(wanted)}"
    )


class Stored(NamedTuple):
    """A tensor of the official layout."""

    name: str
    shape: tuple[int, ...]


def layout(config: ModelConfig, vocab_size: int) -> dict[str, list[Stored]]:
    """The official tensors that each of our parameters consists of, one above the other.

    The fused projection is in the order q, k, v, u in both. θ is (H, 1, d_h) there and (H, d_h) here; l1 and
    l2, of (f, d) each, are one matrix here. A tied output layer is no parameter.
    """
    width, inner, head_dim = config.width, config.channel_width, config.head_dim
    found = {"embedding.weight": [Stored(EMBEDDING, (vocab_size, width))]}
    for layer in range(config.layers):
        mixer, channel = f"model.layers.{layer}.token_mixer", f"model.layers.{layer}.channel_mixer"
        found |= {
            f"blocks.{layer}.{ours}": [Stored(*stored) for stored in theirs]
            for ours, theirs in {
                "token_mixer.projection.weight": [(f"{mixer}.qkvu_proj.weight", (4 * width, width))],
                "token_mixer.output.weight": [(f"{mixer}.out_proj.weight", (width, width))],
                "channel_mixer.up.weight": [
                    (f"{channel}.l1.weight", (inner, width)),
                    (f"{channel}.l2.weight", (inner, width)),
                ],
                "channel_mixer.down.weight": [(f"{channel}.l3.weight", (width, inner))],
            }.items()
        }
        position = config.position
        if position.name == "lrpe" and (layer == 0 or position.parameters["layers"] == "all"):
            theta = Stored(f"{mixer}.lrpe.theta", (config.heads, 1, head_dim))
            found[f"blocks.{layer}.token_mixer.position.theta"] = [theta]
    if not config.tie_embeddings:
        found["head.weight"] = [Stored(HEAD, (vocab_size, width))]
    return found
