"""The one registry: which components exist, what parameters they take, and where they come from.

A component is a class (or a function) registered under a kind and a name::

    @register("norm", "srmsnorm", reference="arXiv 2307.14995, eq. 8")
    class SRMSNorm(nn.Module):
        \"\"\"x / (||x|| / sqrt(d)), without weights.\"\"\"

        def __init__(self, width: int, *, eps: float = 1e-6): ...

The keyword-only arguments of the constructor are its typed parameters: a configuration may set them, and
they are checked (name, type, range) before anything is built. Positional arguments are what the composer
supplies (width, heads, layer, ...). The class stays a plain class, usable without the registry.

Other packages add components through the entry-point group ``tnbench.components``: the entry names a
module whose import registers them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from tnbench.errors import RequestError, nearest

KINDS = {
    "mixer": "token mixers: how tokens exchange information",
    "position": "positions: how order enters the model",
    "decay": "decays: the per-head factor λ of linear attention",
    "norm": "norms, for every place where the model has one",
    "feature_map": "feature maps φ on queries and keys",
    "channel": "channel mixers: the second half of a block",
    "preset": "presets: whole models, at several sizes",
    "schedule": "learning-rate schedules",
    "examples": "corpora of examples: rows of tokens of which some are scored",
}
ENTRY_POINT_GROUP = "tnbench.components"
BUILT_IN = ("tnbench.model", "tnbench.training.schedule", "tnbench.data.tasks", "tnbench.data.domains")

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered component."""

    kind: str
    name: str
    target: Callable[..., Any]
    reference: str
    parameters: type[BaseModel]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.target) or "").split("\n", 1)[0]

    def defaults(self) -> dict[str, Any]:
        """Parameter names and their default values."""
        return {name: field.default for name, field in self.parameters.model_fields.items()}


_entries: dict[tuple[str, str], Entry] = {}
_aliases: dict[tuple[str, str], dict[str, Any]] = {}
_hints: dict[tuple[str, str], str] = {}
_loaded = False


def register(kind: str, name: str, *, reference: str = "") -> Callable[[T], T]:
    """Class decorator: add a component under `kind` and `name`.

    Raises:
        ValueError: unknown kind, a name that is taken, no docstring, or a keyword-only parameter
            without annotation or default.
    """

    def add(target: T) -> T:
        if kind not in KINDS:
            raise ValueError(f"register: kind {kind!r} does not exist, {nearest(kind, KINDS)}")
        known = _entries.get((kind, name))
        if known and (known.target.__module__, known.target.__qualname__) != (
            target.__module__,
            target.__qualname__,
        ):
            raise ValueError(f"register: {kind} {name!r} is taken by {known.target.__module__}")
        if (kind, name) in _aliases:
            raise ValueError(f"register: {kind} {name!r} is a short name for {_aliases[kind, name]}")
        if not inspect.getdoc(target):
            raise ValueError(f"register: {kind} {name!r} has no docstring")
        _entries[kind, name] = Entry(kind, name, target, reference, _parameter_model(kind, name, target))
        return target

    return add


def alias(kind: str, name: str, stands_for: dict[str, Any]) -> None:
    """A short name for a component with parameters: resolved at once, so it never reaches a record.

    Raises:
        ValueError: the name is taken by a component or stands for something else.
    """
    if (kind, name) in _entries or _aliases.get((kind, name), stands_for) != stands_for:
        raise ValueError(f"alias: {kind} {name!r} is taken")
    _aliases[kind, name] = stands_for


def hint(kind: str, name: str, text: str) -> None:
    """What to say to someone who writes a `name` that is a combination of several keys."""
    _hints[kind, name] = text


def _parameter_model(kind: str, name: str, target: Callable[..., Any]) -> type[BaseModel]:
    constructor = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(constructor, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(constructor).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.name not in hints or parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f"register: parameter {parameter.name!r} of {kind} {name!r} needs a type and a default"
            )
        fields[parameter.name] = (hints[parameter.name], parameter.default)
    config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
    return create_model(f"{kind}:{name}", __config__=config, **fields)


def load() -> None:
    """Import the built-in components and those of installed plug-ins, once.

    Raises:
        RequestError: a plug-in cannot be imported.
    """
    global _loaded
    if _loaded:
        return
    for module in BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RequestError(f"plug-in {point.name} ({point.value}) cannot be loaded: {reason}") from error
    _loaded = True


def names(kind: str) -> list[str]:
    """Registered names of a kind, sorted."""
    load()
    return sorted(name for k, name in _entries if k == kind)


def aliases(kind: str) -> dict[str, dict[str, Any]]:
    """Short names of a kind and what each stands for."""
    load()
    return {name: target for (k, name), target in sorted(_aliases.items()) if k == kind}


def entries(kind: str | None = None) -> Iterator[Entry]:
    """All entries, or those of one kind, sorted by kind and name.

    Raises:
        RequestError: the kind does not exist.
    """
    load()
    if kind is not None and kind not in KINDS:
        raise RequestError(f"no kind {kind!r}: {nearest(kind, KINDS)}")
    for key in sorted(_entries):
        if kind is None or key[0] == kind:
            yield _entries[key]


def find(kind: str, name: str, where: str = "") -> Entry:
    """The entry of a name.

    Raises:
        RequestError: there is none; the message names the nearest one, prefixed by `where`.
    """
    load()
    entry = _entries.get((kind, name))
    if entry is None:
        prefix = f"{where}: " if where else ""
        if (kind, name) in _hints:
            raise RequestError(f"{prefix}{name!r} is not one {kind}: {_hints[kind, name]}")
        raise RequestError(f"{prefix}no {kind} {name!r}, {nearest(name, [*names(kind), *aliases(kind)])}")
    return entry


def canonical(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """`{name: mix}` -> `{name: lrpe, layers: first}`: the form in which a component is recorded."""
    load()
    name = spec.get("name")
    stands_for = _aliases.get((kind, name)) if isinstance(name, str) else None
    return {**stands_for, **{k: v for k, v in spec.items() if k != "name"}} if stands_for else spec
