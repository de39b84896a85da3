"""What a run is: frozen, checked, and hashed. Unknown keys are refused at every depth.

A run's configuration has three parts, `model`, `data` and `training`, addressed by dotted keys
(`model.decay.temperature`) in suites and in `--set`. `resolve` lays such diffs over a preset and returns a
configuration in which every value is explicit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tnbench import registry
from tnbench.errors import RequestError, nearest

NORM_PLACES = ("token_norm", "channel_norm", "inner_norm", "final_norm")
LABELS = ("preset", "size", "convention")
"""Keys of `model` that say where its values come from; they are no part of a run's identity."""


class Strict(BaseModel):
    """A frozen part of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Component(BaseModel):
    """A registered component by name, with its parameters beside it: `{name: official, temperature: true}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The component's typed parameters, all of them, by name."""
        return dict(self.model_extra or {})

    def __hash__(self) -> int:
        return hash(canonical_json(self.model_dump(mode="json")))


def _component(kind: str) -> Any:
    """The field type of a component: a name, or `{name: ..., parameter: ...}`, checked against the registry."""

    def parse(value: Any) -> dict[str, Any]:
        if isinstance(value, Component):
            value = {"name": value.name, **value.parameters}
        if value is None:
            value = "none"
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise RequestError(f"expected a name or {{name: …}}, got {_short(value)}")
        value = registry.canonical(kind, dict(value))
        entry = registry.find(kind, value["name"])
        given = {key: item for key, item in value.items() if key != "name"}
        known = entry.parameters.model_fields
        for key in given:
            if key not in known:
                rest = nearest(str(key), known) if known else "it takes none"
                raise RequestError(f"{kind} {entry.name} has no parameter {key!r}, {rest}")
        checked = check(entry.parameters, given, f"{kind} {entry.name}")
        return {"name": entry.name, **checked.model_dump(mode="json")}

    return Annotated[Component, BeforeValidator(parse)]


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
    width: PositiveInt
    """Model dimension d."""
    layers: PositiveInt
    """Number of blocks L."""
    heads: PositiveInt
    """Attention heads H; the head dim is width / heads."""
    channel_width: PositiveInt
    """Inner dimension of the channel mixer."""
    mixer: Annotated[tuple[_component("mixer"), ...], BeforeValidator(_mixers)]
    """Token mixer; a list splits the layers, from the bottom, into as many spans of equal length."""
    position: _component("position")
    """How order enters, apart from decay."""
    decay: _component("decay")
    """The factor λ per head and layer."""
    feature_map: _component("feature_map")
    """φ on queries and keys."""
    gate: bool
    """Whether the token mixer's output is multiplied by a linear gate U."""
    token_norm: _component("norm")
    """Norm in front of the token mixer."""
    channel_norm: _component("norm")
    """Norm in front of the channel mixer."""
    inner_norm: _component("norm")
    """Norm on the output of linear attention."""
    final_norm: _component("norm")
    """Norm in front of the output layer."""
    channel: _component("channel")
    """Channel mixer."""
    implementation: Literal["auto", "quadratic", "chunked", "recurrent", "original"] = "auto"
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
                f"model.mixer lists {len(self.mixer)} mixers for {self.layers} layers; list at most {self.layers}"
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
    """The text and how it is cut into tokens and windows."""

    corpus: str = "state-of-the-union"
    """A shipped corpus, a text or JSONL file, a folder of them, or `hf:REPOSITORY[:CONFIG]`."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe-N` (trained on the training split), or a Hugging Face tokenizer folder or `hf:NAME`."""
    context: Annotated[int, Field(ge=2)] = 256
    """Tokens in a training window."""
    text_field: str = "text"
    """The field of a JSONL record or data set row that holds the text."""


class TrainingConfig(Strict):
    """The optimisation, and where it runs."""

    steps: PositiveInt | None = None
    """Optimizer steps; give this or `tokens`."""
    tokens: PositiveInt | None = None
    """Training tokens; give this or `steps`."""
    batch_tokens: PositiveInt = 4096
    """Tokens per optimizer step, over all micro-batches."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward and backward pass; less than `batch_tokens` accumulates gradients."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate."""
    schedule: _component("schedule") = Field(default=cast(Component, "wsd"), validate_default=True)
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
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs the forward pass under autocast; weights and optimizer stay in fp32."""
    compile: bool = False
    """Whether torch.compile is applied to the model."""
    activation_checkpointing: bool = False
    """Whether blocks recompute their activations in the backward pass."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the run takes place."""
    threads: PositiveInt = 1
    """CPU threads of the run; part of the configuration, because results depend on it in the last bits."""
    evaluations: NonNegativeInt = 8
    """Points of the validation curve on the tune-validation split, the last one at the end."""
    checkpoint_every: NonNegativeFloat = 30.0
    """Seconds of training between checkpoints."""
    init_seed: NonNegativeInt = 0
    """Seed of the initial weights."""
    data_seed: NonNegativeInt = 0
    """Seed of the data order."""

    @model_validator(mode="after")
    def _amount(self) -> TrainingConfig:
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
        dump["data"] = {"context": self.data.context}  # the text and its tokens enter by their hash
        del dump["training"]["checkpoint_every"]
        del dump["training"]["tokens"]
        dump["training"]["steps"] = self.training.total_steps
        return dump


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def run_id(config: RunConfig, data_hash: str, source_hash: str) -> str:
    """Names a run: its resolved configuration with both seeds, its data, and the code behind its numbers."""
    return digest({"config": config.identity(), "data": data_hash, "source": source_hash})


def check(model: type[BaseModel], values: Mapping[str, Any], where: str) -> Any:
    """Validate `values`, turning pydantic's report into one line about the first mistake.

    Raises:
        RequestError: an unknown key, a missing key, a wrong type or a value out of range.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise RequestError(_one_line(error, model, where)) from error


def _one_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    # an unknown key first: it is often why another is missing
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    raised = (first.get("ctx") or {}).get("error")
    if isinstance(raised, RequestError):
        path = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        text = str(raised)
        return text if not path or text.startswith(("model.", "training", "data.")) else f"{_join(where, path)}: {text}"
    parts: list[str] = []
    owner: Any = model
    for part in first["loc"]:  # beyond the fields, pydantic adds list positions and members of a union
        parts.append(str(part))
        field = owner.model_fields.get(part)
        inner = field and field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        owner = inner
    path = _join(where, ".".join(parts))
    if first["type"] == "extra_forbidden":
        return f"unknown key {path}, {nearest(parts[-1], owner.model_fields)}"
    if first["type"] == "missing":
        return f"{path} is missing"
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return f"{path} = {_short(first['input'])}: known: {', '.join(known)}"
    return f"{path} = {_short(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _join(where: str, path: str) -> str:
    return f"{where}.{path}" if where and path else where or path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested and dotted mappings as one mapping of dotted keys: `{a: {b: 1}, c.d: 2}` -> `{a.b: 1, c.d: 2}`.

    Raises:
        RequestError: a key that is no text, or one key given twice.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not all(word and word.isprintable() for word in key.split(".")):
            raise RequestError(f"{key!r} is no key; keys are words joined by dots, such as model.decay")
        name = prefix + key
        items = flatten(value, name + ".") if isinstance(value, Mapping) and value else {name: value}
        for item, inner in items.items():
            if item in flat:
                raise RequestError(f"{item} is given twice")
            flat[item] = inner
    return flat


_INTEGER = re.compile(r"[-+]?[0-9]{1,100}(_[0-9]{1,100})*", re.ASCII)
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", re.ASCII)


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` from the command line; the value is read as YAML.

    Raises:
        RequestError: no `=`, no key, or a value that is not YAML.
    """
    key, sign, value = text.partition("=")
    shown = _short(text)
    if not sign or not key.strip():
        raise RequestError(f"--set {shown}: expected key=value, for example model.size=1m")
    if _INTEGER.fullmatch(value.strip()):
        return key.strip(), int(value)
    if _NUMBER.fullmatch(value.strip()):  # YAML 1.1 reads 1e-3 as text
        number = float(value)
        return key.strip(), int(number) if number.is_integer() and "." not in value else number
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise RequestError(f"--set {shown}: the value is not valid YAML") from error


def _component_kinds() -> dict[str, str]:
    kinds = {"mixer": "mixer", "position": "position", "decay": "decay", "feature_map": "feature_map"}
    return {**kinds, **dict.fromkeys(NORM_PLACES, "norm"), "channel": "channel"}


def resolve(*layers: Mapping[str, Any], pinned: Mapping[str, Any] | None = None) -> RunConfig:
    """Lay diffs over a preset, lowest first, and check the result.

    Setting a component's name drops the parameters that lower layers gave it. Setting `model.preset` drops
    every `model.` key of lower layers but `model.size`; `pinned` keys (from the command line) survive that,
    and give way only to the last layer.

    Raises:
        RequestError: anything that is wrong, in one line.
    """
    registry.load()
    flat = [flatten(layer) for layer in layers]
    command_line = flatten(pinned or {})
    _known_tops([*flat, command_line])
    *lower, top = flat or [{}]
    ordered = [*lower, command_line, top]

    model = _model_values(ordered, keep=command_line)
    schedule = _as_spec(TrainingConfig.model_fields["schedule"].default)
    other: dict[str, dict[str, Any]] = {"data": {}, "training": {"schedule": schedule}}
    for layer in ordered:
        if {"training.steps", "training.tokens"} & layer.keys():  # either replaces both of lower layers
            other["training"] = {k: v for k, v in other["training"].items() if k not in ("steps", "tokens")}
        for key, value in _names_first(layer):
            section, _, rest = key.partition(".")
            if section in other:
                _assign(other[section], rest, value, {"schedule": "schedule"})
    return check(RunConfig, {"model": model, **other}, "")


def _known_tops(layers: Iterable[Mapping[str, Any]]) -> None:
    for layer in layers:
        for key in layer:
            section, dot, _ = key.partition(".")
            if section not in RunConfig.model_fields or not dot:
                sections = [f"{s}.{f}" for s, m in _SECTIONS.items() for f in m.model_fields] + ["model.norm"]
                near = nearest(key, sections) if dot else "keys begin with model., data. or training."
                bare = [name for name in sections if name.split(".")[1] == key]
                raise RequestError(f"unknown key {key}, " + (f"did you mean {bare[0]}?" if bare else near))


_SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}


def _model_values(layers: list[dict[str, Any]], keep: Mapping[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = {name: ModelConfig.model_fields[name].default for name in LABELS}
    applied: list[dict[str, Any]] = []
    for layer in layers:
        mine = {key.removeprefix("model."): v for key, v in layer.items() if key.startswith("model.")}
        if "preset" in mine:
            survivors = {key.removeprefix("model.") for key in keep}
            applied = [{k: v for k, v in old.items() if k in survivors} for old in applied]
        labels.update({name: mine[name] for name in LABELS if name in mine})
        applied.append({key: value for key, value in mine.items() if key not in LABELS})

    if labels["convention"] not in ("v1", "v2"):
        raise RequestError(f"model.convention = {labels['convention']!r}: known: v1, v2")
    preset = registry.find("preset", str(labels["preset"]), "model.preset")
    values: dict[str, Any] = {**preset.target(str(labels["size"]), labels["convention"]), **labels}
    values["size"] = str(labels["size"])
    kinds = _component_kinds()
    for name, kind in kinds.items():
        if not isinstance(values[name], list):
            values[name] = registry.canonical(kind, _as_spec(values[name]))
    for layer in applied:
        norms = {key: value for key, value in _names_first(layer) if key.split(".")[0] == "norm"}
        places = [place for place in NORM_PLACES if values[place].get("name") != "none"]
        for key, value in norms.items():
            for place in places:
                _assign(values, place + key.removeprefix("norm"), value, kinds)
        for key, value in _names_first(layer):
            if key not in norms:
                _assign(values, key, value, kinds)
    return values


def _names_first(layer: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A component's name resets its parameters, so it has to be laid before them."""
    return sorted(layer.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".name")))


def _as_spec(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return {"name": "none" if value is None else value}


def _assign(values: dict[str, Any], key: str, value: Any, kinds: Mapping[str, str]) -> None:
    """Set a dotted key. For a component, a name replaces it and another key sets one parameter."""
    top, _, inner = key.partition(".")
    if top not in kinds:
        if inner:
            raise RequestError(f"{top} is a single value and has no key {inner}")
        values[top] = value
    elif not inner:
        values[top] = list(value) if top == "mixer" and isinstance(value, list | tuple) else _as_spec(value)
    elif inner == "name":
        values[top] = registry.canonical(kinds[top], {"name": value})
    elif isinstance(values.get(top), list):
        raise RequestError(f"model.{top} is a list of {top}s: set it as a whole, not its key {inner}")
    else:
        values[top] = {**values.get(top, {}), inner: value}
