"""From dotted diffs to a configuration: `resolve` lays them over a preset, lowest first.

resolve({"model.size": "1m", "training.steps": 100}, {"model.decay": "none"})
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from tnbench import registry
from tnbench.config import (
    LABELS,
    NORM_PLACES,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    check,
    shortened,
    shown,
)
from tnbench.errors import RequestError, nearest


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested and dotted mappings as one mapping of dotted keys: `{a: {b: 1}, c.d: 2}` -> `{a.b: 1, c.d: 2}`.

    Raises:
        RequestError: a key that is no text, or one key given twice.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not all(word and word.isprintable() for word in key.split(".")):
            raise RequestError(
                f"{shortened(key)} is no key; keys are words joined by dots, such as model.decay"
            )
        name = prefix + key
        items = flatten(value, name + ".") if isinstance(value, Mapping) and value else {name: value}
        for item, inner in items.items():
            if item in flat:
                raise RequestError(f"{shown(item)} is given twice")
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
    shown = shortened(text)
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


_OTHER_KINDS = {"schedule": "schedule", "corpus": "examples"}
"""Components outside of `model`, and their kinds."""


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
                _assign(other[section], rest, value, _OTHER_KINDS, section)
    return check(RunConfig, {"model": model, **other}, "")


def _known_tops(layers: Iterable[Mapping[str, Any]]) -> None:
    for layer in layers:
        for key in layer:
            section, dot, _ = key.partition(".")
            if section not in RunConfig.model_fields or not dot:
                sections = [f"{s}.{f}" for s, m in _SECTIONS.items() for f in m.model_fields] + ["model.norm"]
                near = nearest(key, sections) if dot else "keys begin with model., data. or training."
                bare = [name for name in sections if name.split(".")[1] == key]
                raise RequestError(
                    f"unknown key {shown(key)}, " + (f"did you mean {bare[0]}?" if bare else near)
                )


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

    for name, value in labels.items():
        if shown(value) != value:
            raise RequestError(f"model.{name} = {shortened(value)}: expected a name, as in tnbench list")
    if labels["convention"] not in ("v1", "v2"):
        raise RequestError(f"model.convention = {labels['convention']!r}: known: v1, v2")
    preset = registry.find("preset", labels["preset"], "model.preset")
    values: dict[str, Any] = {**preset.target(labels["size"], labels["convention"]), **labels}
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


def _assign(
    values: dict[str, Any], key: str, value: Any, kinds: Mapping[str, str], section: str = "model"
) -> None:
    """Set a dotted key. For a component, a name replaces it and another key sets one parameter."""
    top, _, inner = key.partition(".")
    if top not in kinds:
        if inner:
            raise RequestError(f"{section}.{shown(top)} is a single value and has no key {shown(inner)}")
        values[top] = value
    elif not inner:
        values[top] = list(value) if top == "mixer" and isinstance(value, list | tuple) else _as_spec(value)
    elif inner == "name":
        values[top] = registry.canonical(kinds[top], {"name": value})
    elif isinstance(values.get(top), list):
        raise RequestError(f"model.{top} is a list of {top}s: set it as a whole, not its key {shown(inner)}")
    else:
        values[top] = {**values.get(top, {}), inner: value}
