"""The registry: what may be registered, plug-ins, and what every entry owes its users.

`compositions` and what belongs to it is how the tests of models reach whatever is registered, now or later.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tnbench import registry
from tnbench.config import ModelConfig
from tnbench.errors import RequestError
from tnbench.model import LanguageModel, check_composition
from tnbench.model.mixers.base import PARTS
from tnbench.registry import Entry, alias, register
from tnbench.resolution import resolve

torch.set_num_threads(1)

SHAPES = ((24, 4), (24, 2), (32, 4))
"""(width, heads): head dims 6, 12 and 8."""
BARE: dict[str, Any] = {f"model.{part}": "none" for part in PARTS if part != "gate"} | {"model.gate": False}
KIND_OF = {"position": "position", "decay": "decay", "feature_map": "feature_map", "inner_norm": "norm"}
ENTRIES = list(registry.entries())


def variants(entry: Entry) -> list[dict[str, Any]]:
    """The entry with its defaults, and with each other value of each of its choices; integers also at 3."""
    found: list[dict[str, Any]] = [{"name": entry.name}]
    for name, field in entry.parameters.model_fields.items():
        values: list[Any] = []
        if typing.get_origin(field.annotation) is Literal:
            values = list(typing.get_args(field.annotation))
        elif field.annotation is bool:
            values = [True, False]
        elif field.annotation is int:
            values = [3]
        found += [{"name": entry.name, name: value} for value in values if value != field.default]
    return found


def configured(shape: int = 0, **parts: Any) -> ModelConfig:
    """Two layers of a model that has nothing but what `parts` says, in one of SHAPES."""
    width, heads = SHAPES[shape % len(SHAPES)]
    sizes = {"model.width": width, "model.heads": heads, "model.layers": 2, "model.channel_width": 20}
    given = {f"model.{key}": value for key, value in parts.items()}
    return resolve({"training.steps": 1, "model.init_std": 0.3}, {**sizes, **BARE, **given}).model


def legal(shape: int = 0, **parts: Any) -> ModelConfig | None:
    """The configuration, with the first feature map and the first of SHAPES that its mixer takes, or None."""
    for feature_map in [parts["feature_map"]] if "feature_map" in parts else ["none", "1+elu"]:
        given = {**parts, "feature_map": feature_map}
        with contextlib.suppress(RequestError):
            check_composition(configured(shape, **given))
            for turned in range(shape, shape + len(SHAPES)):
                with contextlib.suppress(RequestError):
                    LanguageModel(config := configured(turned, **given), 3, 3)
                    return config
    return None


@cache
def compositions() -> dict[str, ModelConfig]:
    """Every mixer with every position and decay, every part and variant of a part once with every mixer.

    What stands beside a mixer, channel mixers and the norms in front, comes once, with the first of them.
    """
    found: dict[str, ModelConfig] = {}

    def add(**parts: Any) -> bool:
        config = legal(len(found), **parts)
        if config is not None:
            words = (
                "/".join(map(str, p.values())) if isinstance(p, dict) else str(p) for p in parts.values()
            )
            found[" ".join(words)] = config
        return config is not None

    mixers = list(registry.entries("mixer"))
    for mixer, position, decay in itertools.product(mixers, *map(registry.entries, ("position", "decay"))):
        add(mixer=mixer.name, position=position.name, decay=decay.name)
    for mixer in mixers:
        for own in variants(mixer):
            add(mixer=own)
            add(mixer=own, gate=True, inner_norm="layernorm")
            add(mixer=own, inner_norm="rmsnorm")
        for part, kind in KIND_OF.items():
            paired = part in ("position", "decay")  # with their defaults, these are in the product above
            for entry in registry.entries(kind):
                for spec in variants(entry)[paired:]:
                    any(add(mixer=own, **{part: spec}) for own in variants(mixer))
    for key, kind in (("channel", "channel"), ("norm", "norm")):
        for spec in (spec for entry in registry.entries(kind) for spec in variants(entry)):
            add(mixer=mixers[0].name, **{key: spec})
    return found


# Registration


class Plain(nn.Module):
    """A norm that may be registered."""

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations that end with the test."""
    registry.load()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


@pytest.mark.usefixtures("scratch")
def test_registered_is_listed_and_configurable():
    register("norm", "plain")(Plain)
    assert "plain" in registry.names("norm")
    assert configured(token_norm={"name": "plain", "eps": 0.5}).token_norm.parameters == {"eps": 0.5}


@pytest.mark.usefixtures("scratch")
def test_what_may_not_be_registered():
    with pytest.raises(ValueError, match="kind 'nrom' does not exist, did you mean norm"):
        register("nrom", "plain")(Plain)
    with pytest.raises(ValueError, match=r"'srmsnorm' is taken by tnbench\.model\.norms"):
        register("norm", "srmsnorm")(Plain)
    with pytest.raises(ValueError, match="'retention' is a short name"):
        register("mixer", "retention")(Plain)
    with pytest.raises(ValueError, match="'rmsnorm' is taken"):
        alias("norm", "rmsnorm", {"name": "srmsnorm"})
    with pytest.raises(ValueError, match="'mix' is taken"):
        alias("position", "mix", {"name": "rope"})

    def silent(width: int) -> None: ...

    def untyped(width: int, *, eps=1e-6) -> None:
        """Nothing."""

    def demanding(width: int, *, eps: float) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="no docstring"):
        register("norm", "silent")(silent)
    for target in (untyped, demanding):
        with pytest.raises(ValueError, match="'eps' of norm 'plain' needs a type and a default"):
            register("norm", "plain")(target)
    assert "plain" not in registry.names("norm")


PLUGIN = '''
from torch import nn
from tnbench.registry import register

@register("norm", "{name}")
class Halved(nn.Module):
    """x / 2, or by another factor."""

    def __init__(self, width: int, *, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x
'''

USE = """
import sys
import torch
from tnbench import registry
from tnbench.resolution import resolve
from tnbench.errors import RequestError
from tnbench.model import LanguageModel

for folder in sys.argv[1:]:  # each is installed for a moment
    sys.path.insert(0, folder)
    try:
        print([entry.summary for entry in registry.entries("norm") if entry.name == "halved"][0])
    except RequestError as refusal:
        print(refusal)
    sys.path.remove(folder)
diff = {"training.steps": 1, "model.size": "0.1m", "model.norm": "halved", "model.norm.factor": 0.25}
model = LanguageModel(resolve(diff).model, 8, 8)
print(float(model.final_norm(torch.ones(1))))
"""

BROKEN = {
    "raise OSError('two\\nlines')": "OSError: two lines",
    "import a_module_that_is_not_there": "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    "def broken(:": "SyntaxError: invalid syntax",
    PLUGIN.format(name="rmsnorm"): "ValueError: register: norm 'rmsnorm' is taken by tnbench.model.norms",
}


def test_plugins_are_found_and_broken_ones_told_in_one_line(tmp_path: Path):
    """Real packages with entry points, in a fresh process: four that are broken, then one that works."""
    for number, source in enumerate([*BROKEN, PLUGIN.format(name="halved")]):
        info = tmp_path / str(number) / f"plugin{number}-1.0.dist-info"
        info.mkdir(parents=True)
        (info.parent / f"plugin{number}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\nhalved = plugin{number}\n")
    folders = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", USE, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *refusals, summary, value = done.stdout.splitlines()
    for number, (refusal, reason) in enumerate(zip(refusals, BROKEN.values(), strict=True)):
        assert refusal.startswith(f"plug-in halved (plugin{number}) cannot be loaded: {reason}")
    assert (summary, value) == ("x / 2, or by another factor.", "0.25")


def test_unknown_names_and_kinds():
    with pytest.raises(RequestError, match=r"^here: no norm 'srmsnrom', did you mean srmsnorm"):
        registry.find("norm", "srmsnrom", "here")
    with pytest.raises(RequestError, match="no kind 'norms': did you mean norm"):
        list(registry.entries("norms"))


# Every entry


def beyond(bounds: list[Any]) -> list[float]:
    """The values next to an interval's bounds, outside of it."""
    off = {"gt": 0, "lt": 0, "ge": -1, "le": 1}
    return [getattr(b, name) + step for b in bounds for name, step in off.items() if hasattr(b, name)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}:{entry.name}")
class TestEveryEntry:
    def test_says_what_it_is(self, entry: Entry):
        assert entry.summary.endswith((".", ")", ":"))
        assert len(entry.summary) < 150
        assert entry.name == entry.name.lower()
        # What is not from a paper or a project is too plain to need a source.
        plain = ("none", "sigmoid", "fixed", "learned", "constant", "all-layers")
        assert entry.reference or entry.name in plain

    def test_defaults_are_valid(self, entry: Entry):
        checked = entry.parameters.model_validate(entry.defaults())
        assert checked == entry.parameters()
        keyword_only = [
            p for p in inspect.signature(entry.target).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        assert {p.name: p.default for p in keyword_only} == entry.defaults()

    def test_mistaken_parameters_are_refused(self, entry: Entry):
        with pytest.raises(ValidationError):
            entry.parameters.model_validate({"no_such_parameter": 1})
        for name, field in entry.parameters.model_fields.items():
            wrong: list[Any] = ["no such value", {}, None]
            if field.annotation in (int, float):
                wrong += [float("nan"), float("inf"), *beyond(field.metadata)]
                assert len(wrong) > 5, f"{name} has no bound"
            for value in wrong:
                with pytest.raises(ValidationError):
                    entry.parameters.model_validate({name: value})


def test_every_component_and_variant_is_in_a_composition():
    """So that none escapes the tests that go through `compositions`."""
    configs = list(compositions().values())
    for part, kind in {"mixer": "mixer", **KIND_OF}.items():
        for spec in (spec for entry in registry.entries(kind) for spec in variants(entry)):
            used = [c.mixer[0] if part == "mixer" else getattr(c, part) for c in configs]
            assert any({"name": u.name, **u.parameters}.items() >= spec.items() for u in used), (part, spec)


# Refusals


def refusals() -> Iterator[tuple[str, str, str]]:
    for mixer in registry.entries("mixer"):
        for part, reason in mixer.target.refuses.items():  # type: ignore[attr-defined]
            yield mixer.name, part, reason


@pytest.mark.parametrize(("mixer", "part", "reason"), list(refusals()))
def test_a_refusal_is_one_line_with_its_reason(mixer: str, part: str, reason: str):
    """Declared refusals hold for every component of the part, and name the key to change."""
    config = legal(mixer=mixer)
    assert config is not None
    values = (
        [True] if part == "gate" else [n for n in registry.names(KIND_OF[part]) if n not in ("none", "ape")]
    )
    for value in values:
        with pytest.raises(RequestError) as refusal:
            check_composition(
                configured(mixer=mixer, **{"feature_map": config.feature_map.name, part: value})
            )
        message = str(refusal.value)
        assert message.isprintable()
        assert reason in message
        assert f"set model.{part}=" in message
        assert f"mixer {mixer}" in message


@pytest.mark.parametrize(
    "mixer", [e.name for e in registry.entries("mixer") if getattr(e.target, "needs_positive", False)]
)
def test_a_map_with_negative_values_is_refused_where_positive_ones_are_needed(mixer: str):
    for entry in registry.entries("feature_map"):
        config = configured(mixer=mixer, feature_map=entry.name)
        if getattr(entry.target, "positive", False):
            check_composition(config)
        else:
            with pytest.raises(RequestError, match=r"set one of .*1\+elu") as refusal:
                check_composition(config)
            assert str(refusal.value).isprintable()


def test_a_part_goes_to_the_layers_that_take_it():
    """A refusal counts only where no layer has a use for the part."""
    model = LanguageModel(configured(mixer=["softmax", "gla"], gate=True, decay="official"), 5, 8)
    mixers: list[Any] = [block.token_mixer for block in model.blocks]
    assert [type(mixer.parts.decay).__name__ for mixer in mixers] == ["NoDecay", "OfficialDecay"]
    assert [mixer.parts.gate for mixer in mixers] == [False, True]


def test_positive_maps_are_positive():
    x = torch.linspace(-9, 9, 601).view(-1, 1).expand(-1, 3) + torch.tensor([0.0, 1.0, -1.0])
    for entry in registry.entries("feature_map"):
        least = float(entry.target()(x).min())
        assert (least >= 0) == entry.target.positive, entry.name  # type: ignore[attr-defined]
