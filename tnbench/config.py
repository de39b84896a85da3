"""What a run is: frozen, checked, and hashed. Unknown keys are refused at every depth.

A run's configuration has three parts, `model`, `data` and `training`, addressed by dotted keys
(`model.decay.temperature`) in suites and in `--set`. `resolve` lays such diffs over a preset and returns a
configuration in which every value is explicit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from tnbench import registry
from tnbench.errors import RequestError, nearest, shortened, shown
from tnbench.strict import Strict, canonical_json, check, digest

NORM_PLACES = ("token_norm", "channel_norm", "inner_norm", "final_norm")
LONGEST_NAME = 1000
"""Characters of a name or path; what is longer was never meant as one."""
NO_TOKENIZER = "none"
"""The tokenizer of examples, whose tokens stand for no text."""
LABELS = ("preset", "size", "convention")
"""Keys of `model` that say where its values come from; they are no part of a run's identity."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Component(BaseModel):
    """A registered component by name, its parameters beside it: `{name: official, temperature: true}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The component's typed parameters, all of them, by name."""
        return dict(self.model_extra or {})

    def __hash__(self) -> int:
        return hash(canonical_json(self.model_dump(mode="json")))

    def __str__(self) -> str:
        """`official (temperature = true)`: the name, and the parameters as JSON."""
        values = self.model_dump(mode="json", exclude={"name"})
        text = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return f"{self.name} ({text})" if text else self.name


def _parsed(kind: str, value: Any) -> dict[str, Any]:
    """A component, a name or `{name: ..., parameter: ...}`, checked against the registry."""
    if isinstance(value, Component):
        value = {"name": value.name, **value.parameters}
    if value is None:
        value = "none"
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or shown(value.get("name")) != value.get("name"):
        raise RequestError(f"expected a name or {{name: …}}, got {shortened(value)}")
    value = registry.canonical(kind, dict(value))
    entry = registry.find(kind, value["name"])
    given = _but_name(value)
    known = entry.parameters.model_fields
    for key in given:
        if key not in known:
            rest = nearest(str(key), known) if known else "it takes none"
            raise RequestError(f"{kind} {entry.name} has no parameter {shortened(key)}, {rest}")
    checked = check(entry.parameters, given, f"{kind} {entry.name}")
    return {"name": entry.name, **checked.model_dump(mode="json")}


def _registered(kind: str) -> BeforeValidator:
    """Reads a component, a name or `{name: ..., parameter: ...}`, and checks it against the registry."""
    return BeforeValidator(lambda value: _parsed(kind, value))


def _corpus(value: Any) -> Any:
    """A registered corpus of examples, with its parameters, as a component; a text by its name alone."""
    if isinstance(value, Component):
        value = {"name": value.name, **value.parameters}
    known = registry.names("examples")
    if isinstance(value, str) and value in known:
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if name in known:
        return _parsed("examples", value)
    if len(value) == 1 and "name" in value:
        return name
    more = shown(next(key for key in value if key != "name"))
    if "name" not in value:
        raise RequestError(f"parameter {more} without a name, {nearest('', known)}")
    raise RequestError(
        f"{shown(name)} takes no parameter {more}: it is no corpus of examples, {nearest(str(name), known)}"
    )


def _but_name(component: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in component.items() if key != "name"}


def _mixers(value: Any) -> Any:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise RequestError("the list of mixers is empty")
    return tuple(items)


class ModelConfig(Strict):
    """The model: sizes and components."""

    preset: str = "transnormerllm"
    """The preset that the values come from."""
    size: str = "1m"
    """The preset's size: about the number of non-embedding parameters."""
    convention: Literal["v1", "v2"] = "v2"
    """Which version of the TransNormerLLM paper the preset follows."""
    width: Annotated[int, Field(ge=1, le=2**20)]
    """Model dimension d."""
    layers: Annotated[int, Field(ge=1, le=256)]
    """Number of blocks L."""
    heads: Annotated[int, Field(ge=1, le=1024)]
    """Attention heads H; the head dim is width / heads."""
    channel_width: Annotated[int, Field(ge=1, le=2**24)]
    """Inner dimension of the channel mixer."""
    mixer: Annotated[tuple[Annotated[Component, _registered("mixer")], ...], BeforeValidator(_mixers)]
    """Token mixer; a list splits the layers, from the bottom, into as many spans of equal length."""
    position: Annotated[Component, _registered("position")]
    """How order enters, apart from decay."""
    decay: Annotated[Component, _registered("decay")]
    """The factor λ per head and layer."""
    feature_map: Annotated[Component, _registered("feature_map")]
    """φ on queries and keys."""
    gate: bool
    """Whether the token mixer's output is multiplied by a linear gate U."""
    token_norm: Annotated[Component, _registered("norm")]
    """Norm in front of the token mixer."""
    channel_norm: Annotated[Component, _registered("norm")]
    """Norm in front of the channel mixer."""
    inner_norm: Annotated[Component, _registered("norm")]
    """Norm on the output of linear attention."""
    final_norm: Annotated[Component, _registered("norm")]
    """Norm in front of the output layer."""
    channel: Annotated[Component, _registered("channel")]
    """Channel mixer."""
    implementation: Literal["auto", "triton", "quadratic", "chunked", "recurrent", "original"] = "auto"
    """How the linear-attention operator is computed."""
    tie_embeddings: bool = True
    """Whether the output layer shares the embedding matrix."""
    scale_embeddings: bool = True
    """Whether embeddings are multiplied by sqrt(width)."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.width % self.heads:
            raise RequestError(
                f"model.heads = {self.heads} does not divide model.width = {self.width}; "
                f"{_near_divisor(self.width, self.heads)} would"
            )
        if len(self.mixer) > self.layers:
            raise RequestError(
                f"model.mixer lists {len(self.mixer)} mixers for {self.layers} layers; "
                f"list at most {self.layers}"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.width // self.heads

    def mixer_of(self, layer: int) -> Component:
        """The mixer of a layer, counted from 0 at the bottom."""
        return self.mixer[layer * len(self.mixer) // self.layers]


def _near_divisor(width: int, heads: int) -> int:
    """The divisor of `width` nearest to `heads`, or 1 where none is within reach of any head count in use."""
    if heads > width:
        return width
    near = (h for gap in range(min(heads, 10_000)) for h in (heads - gap, heads + gap) if width % h == 0)
    return next(near, 1)


class DataConfig(Strict):
    """What the model reads: text cut into tokens and windows, or rows of examples."""

    corpus: Annotated[
        Annotated[str, Field(max_length=LONGEST_NAME)] | Component, BeforeValidator(_corpus)
    ] = "state-of-the-union"
    """A shipped corpus, a text or JSONL file, a folder of them, or `hf:REPOSITORY[:CONFIG]`; or a registered
    corpus of examples with its parameters."""
    tokenizer: Annotated[str, Field(max_length=LONGEST_NAME)] = "bytes"
    """`bytes`, `bpe-N` (trained on the training split), or a Hugging Face tokenizer folder or `hf:NAME`;
    `none` for examples."""
    context: Annotated[int, Field(ge=2, le=2**30)] = 256
    """Tokens in a training window; for examples, those of a row."""
    text_field: Annotated[str, Field(max_length=LONGEST_NAME)] = "text"
    """The field of a JSONL record or data set row that holds the text."""

    @model_validator(mode="before")
    @classmethod
    def _of_examples(cls, values: Any) -> Any:
        """Examples have tokens and a length of their own."""
        found = _corpus(values.get("corpus")) if isinstance(values, Mapping) else None
        if not isinstance(found, dict):
            return values
        corpus = registry.find("examples", found["name"]).target(**_but_name(found))
        own = {"context": corpus.context, "tokenizer": NO_TOKENIZER}
        for key, value in own.items():
            if values.get(key, value) != value:
                raise RequestError(
                    f"data.{key} = {shortened(values[key])}: {found['name']} has its own, {value}; "
                    f"leave the key out"
                )
        return {**values, **own}


class TrainingConfig(Strict):
    """The optimisation, and where it runs."""

    steps: Annotated[int, Field(ge=1, le=10**10)] | None = None
    """Optimizer steps; give this or `tokens`."""
    tokens: Annotated[int, Field(ge=1, le=10**16)] | None = None
    """Training tokens; give this or `steps`."""
    batch_tokens: Annotated[int, Field(ge=1, le=2**40)] = 4096
    """Tokens per optimizer step, over all micro-batches."""
    micro_batch_tokens: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Tokens per forward and backward pass; less than `batch_tokens` accumulates gradients."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate."""
    schedule: Annotated[Component, _registered("schedule")] = Field(
        default=cast(Component, "wsd"), validate_default=True
    )
    """Shape of the learning rate after the warm-up."""
    warmup: NonNegativeFloat = 0.05
    """Warm-up: a fraction of the steps if below 1, else a number of steps."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW weight decay of matrices (vectors and embeddings have none)."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW β1."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW β2."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 leaves gradients as they are."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: activations, the residual stream too, in bf16; weights, optimizer and statistics in fp32.
    `fp16`: likewise, with a loss scale."""
    loss: Literal["auto", "logits", "chunked", "liger"] = "auto"
    """Cross entropy over all logits at once, in chunks, or by Liger's kernels; `auto`: in chunks where the
    logits are large and on a GPU."""
    compile: Literal[False, True, "blocks"] = False
    """Whether torch.compile is applied to the whole of model and loss, or to each block."""
    activation_checkpointing: bool = False
    """Whether blocks recompute their activations in the backward pass."""
    deterministic: bool = False
    """Whether a GPU takes kernels that repeat to the bit, some of them slower; a CPU always does."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the run takes place."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of the run; part of the configuration, because results depend on it in the last bits."""
    evaluations: Annotated[int, Field(ge=0, le=10_000)] = 8
    """Points of the validation curve on the tune-validation split, the last one at the end."""
    checkpoint_every: NonNegativeFloat = 30.0
    """Seconds of training between checkpoints."""
    init_seed: Seed = 0
    """Seed of the initial weights."""
    data_seed: Seed = 0
    """Seed of the data order."""

    @model_validator(mode="after")
    def _amount(self) -> TrainingConfig:
        if self.warmup > 1 and self.warmup % 1:
            raise RequestError(f"training.warmup = {self.warmup:g}: give a fraction below 1 or whole steps")
        if (self.steps is None) == (self.tokens is None):
            raise RequestError("training: give exactly one of training.steps and training.tokens")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        if self.steps is not None:
            return self.steps
        return max(1, cast(int, self.tokens) // self.batch_tokens)

    @property
    def warmup_steps(self) -> int:
        """Steps during which the learning rate rises."""
        return round(self.warmup * self.total_steps) if self.warmup < 1 else int(self.warmup)


class RunConfig(Strict):
    """Everything that a run's numbers depend on, apart from the source code and the data themselves."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _windows(self) -> RunConfig:
        context, training = self.data.context, self.training
        for key, tokens in (
            ("batch_tokens", training.batch_tokens),
            ("micro_batch_tokens", training.micro_batch_tokens or training.batch_tokens),
        ):
            if tokens % context:
                fit = max(1, (tokens + context // 2) // context) * context
                raise RequestError(
                    f"training.{key} = {tokens} is no multiple of data.context = {context}; {fit} would be"
                )
        if training.batch_tokens % (training.micro_batch_tokens or training.batch_tokens):
            raise RequestError(
                f"training.micro_batch_tokens = {training.micro_batch_tokens} does not divide "
                f"training.batch_tokens = {training.batch_tokens}"
            )
        if training.warmup_steps > training.total_steps:
            raise RequestError(
                f"training.warmup = {training.warmup:g} steps exceeds the run's {training.total_steps} steps"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What is hashed: all values but labels and those that cannot change a number."""
        dump = self.model_dump(mode="json")
        for label in LABELS:
            del dump["model"][label]
        dump["model"]["mixer"] = [
            self.model.mixer_of(layer).model_dump(mode="json") for layer in range(self.model.layers)
        ]
        dump["data"] = {"context": self.data.context}  # the text and its tokens enter by their hash
        del dump["training"]["checkpoint_every"]
        del dump["training"]["tokens"]
        dump["training"]["steps"] = self.training.total_steps
        return dump


def run_id(config: RunConfig, data_hash: str, source_hash: str) -> str:
    """Names a run: its resolved configuration with both seeds, its data, and the code behind its numbers."""
    return digest({"config": config.identity(), "data": data_hash, "source": source_hash})
