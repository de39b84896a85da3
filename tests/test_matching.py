"""Matching: solved widths meet the base by a count of their own, or are refused with the reason."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tnbench import registry
from tnbench.ablation import matching
from tnbench.ablation.matching import Match, Matched, matched, quantity
from tnbench.ablation.suite_file import shipped_suites
from tnbench.config import RunConfig, check
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.resolution import flatten, resolve

VOCABULARY = 61
BASE = {"training.steps": 1}
SMALL = {**BASE, "model.width": 24, "model.layers": 2, "model.heads": 4, "model.channel_width": 40}
SMALL |= {"data.context": 16}


def solved(
    diff: dict[str, Any], by: Any, base: dict[str, Any] = BASE, tolerance: float = 0.005, held: Any = None
) -> Matched:
    return matched(
        resolve(base, diff),
        resolve(base),
        vocab_size=VOCABULARY,
        base_vocab_size=VOCABULARY,
        held=flatten(diff).keys() if held is None else held,
        match=Match(by=by, tolerance=tolerance),
    )


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as refused:
        solved(*arguments, **options)
    return str(refused.value)


def counted(config: RunConfig, by: str) -> float:
    """The cost of a model with real weights, from the sizes of its tensors."""
    model = LanguageModel(config.model, VOCABULARY, config.data.context)
    if by == "state":
        with torch.no_grad():
            _, state = model.prefill(torch.zeros(1, config.data.context, dtype=torch.long))
        layers = [
            [layer] if isinstance(layer, torch.Tensor) else [layer.k, layer.v] for layer in state.layers
        ]
        return sum(tensor.numel() for layer in layers for tensor in layer)
    weights = dict(model.named_parameters())
    inside = {name: w for name, w in weights.items() if name.startswith(("blocks.", "final_norm"))}
    if by == "parameters":
        return sum(weight.numel() for weight in inside.values())
    products = sum(w.numel() for name, w in inside.items() if name.endswith(".weight") and w.ndim == 2)
    # Linear attention: k vᵀ and q S, a multiply-add each for every value of the state. Softmax attention: one
    # for every value of the cache, which holds (context + 1) / 2 of context tokens on average.
    softmax = config.model.mixer[0].name == "softmax"
    share = (config.data.context + 1) / (2 * config.data.context) if softmax else 2
    return 2 * (products + config.model.width * VOCABULARY + share * counted(config, "state"))


# What is shipped


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize(("one", "other"), list(permutations(registry.names("preset"), 2)))
def test_every_preset_meets_every_other(one: str, other: str, by: str):
    found = solved({"model.preset": one}, by, {**BASE, "model.preset": other})
    assert abs(found.residual) <= 0.005
    assert found.changed.keys() <= {"model.channel_width"}


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_variants_of_shipped_suites_meet_their_base(name: str, by: str):
    file = yaml.safe_load(shipped_suites()[name].read_text())
    for diff in file["variants"].values():
        diff = {key: value for key, value in diff.items() if key != "repeat"}
        found = solved(diff, by, file["base"])
        assert abs(found.residual) <= 0.005
        assert found.changed.keys() <= {
            "model.channel_width",
            *(["model.width"] if "model.layers" in diff else []),
        }


# Which widths and values


def test_the_base_itself_is_returned_as_it_is():
    config = resolve(BASE)
    for by in ("parameters", "flops", "state"):
        found = matched(
            config, config, vocab_size=9, base_vocab_size=9, held=(), match=Match(by=by, tolerance=1e-9)
        )
        assert found == Matched(config, {}, 0.0)


def test_what_lies_within_the_tolerance_is_left_alone():
    """LRPE in all layers has 4 · 128 angles more than in one, of 1.09 million parameters."""
    diff = {"model.position": "lrpe"}
    found = solved(diff, "parameters", tolerance=0.005)
    assert found.changed == {}
    assert found.residual == pytest.approx(4 * 128 / quantity(resolve(BASE), VOCABULARY, "parameters"))
    # a unit of the channel mixer has 5 · 3 · 128 = 1920
    held = {"model.width"}
    message = refusal(diff, "parameters", tolerance=4e-4, held=held)
    assert "nearest is 0.047 % off as it is (tolerance 0.04 %); model.width is set by" in message


def test_the_gate_is_paid_out_to_the_channel_mixer():
    """128² parameters a layer without the gate: 128² / (3 · 128) = 42 2/3 more of a GLU's inner dimension."""
    for tolerance, inner in ((0.005, 392), (0.001, 395), (0.004, 396), (0.0045, 396)):
        found = solved({"model.gate": False}, "parameters", tolerance=tolerance)
        assert found.changed == {"model.channel_width": inner}
        assert found.config.model.channel_width == inner
        assert abs(found.residual) == pytest.approx(
            5 * 3 * 128 * abs(352 + 128 / 3 - inner) / quantity(resolve(BASE), VOCABULARY, "parameters")
        )


def test_where_the_channel_mixer_is_studied_the_width_meets_the_base():
    found = solved({"model.channel_width": 1000}, "flops", tolerance=0.01)
    assert found.changed == {"model.width": 68}
    assert (found.config.model.heads, found.config.model.channel_width) == (4, 1000)


def test_where_neither_alone_reaches_both_change():
    found = solved({"model.layers": 40}, "parameters")
    assert found.changed.keys() == {"model.width", "model.channel_width"}
    assert abs(found.residual) <= 0.005


def test_state_changes_the_heads_at_the_same_width():
    """The cosine form doubles keys: twice the heads, each of half the head dim, have the same state."""
    base = {**BASE, "model.position": "none"}
    found = solved({"model.position": "lrpe"}, "state", base)
    assert (found.changed, found.residual) == ({"model.heads": 8}, 0.0)


def test_state_changes_the_width_with_the_heads():
    """Two layers of three: 3 / 2 of the heads, at the same head dim."""
    base = {**BASE, "model.layers": 3, "model.position": "none"}
    found = solved({"model.layers": 2}, "state", base)
    assert (found.changed, found.residual) == ({"model.heads": 6, "model.width": 192}, 0.0)


def test_two_states_that_grow_alike_can_be_matched():
    base = {**BASE, "model.preset": "transformer"}
    found = solved({"model.layers": 4}, "state", base)
    assert (found.changed, found.residual) == ({"model.heads": 5, "model.width": 160}, 0.0)


def test_widths_that_components_refuse_are_passed_over():
    """Householder's LRPE needs head dims divisible by 4; a list of decays needs its number of heads."""
    diff = {"model.position": {"name": "lrpe", "form": "householder"}, "model.layers": 7}
    found = solved(diff, "flops", held={*diff, "model.channel_width"}, tolerance=0.2)
    assert found.config.model.head_dim % 4 == 0
    diff = {"model.decay": {"name": "fixed", "value": [0.9, 0.95, 0.98, 0.99]}, "model.position": "none"}
    found = solved(diff, "state")
    assert (found.config.model.heads, found.changed) == (4, {"model.width": 140})


def test_each_side_is_measured_at_its_own_context_and_vocabulary():
    config, base = resolve(BASE, {"data.context": 512}), resolve(BASE)
    match = Match(by="flops")
    found = matched(config, base, vocab_size=1000, base_vocab_size=61, held=(), match=match)
    value = quantity(found.config, 1000, "flops")
    assert value == pytest.approx(quantity(base, 61, "flops"), rel=0.005)
    assert found.config.model.channel_width < base.model.channel_width


# Refusals


@pytest.mark.parametrize(
    ("diff", "by", "told"),
    [
        ({"model.width": 1024}, "parameters", "even with model.channel_width = 1; model.width is set by"),
        (
            {"model.width": 512, "model.heads": 8, "model.channel_width": 1000},
            "parameters",
            "14.2M against the base's 1.09M; model.channel_width and model.width are set by",
        ),
        ({"model.channel_width": 1000}, "parameters", "nearest is 2.1 % off with model.width = 64 (toleran"),
        (
            {"model.preset": "transformer"},
            "state",
            "655k after twice as many (mixer softmax), the base 24.6k",
        ),
        ({"model.mixer": ["softmax", "gla"], "model.layers": 4}, "state", "(mixer softmax, gla)"),
        ({"model.heads": 2}, "state", "% off with model.width = 90 (tolerance 0.5 %); model.heads is set by"),
        (
            {"model.heads": 2, "model.width": 128},
            "state",
            "49.2k against the base's 24.6k; model.heads and model.width are set by",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_reason(diff: dict[str, Any], by: str, told: str):
    message = refusal(diff, by)
    assert message.startswith(f"cannot be matched by {by}: ")
    assert told in message
    assert message.isprintable()


def test_components_without_the_quantity_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LanguageModel, "state_size", lambda self, _: 0 if self.config.gate else 64)
    assert refusal({"model.gate": False}, "state").endswith("the base has no recurrent state")
    without = {**BASE, "model.gate": False}
    assert refusal({"model.gate": True}, "state", without).endswith("it has no recurrent state")
    assert solved({"model.norm": "rmsnorm"}, "state").changed == {}  # neither has one


def test_widths_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LanguageModel, "flops_per_token", lambda self, _: 8.0 if self.config.gate else 6.0)
    assert "6 against the base's 8, and no other width" in refusal({"model.gate": False}, "flops")


@pytest.mark.parametrize(
    "values", [{"by": "size"}, {}, *({"by": "flops", "tolerance": t} for t in (0, 1, True))]
)
def test_a_match_that_is_none_is_refused(values: dict[str, Any]):
    with pytest.raises(RequestError):
        check(Match, values, "match")


@pytest.mark.parametrize("by", ["parameters", "flops", "state"])
@pytest.mark.parametrize("size", ["0.1m", "1b"])
def test_few_models_are_built(size: str, by: str, monkeypatch: pytest.MonkeyPatch):
    built = []
    monkeypatch.setattr(
        matching, "quantity", lambda *arguments: built.append(arguments) or quantity(*arguments)
    )
    diffs: list[dict[str, Any]] = [{"model.gate": False}, {"model.layers": 3}, {"model.channel": "ffn"}]
    for diff in diffs:
        built.clear()
        solved(diff, by, {**BASE, "model.size": size})
        assert len(built) <= 20


# Any small configuration

MIXERS: list[dict[str, Any]] = [
    {"model.mixer": "gla"},
    {"model.mixer": "norm-attention", "model.gate": False},
    {"model.mixer": "linear-attention", "model.gate": False, "model.inner_norm": "none"}
    | {"model.position": "none", "model.feature_map": "1+elu"},
    {"model.preset": "transformer"},
    {"model.preset": "retnet"},
]
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "model.layers": st.integers(1, 4),
        "model.heads": st.sampled_from([1, 2, 3, 4, 6]),
        "model.width": st.sampled_from([12, 24, 36, 48, 60]),
        "model.channel_width": st.integers(1, 120),
        "model.channel": st.sampled_from(["sglu", "ffn"]),
        "model.position": st.sampled_from(["none", "lrpe", "rope", "ape"]),
        "model.decay": st.sampled_from(["none", "learned", {"name": "fixed", "value": [0.5, 0.9]}]),
        "data.context": st.sampled_from([8, 32]),
    },
)
VARIANTS = st.builds(lambda mixer, changes: {**mixer, **changes}, st.sampled_from(MIXERS), CHANGES)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    VARIANTS,
    VARIANTS,
    st.sampled_from(["parameters", "flops", "state"]),
    st.sampled_from([0.002, 0.005, 0.05]),
    st.booleans(),
)
def test_any_variant_meets_the_base_or_is_refused(
    over: dict[str, Any], diff: dict[str, Any], by: Any, tolerance: float, widths_are_free: bool
):
    try:
        base = resolve(SMALL, {**SMALL, **over})
        config = resolve(SMALL, {**SMALL, **diff})
        before, target = counted(config, by), counted(base, by)
    except RequestError:
        assume(False)
        raise
    held = set() if widths_are_free else set(diff)
    match = Match(by=by, tolerance=tolerance)
    try:
        found = matched(
            config, base, vocab_size=VOCABULARY, base_vocab_size=VOCABULARY, held=held, match=match
        )
    except RequestError as refused:
        message = str(refused)
        assert message.startswith(f"cannot be matched by {by}: ")
        assert message.isprintable()
        assert len(message) < 300
        assert abs(before / target - 1) > tolerance or "twice as many" in message
        _nothing_was_missed(config, by, target, tolerance, held, message)
        return
    after = counted(found.config, by)
    assert found.residual == pytest.approx((after - target) / target)
    assert abs(found.residual) <= tolerance
    assert not held & found.changed.keys()
    assert found.config.model.width % found.config.model.heads == 0
    if abs(before / target - 1) <= tolerance:
        assert (found.config, found.changed) == (config, {})
    else:
        assert found.changed
    # nothing but the keys that are named has changed, and what has changed can be written into a file
    changed = {key.removeprefix("model."): value for key, value in found.changed.items()}
    assert found.config == config.model_copy(update={"model": config.model.model_copy(update=changed)})
    assert resolve(found.config.model_dump(mode="json", exclude_none=True)) == found.config


def _nothing_was_missed(
    config: RunConfig, by: str, target: float, tolerance: float, held: set[str], message: str
) -> None:
    """Of the sizes that are changed first, none meets the base."""
    key = "heads" if by == "state" else "channel_width"
    if f"model.{key}" in held or "twice as many" in message:
        return
    sizes = [n for n in range(1, 61) if config.model.width % n == 0] if by == "state" else range(1, 300, 7)
    for size in sizes:
        other = config.model_copy(update={"model": config.model.model_copy(update={key: size})})
        try:
            value = quantity(other, VOCABULARY, by)
        except RequestError:
            continue
        assert abs(value / target - 1) > tolerance
