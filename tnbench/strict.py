"""Strict models, their mistakes told in one line, and the hash of a value."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tnbench.errors import RequestError, nearest, shortened, shown


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def _truths(annotation: Any) -> list[bool]:
    """Which of true and false a field of this type may hold."""
    if annotation is bool:
        return [False, True]
    return [item for item in get_args(annotation) if isinstance(item, bool)]


class Strict(BaseModel):
    """A frozen part of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, values: Any) -> Any:
        """Without this, `width: true` would be a width of 1."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field and value not in _truths(field.annotation):
                raise RequestError(f"{key} = {str(value).lower()}: true and false are no values for it")
        return values


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
        path = ".".join(shown(part) for part in first["loc"] if isinstance(part, str))
        text = str(raised)
        return (
            text
            if not path or text.startswith(("model.", "training", "data."))
            else f"{_join(where, path)}: {text}"
        )
    parts: list[str] = []
    owner: Any = model
    for part in first["loc"]:  # beyond the fields, pydantic adds list positions and members of a union
        parts.append(str(part))
        field = owner.model_fields.get(part)
        inner = _inner_model(field.annotation) if field else None
        if inner is None:
            break
        owner = inner
    path = _join(where, ".".join(map(shown, parts)))
    if first["type"] == "extra_forbidden":
        return f"unknown key {path}, {nearest(parts[-1], owner.model_fields)}"
    if first["type"] == "missing":
        return f"{path} is missing"
    if first["type"] == "literal_error":
        expected = first.get("ctx", {}).get("expected", "")
        known = [a or b.lower() for a, b in re.findall(r"'([^']*)'|\b(True|False)\b", expected)]
        return f"{path} = {shortened(first['input'])}: known: {', '.join(known)}"
    return f"{path} = {shortened(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be absent."""
    members = [member for member in get_args(annotation) if member is not type(None)] or [annotation]
    one = members[0] if len(members) == 1 else None
    return one if isinstance(one, type) and issubclass(one, BaseModel) else None


def _join(where: str, path: str) -> str:
    return f"{where}.{path}" if where and path else where or path
