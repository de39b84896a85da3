"""The variants that are compared: presets, diffs to one, or those of a suite, each as a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tnbench import registry
from tnbench.config import RunConfig, check
from tnbench.errors import RequestError, nearest, shown
from tnbench.resolution import flatten, parse_setting, resolve

PEERS = ("fla-retnet", "fla-retnet-logits")
"""Models of other packages, named like presets (`tnbench.profiling.models.peers`)."""
SHAPE_OF_PEERS = "transnormerllm"
"""The preset that gives peers their widths: with its shape, RetNet has the same number of parameters."""
OWN_OPTIONS = {
    "model.size": "--size",
    "model.preset": "--preset",
    "data.context": "--context",
    "training.batch_tokens": "--batch",
    "training.device": "--device",
    "training.precision": "--precision",
}
"""Keys that have an option of their own, by which the grid is laid."""


@dataclass(frozen=True)
class Variant:
    """One variant at one size."""

    name: str
    diff: dict[str, Any]
    """Dotted keys in which it differs from the first."""
    config: RunConfig
    peer: str = ""
    """Name of the foreign model, or empty: then it is ours."""

    @property
    def source(self) -> str:
        """`ours` or `peer`."""
        return "peer" if self.peer else "ours"

    def at(self, context: int, batch: int) -> Variant:
        """The same at another context and number of sequences.

        Raises:
            RequestError: micro-batches that do not fit them.
        """
        values = self.config.model_dump()
        values["data"]["context"] = context
        values["training"]["batch_tokens"] = context * batch
        return replace(self, config=check(RunConfig, values, ""))


@dataclass(frozen=True)
class Asked:
    """Which variants a command asks for, beside those of a suite."""

    presets: tuple[str, ...] = ()
    diffs: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Names and diffs to the first preset."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys for all."""


def asked(presets: Sequence[str], variants: Sequence[str], settings: Mapping[str, Any]) -> Asked:
    """Check the words of a command.

    Raises:
        RequestError: an unknown or repeated name, a diff that cannot be read, a key that has an option.
    """
    registry.load()
    known = [entry.name for entry in registry.entries("preset")]
    for name in presets:
        if name not in (*known, *PEERS):
            raise RequestError(f"--preset {shown(name)}: {nearest(name, [*known, *PEERS])}")
    found = tuple(map(parse_variant, variants))
    names = [*presets, *(name for name, _ in found)]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two variants are called {shown(name)}: give each a name of its own")
    for where, keys in (("--set", settings), *((f"--variant {name}", diff) for name, diff in found)):
        for key in flatten(keys):
            if key in OWN_OPTIONS and not (key == "model.preset" and where != "--set"):
                raise RequestError(f"{where} {key}: use {OWN_OPTIONS[key]}, which lays the grid")
    if found and presets and presets[0] in PEERS:
        raise RequestError(f"--variant differs from the first --preset, and {presets[0]} cannot be changed")
    return Asked(tuple(presets), found, dict(settings))


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME: key=value key=value` as a name and a diff.

    >>> parse_variant("no-gate: model.gate=false")
    ('no-gate', {'model.gate': False})

    Raises:
        RequestError: no name or one that cannot be printed, no diff, or a setting that cannot be read.
    """
    name, sign, rest = text.partition(":")
    words = re.split(r"\s+(?=[\w.]+=)", rest.strip()) if rest.strip() else []
    if not sign or not name.strip() or not name.isprintable() or not words:
        raise RequestError(
            f"--variant {shown(text)}: write NAME: KEY=VALUE …, as in 'no-gate: model.gate=false'"
        )
    diff: dict[str, Any] = {}
    for word in words:
        try:
            key, value = parse_setting(word)
        except RequestError as error:
            raise RequestError(str(error).replace("--set", f"--variant {name.strip()}:", 1)) from error
        if key in diff:
            raise RequestError(f"--variant {name.strip()}: {key} is given twice")
        diff[key] = value
    return name.strip(), diff


def resolved(asked: Asked, size: str, defaults: Mapping[str, Any]) -> list[Variant]:
    """Every variant at a size; the first is the base of the ratios.

    Args:
        defaults: dotted keys below all others: context, precision, device …

    Raises:
        RequestError: an unknown key, an impossible pair.
    """
    lower = {**defaults, "model.size": size}
    base = asked.presets[0]
    made = []
    for name in asked.presets:
        peer = name if name in PEERS else ""
        preset = {"model.preset": SHAPE_OF_PEERS if peer else name}
        config = resolve({**lower, **preset}, {}, pinned={} if peer else asked.settings)
        made.append(Variant(name, {} if name == base else {"model.preset": name}, config, peer))
    for name, diff in asked.diffs:
        try:
            config = resolve({**lower, "model.preset": base}, diff, pinned=asked.settings)
        except RequestError as error:
            raise RequestError(f"--variant {name}: {error}") from error
        made.append(Variant(name, flatten(diff), config))
    return made


def of_suite(
    found: Iterable[tuple[str, Mapping[str, Any], RunConfig]], pinned: Mapping[str, Any]
) -> list[Variant]:
    """A suite's variants under the settings of this command.

    Args:
        found: name, diff and configuration of each, the base first.
        pinned: values of the `training` section for all: device, precision, threads.
    """
    made = []
    for name, diff, config in found:
        values = config.model_dump()
        values["training"] |= {key.removeprefix("training."): value for key, value in pinned.items()}
        made.append(Variant(name, dict(diff), check(RunConfig, values, "")))
    return made
