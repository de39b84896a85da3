"""Configuration: layering, aliases, one-line refusals of every mistake, and the run id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnbench import registry
from tnbench.config import (
    NORM_PLACES,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    canonical_json,
    run_id,
)
from tnbench.errors import RequestError
from tnbench.resolution import flatten, parse_setting, resolve

BASE = {"training.steps": 10}


def configured(*diffs: dict[str, Any], pinned: dict[str, Any] | None = None) -> RunConfig:
    return resolve(BASE, *diffs, pinned=pinned)


# Layering


def test_every_value_is_explicit():
    """A resolved configuration says it all: resolved again from its own dump, it is the same."""
    for preset in registry.names("preset"):
        config = configured({"model.preset": preset})
        assert RunConfig.model_validate(config.model_dump(mode="json")) == config
        assert resolve(config.model_dump(mode="json", exclude_none=True)) == config
        assert resolve(config.model_dump(exclude_none=True)) == config


def test_later_layers_win_and_parameters_stay():
    config = configured({"model.width": 96, "model.decay.temperature": False}, {"model.width": 192})
    assert config.model.width == 192
    assert config.model.decay.parameters == {"temperature": False}


def test_a_name_resets_its_parameters():
    config = configured({"model.decay.temperature": False}, {"model.decay": "log-spaced"})
    assert config.model.decay.parameters == registry.find("decay", "log-spaced").defaults()
    again = configured({"model.decay.temperature": False}, {"model.decay": "official"})
    assert again.model.decay.parameters == {"temperature": True}
    together = configured({"model.decay.shortest": 3.0, "model.decay.name": "log-spaced"})
    assert together.model.decay.parameters["shortest"] == 3.0
    bare = configured({"model.decay.temperature": False, "model.decay": "printed"})
    assert bare.model.decay.parameters == {"temperature": False}


def test_nested_and_dotted_keys_are_the_same():
    nested = {"model": {"decay": {"name": "fixed", "value": 0.5}}, "data": {"context": 128}}
    dotted = {"model.decay.name": "fixed", "model.decay.value": 0.5, "data.context": 128}
    assert flatten(nested) == dotted
    assert configured(nested) == configured(dotted)


def test_a_preset_drops_lower_model_keys_but_the_size():
    lower = {"model.size": "3m", "model.norm": "layernorm", "model.gate": True, "data.context": 128}
    config = configured(lower, {"model.preset": "transformer"})
    assert config.model == configured({"model.size": "3m", "model.preset": "transformer"}).model
    assert (config.model.size, config.model.width, config.data.context) == ("3m", 192, 128)


def test_pinned_keys_survive_a_preset_and_yield_to_the_last_layer():
    pinned = {"model.norm": "layernorm", "model.size": "0.1m", "training.learning_rate": 0.5}
    config = configured({"model.size": "3m"}, {"model.preset": "transformer"}, pinned=pinned)
    assert {getattr(config.model, place).name for place in NORM_PLACES} == {"layernorm", "none"}
    assert (config.model.size, config.model.width) == ("0.1m", 64)
    assert config.training.learning_rate == 0.5
    last = configured({"model.token_norm": "rmsnorm", "training.learning_rate": 0.25}, pinned=pinned)
    assert last.model.token_norm.name == "rmsnorm"
    assert last.model.channel_norm.name == "layernorm"
    assert last.training.learning_rate == 0.25


def test_norm_sets_every_place_that_has_one():
    ours, theirs = ({"model.preset": p, "model.norm": "rmsnorm"} for p in ("transnormerllm", "transformer"))
    assert [getattr(configured(ours).model, place).name for place in NORM_PLACES] == ["rmsnorm"] * 4
    assert configured(theirs).model.inner_norm.name == "none"
    parameter = configured(ours, {"model.norm.eps": 1e-3}).model
    assert {getattr(parameter, place).parameters["eps"] for place in NORM_PLACES} == {1e-3}
    one = configured({"model.norm": "rmsnorm", "model.inner_norm": "layernorm"}).model
    assert (one.inner_norm.name, one.token_norm.name) == ("layernorm", "rmsnorm")


def test_steps_and_tokens_replace_each_other():
    assert configured({"training.tokens": 8192}).training.total_steps == 2
    assert resolve({"training.tokens": 8192}, {"training.steps": 7}).training.total_steps == 7


def test_a_parameter_alone_keeps_the_default_schedule():
    schedule = configured({"training.schedule.decay": 0.5}).training.schedule
    assert (schedule.name, schedule.parameters) == ("wsd", {"decay": 0.5})


@pytest.mark.parametrize("kind", ["mixer", "position"])
def test_aliases_are_recorded_as_what_they_stand_for(kind: str):
    names = registry.aliases(kind)
    assert names
    for name, target in names.items():
        short = configured({f"model.{kind}": name, "model.layers": 2})
        assert short == configured({f"model.{kind}": target, "model.layers": 2})
        assert short == configured({f"model.{kind}.name": name, "model.layers": 2})
        assert f'"{name}"' not in short.model_dump_json(exclude={"model": {"preset"}})


def test_none_and_null_are_the_same():
    assert configured({"model.decay": None}) == configured({"model.decay": "none"})


def test_a_list_of_mixers_splits_the_layers_from_the_bottom():
    model = configured({"model.mixer": ["softmax", "gla"], "model.layers": 5}).model
    # layer · 2 // 5 for layers 0 to 4: 0, 0, 0, 1, 1
    assert [model.mixer_of(layer).name for layer in range(5)] == ["softmax"] * 3 + ["gla"] * 2


# Mistakes

ENDLESS: dict[str, Any] = {"x": ["l"]}
for _ in range(20):
    ENDLESS = {"x": [ENDLESS["x"]] * 100}
"""Small in memory, and 10^40 lists when written out; YAML's aliases make such things."""

MISTAKES: list[tuple[dict[Any, Any], str]] = [
    ({"modle.width": 8}, "did you mean model.width?"),
    ({"width": 8}, "did you mean model.width?"),
    ({"model.widht": 8}, "did you mean width?"),
    ({"model.decay.temprature": True}, "did you mean temperature?"),
    ({"model.mixer": [{"name": "gla", "scald": True}, "gla"]}, "did you mean scaled?"),
    ({"training.schedule.dekay": 0.1}, "did you mean decay?"),
    ({"model.norm.epsilon": 1e-3}, "did you mean eps?"),
    ({"model.channel": "swigul"}, "did you mean swiglu?"),
    ({"model.mixer": ["gla", "softmx"]}, "did you mean softmax?"),
    ({"model.mixer": "retentoin"}, "did you mean retention?"),
    ({"model.preset": "transformr"}, "did you mean transformer?"),
    ({"model.size": "10mm"}, "did you mean 10m?"),
    ({"model.size": "2m"}, "1m, 3m"),
    ({"model.convention": "v3"}, "v1, v2"),
    ({"model.implementation": "chunkd"}, "chunked"),
    ({"training.device": "gpu"}, "cpu, cuda"),
    ({"model.position": "lrpe-d"}, "lrpe with a decay: set model.position=lrpe"),
    ({"model.position": "exp-decay"}, "set model.position=none"),
    ({"model.width": "wide"}, "model.width = 'wide'"),
    ({"model.gate": "maybe"}, "model.gate = 'maybe'"),
    ({"model.gate.activation": "swish"}, "no key activation"),
    ({"model.decay": 3}, "expected a name"),
    ({"model.decay": ["official"]}, "expected a name"),
    ({"model.decay.name": ["official"]}, "expected a name"),
    ({"model.mixer": []}, "empty"),
    (
        {"model.decay": {"name": "fixed", "value": 2}},
        "fixed.value = 2: input should be less than or equal to 1",
    ),
    ({"model.width": 0}, "greater than or equal to 1"),
    ({"model.width": 10**400}, "model.width = an integer of about 400 digits: input should be less than"),
    ({"model.layers": 257}, "less than or equal to 256"),
    ({"model.heads": 2**13, "model.width": 2**13}, "less than or equal to 1024"),
    ({"training.steps": 16**5000}, "less than or equal to 10000000000"),
    ({"training.init_seed": 2**63}, "less than 9223372036854775808"),
    ({"data.corpus": "x" * 2000}, "at most 1000 characters"),
    ({"model.size": 1}, "model.size = 1: expected a name"),
    ({"model.size": 16**5000}, "model.size = an integer of about 6021 digits"),
    ({"model.preset": "x" * 2000}, "xxx...: expected a name"),
    ({"model.mixer": "x" * 2000}, "expected a name or {name: …}, got {'name': 'xxx"),
    ({"model.decay.x\x85y": 1}, "is no key"),
    ({"x" * 2000: 1}, "xxx..., keys begin with model., data. or training."),
    ({"model.decay.name": ENDLESS["x"]}, "expected a name or {name: …}, got {'name': [["),
    ({"data.context": 1}, "greater than or equal to 2"),
    ({"training.warmup": float("inf")}, "finite"),
    ({"training.learning_rate": float("nan")}, "finite"),
    ({"model.norm.eps": float("inf")}, "finite"),
    ({"model.heads": 7}, "heads = 7 does not divide model.width = 128; 8 would"),
    ({"model.heads": 200}, "128 would"),
    ({"model.mixer": ["gla"] * 6}, "6 mixers for 5 layers"),
    ({"training.batch_tokens": 1000}, "no multiple of data.context = 256; 1024 would be"),
    ({"training.batch_tokens": 100}, "256 would be"),
    ({"training.micro_batch_tokens": 1000}, "1024 would be"),
    ({"training.micro_batch_tokens": 768}, "does not divide training.batch_tokens"),
    ({"training.warmup": 11}, "11 steps exceeds the run's 10 steps"),
    ({"training.steps": 5, "training.tokens": 5}, "exactly one of"),
    ({"model": {"width": 8}, "model.width": 9}, "given twice"),
    ({"model": 3}, "unknown key model"),
    ({3: 3}, "3 is no key"),
    ({"model..width": 3}, "is no key"),
    ({"model.wi\ndth": 3}, "is no key"),
]


@pytest.mark.parametrize(
    ("diff", "told"), MISTAKES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_mistake_is_told_in_one_line(diff: dict[Any, Any], told: str):
    with pytest.raises(RequestError) as refusal:
        configured(diff)
    message = str(refusal.value)
    assert told in message
    assert message.isprintable()
    assert len(message) < 300


def test_steps_or_tokens_are_needed():
    with pytest.raises(RequestError, match=r"exactly one of training\.steps"):
        resolve({})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.learning_rate=1e-3", "training.learning_rate", 0.001),
        ("a=1E3", "a", 1000),
        ("a=-2.5e-1", "a", -0.25),
        ("a=2.0", "a", 2.0),
        ("a=1_000", "a", 1000),
        ("a=9007199254740993", "a", 9007199254740993),  # 2^53 + 1, which no float holds
        (" a = b=c ", "a", "b=c"),
        ("a=null", "a", None),
        ("a=false", "a", False),
        ("a=[gla, {name: gla, scaled: true}]", "a", ["gla", {"name": "gla", "scaled": True}]),
    ],
)
def test_settings_are_yaml_with_numbers_that_people_write(text: str, key: str, value: Any):
    assert parse_setting(text) == (key, value)
    assert type(parse_setting(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["a", "=1", " =1", "a=[1", "a={", "a=2020-99-99", "a\nb", "a=[\n", "a=\t"])
def test_a_setting_that_is_none_is_refused(text: str):
    with pytest.raises(RequestError) as refusal:
        parse_setting(text)
    assert str(refusal.value).isprintable()


# Any diff

SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
KEYS = [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]
NESTED = ["model.norm", "model.norm.eps", "model.decay.temperature", "model.decay.value", "model.decay.name"]
NAMES = sorted({*(entry.name for entry in registry.entries()), "mix", "retention", "1m", "v1", "recurrent"})
SCALARS = st.one_of(
    st.sampled_from(NAMES),
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=6),
    st.dates(),
)
INNER_KEYS = st.sampled_from(["name", "eps", "value"]) | st.integers() | st.text(max_size=3)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER_KEYS, inner, max_size=3),
    max_leaves=4,
)


def plausible(key: str) -> st.SearchStrategy:
    """A key with values that it often accepts."""
    top = key.split(".")[1]
    kind = "norm" if top.endswith("norm") else top
    if kind in registry.KINDS:
        names = st.sampled_from([*registry.names(kind), *registry.aliases(kind)])
        values = names | names.map(lambda name: {"name": name})
    else:
        values = st.sampled_from([1, 2, 4, 128, 0.5, True, False, "1m", "3m", "v1", "fp32", "auto"])
    return st.tuples(st.just(key), values)


ITEMS = st.sampled_from([*KEYS, *NESTED]).flatmap(plausible)
STRANGE = st.tuples(
    st.sampled_from([*KEYS, *NESTED, "model.nothing", "data"]) | st.text(max_size=12), ANYTHING
)
DIFFS = st.lists(ITEMS, max_size=3).map(dict)
DIFF_LISTS = st.tuples(DIFFS, DIFFS, DIFFS | st.lists(STRANGE, min_size=1, max_size=2).map(dict))


@settings(max_examples=500, deadline=None)
@given(DIFF_LISTS)
def test_any_diff_resolves_or_is_refused_in_one_line(diffs: tuple[dict, dict, dict]):
    pinned, lower, upper = diffs
    try:
        config = resolve(BASE, lower, upper, pinned=pinned)
    except RequestError as refusal:
        message = str(refusal)
    else:
        message = run_id(config, "data", "source")
    assert message
    assert message.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20) | st.text("0123456789_.eE+-=", max_size=12).map("a={}".format))
def test_any_setting_parses_or_is_refused_in_one_line(text: str):
    try:
        key, _ = parse_setting(text)
    except RequestError as refusal:
        assert str(refusal).isprintable()  # noqa: PT017  whether it is refused is left open
    else:
        assert key == text.partition("=")[0].strip() != ""


# The run id


def identified(*diffs: dict[str, Any]) -> str:
    return run_id(configured(*diffs), "data", "source")


def test_the_run_id_is_stable_across_key_order_and_process():
    diff = {"model.decay": {"name": "fixed", "value": 0.5}, "training.init_seed": 3, "data.context": 128}
    turned = {"data.context": 128, "training.init_seed": 3, "model.decay": {"value": 0.5, "name": "fixed"}}
    assert identified(diff) == identified(turned)
    assert canonical_json({"b": 1, "a": {"d": 2, "c": 3}}) == '{"a":{"c":3,"d":2},"b":1}'
    code = (
        "import json, sys; from tnbench.config import run_id; from tnbench.resolution import resolve; "
        "print(run_id(resolve(*json.loads(sys.argv[1])), 'data', 'source'))"
    )
    command = [sys.executable, "-c", code, json.dumps([BASE, turned])]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == identified(diff)


@pytest.mark.parametrize(
    "diff",
    [
        {"training.init_seed": 1},
        {"training.data_seed": 1},
        {"training.learning_rate": 1e-3},
        {"training.threads": 2},
        {"training.schedule.decay": 0.5},
        {"model.decay.temperature": False},
        {"model.implementation": "recurrent"},
        {"data.context": 128},
    ],
    ids=str,
)
def test_the_run_id_differs_with_whatever_can_change_a_number(diff: dict[str, Any]):
    assert identified(diff) != identified()


def test_the_run_id_names_data_and_source_too():
    config = configured()
    assert len({run_id(config, "a", "a"), run_id(config, "b", "a"), run_id(config, "a", "b")}) == 3


def test_the_run_id_ignores_labels_and_how_often_is_saved():
    assert identified({"training.checkpoint_every": 1}) == identified()
    # A corpus and its tokens are known by their hash, wherever they were read from.
    assert identified({"data.corpus": "elsewhere", "data.tokenizer": "bpe-512"}) == identified()
    values = configured({"model.preset": "transformer"}).model_dump(mode="json")["model"]
    spelt = {f"model.{k}": v for k, v in values.items() if k not in ("preset", "size", "convention")}
    assert identified(spelt) == identified({"model.preset": "transformer"})
    # v1 and v2 differ for TransNormerLLM alone
    assert identified({"model.preset": "gpt2", "model.convention": "v1"}) == identified(
        {"model.preset": "gpt2"}
    )
    # 10 steps of 4,096 tokens
    assert identified({"training.tokens": 40960}) == identified()
