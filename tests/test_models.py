"""Models: what every composition of registered components has to keep, and the presets."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from test_registry import compositions, configured, legal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tnbench import registry
from tnbench.config import ModelConfig
from tnbench.errors import RequestError
from tnbench.kernels.linear_attention import TORCH
from tnbench.kernels.linear_attention.chunked import CHUNK
from tnbench.model import LanguageModel
from tnbench.model.mixers.base import PARTS
from tnbench.model.mixers.linear import LinearMixer
from tnbench.model.presets import SIZES
from tnbench.resolution import resolve

VOCABULARY, CONTEXT = 13, 10
PRESETS = [(preset, version) for preset in registry.names("preset") for version in ("v1", "v2")]

every_composition = pytest.mark.parametrize("config", compositions().values(), ids=list(compositions()))
every_preset = pytest.mark.parametrize(("preset", "version"), PRESETS)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def built(config: ModelConfig, *, wide: bool = True, context: int = CONTEXT) -> LanguageModel:
    """A model in float64 whose learned vectors and angles are moved off their regular initial values."""
    model = LanguageModel(config, VOCABULARY, context)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith(("theta", "reflection")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double() if wide else model


def preset_model(preset: str, version: str = "v2", **diff: Any) -> LanguageModel:
    """A tiny model of a preset, in float64; weights large enough for every part to matter."""
    tiny = {"width": 32, "heads": 4, "layers": 3, "channel_width": 40, "init_std": 0.2, **diff}
    labels = {"training.steps": 1, "model.preset": preset, "model.convention": version}
    return built(resolve(labels, {f"model.{key}": value for key, value in tiny.items()}).model)


def some_tokens(batch: int = 1, time: int = CONTEXT) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time))


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, however it is nested."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state.layers if hasattr(state, "layers") else state:
            yield from tensors(part)


def assert_near(a: Tensor, b: Tensor, gap: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=gap, atol=gap)


# Every composition


@every_composition
def test_no_output_depends_on_a_later_input(config: ModelConfig):
    """By gradient, exactly: for the token mixers, the blocks and the model from its embeddings on."""
    model = built(config)
    i = int(torch.randint(0, CONTEXT - 1, ()))
    modules: list[Any] = [module for block in model.blocks for module in (block, block.token_mixer)]
    for module in modules:
        x = torch.randn(2, CONTEXT, config.width, dtype=torch.float64, requires_grad=True)
        out = module(x)
        if isinstance(out, tuple):  # a block gives its stream in two parts
            out = torch.stack(out).sum(0)
        (gradient,) = torch.autograd.grad((out[:, i] * torch.randn(config.width)).sum(), x)
        assert gradient[:, i].abs().max() > 0
        assert gradient[:, i + 1 :].abs().max() == 0

    embedded = []
    model.embedding.register_forward_hook(lambda *call: embedded.append(call[-1]))
    (gradient,) = torch.autograd.grad(model(some_tokens(2))[:, i].square().sum(), embedded)
    assert gradient[:, i].abs().max() > 0
    assert gradient[:, i + 1 :].abs().max() == 0


@every_composition
def test_implementations_agree(config: ModelConfig):
    """Outputs and gradients of a mixer; the chunked form over more than one default chunk."""
    x = torch.randn(2, CHUNK + 2, config.width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)

    def compute(name: str, time: int) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        mixer: Any = built(config.model_copy(update={"implementation": name})).blocks[0].token_mixer
        assert mixer.parts.implementation == name
        out = mixer(x[:, :time])
        return out, *torch.autograd.grad((out * weight[:, :time]).sum(), [x, *mixer.parameters()])

    linear = isinstance(built(config).layers[0].token_mixer, LinearMixer)
    if not linear:
        with pytest.raises(RequestError, match="linear attention"):
            compute("quadratic", CONTEXT)
    for name in TORCH.keys() - {"quadratic"} if linear else ():
        time = CHUNK + 2 if name == "chunked" else CONTEXT
        for ours, theirs in zip(compute(name, time), compute("quadratic", time), strict=True):
            assert_near(ours, theirs, 1e-8)


@every_composition
def test_segments_and_steps_are_one_pass(config: ModelConfig):
    """Prefill in pieces of random lengths, and step by step: the same logits and the same final state."""
    model, tokens = built(config), some_tokens(3)
    whole, final = model.prefill(tokens)
    assert_near(model(tokens), whole)
    cuts = torch.randperm(CONTEXT - 1)[: int(torch.randint(1, 5, ()))].sort().values + 1
    for pieces in (tokens.tensor_split(cuts.tolist(), dim=1), tokens.split(1, dim=1)):
        state, logits = None, []
        for piece in pieces:
            out, state = model.prefill(piece, state)
            logits.append(out)
        assert_near(torch.cat(logits, dim=1), whole)
        assert state is not None
        assert state.tokens == CONTEXT
        for ours, theirs in zip(tensors(state), tensors(final), strict=True):
            assert_near(ours, theirs)


@every_composition
def test_rows_of_a_batch_are_independent(config: ModelConfig):
    model, tokens = built(config), some_tokens(3)
    whole = model(tokens)
    for row in range(3):
        assert_near(model(tokens[row : row + 1])[0], whole[row], 1e-12)
    assert_near(model(tokens.flip(0)).flip(0), whole, 1e-12)


@every_composition
def test_gradients_of_mixers_are_right(config: ModelConfig):
    """gradcheck of the last layer's mixer, in its input and all of its parameters."""
    mixer: Any = built(config).blocks[-1].token_mixer
    names, values = zip(*mixer.named_parameters(), strict=True)
    x = torch.randn(2, 4, config.width, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


@every_composition
def test_state_and_cost_are_as_declared(config: ModelConfig):
    """While decoding, one token at a time: the largest state, and the matrix products counted by torch."""
    model, context = built(config), 4
    state, largest = model.initial_state(1), 0
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for token in some_tokens(context, 1):
            _, state = model.step(token, state)
            largest = max(largest, sum(part.numel() for part in tensors(state)))
    assert model.state_size(context) == largest
    assert model.flops_per_token(context) * context == counter.get_total_flops()


def accepted() -> Iterator[tuple[str, dict[str, Any]]]:
    """Mixers, each with every part that it takes beside those that it needs."""
    kinds = {"position": "position", "decay": "decay", "feature_map": "feature_map", "inner_norm": "norm"}
    for mixer in registry.names("mixer"):
        for part in PARTS:
            for value in [True] if part == "gate" else registry.names(kinds[part]):
                parts: dict[str, Any] = {part: value}
                if legal(mixer=mixer, **parts) not in (None, legal(mixer=mixer)):
                    yield mixer, parts


@pytest.mark.parametrize(("mixer", "parts"), list(accepted()), ids=str)
def test_what_is_not_refused_has_an_effect(mixer: str, parts: dict[str, Any]):
    """Two configurations that differ in a part are not the same model."""
    outs = []
    for config in (legal(mixer=mixer, **parts), legal(mixer=mixer)):
        assert config is not None
        torch.manual_seed(0)
        outs.append(LanguageModel(config, VOCABULARY, CONTEXT).double()(torch.arange(CONTEXT)[None]))
    assert (outs[0] - outs[1]).abs().max() > 1e-6


# Presets


@every_preset
def test_forward_prefill_and_steps_agree(preset: str, version: str):
    model, tokens = preset_model(preset, version), some_tokens(2)
    expected = model(tokens)
    first, state = model.prefill(tokens[:, :4])
    second, state = model.prefill(tokens[:, 4:5], state)
    third, state = model.prefill(tokens[:, 5:8], state)
    steps = []
    for token in tokens[:, 8:].unbind(1):
        out, state = model.step(token, state)
        steps.append(out[:, None])
    assert_near(torch.cat([first, second, third, *steps], dim=1), expected)


@pytest.mark.parametrize("size", SIZES)
def test_families_are_matched_in_parameters(size: str):
    counts = {}
    for entry in registry.entries("preset"):
        versions = [entry.target(size, version) for version in ("v1", "v2")]
        for version in ("v1", "v2")[: 1 if versions[0] == versions[1] else 2]:
            counts[entry.name, version] = count(entry.name, size, version)["non_embedding"]
    ours = [counts["transnormerllm", version] for version in ("v1", "v2")]
    for which, parameters in counts.items():
        assert [parameters] * 2 == pytest.approx(ours, rel=0.005), which
    if list(SIZES).index(size) <= list(SIZES).index("100m"):
        assert ours == pytest.approx([float(size[:-1]) * 1e6] * 2, rel=0.1)


@cache
def count(preset: str, size: str, version: str, vocabulary: int = VOCABULARY) -> dict[str, int]:
    """Parameters of a preset, without memory for them."""
    labels = {"model.preset": preset, "model.size": size, "model.convention": version}
    with torch.device("meta"):
        return LanguageModel(
            resolve({"training.steps": 1, **labels}).model, vocabulary, 64
        ).parameter_counts()


@pytest.mark.parametrize(
    ("size", "published"),
    [
        ("1b", 992_165_888),
        ("3b", 2_876_006_400),
        ("7b", 6_780_547_072),
        ("13b", 12_620_195_840),
        ("65b", 63_528_009_728),
        ("175b", 173_356_498_944),
    ],
)
def test_published_parameter_counts(size: str, published: int):
    """arXiv 2307.14995, table 1: L (5 d² + 3 d f + d/2) + 50,272 d, the last term being the embedding."""
    assert count("transnormerllm", size, "v1", 50_272)["total"] == published


def test_the_published_count_of_385m_has_a_remainder():
    """L = 24, d = 1024: the published 384,974,848 has 2 d more per layer where the others have d/2.

    Ours has d/2, as for the other sizes, and so 3/2 · 24 · 1024 = 36,864 fewer.
    """
    assert count("transnormerllm", "385m", "v1", 50_272)["total"] == 384_974_848 - 36_864


def test_seeds_decide_the_weights():
    def weights(seed: int, **diff: Any) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return dict(LanguageModel(configured(mixer="gla", **diff), VOCABULARY, CONTEXT).named_parameters())

    first, again, other = weights(0), weights(0), weights(1)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])
        alike = [n for n, v in first.items() if v.shape == value.shape and torch.equal(v, value)]
        assert alike == [name]
    # What two variants have in common starts alike, whatever else they have.
    for diff in ({"token_norm": "layernorm"}, {"gate": True}, {"channel": "ffn"}, {"layers": 3}):
        variant = weights(0, **diff)
        shared = [n for n, value in first.items() if n in variant and value.shape == variant[n].shape]
        assert len(shared) >= 5
        assert all(torch.equal(first[name], variant[name]) for name in shared)
        assert len(shared) < max(len(first), len(variant))


def test_initial_weights_are_normal_with_the_given_deviation():
    model = LanguageModel(resolve({"training.steps": 1, "model.size": "0.8m"}).model, 256, 8)
    for name, value in model.named_parameters():
        if name.endswith("weight"):
            # the standard error of a deviation over n values is about 1 / sqrt(2 n)
            value = value.detach()
            assert float(value.std()) == pytest.approx(0.02, rel=5 / (2 * value.numel()) ** 0.5), name
            assert abs(float(value.mean())) < 5 * 0.02 / value.numel() ** 0.5


def test_tied_and_untied_output_layers():
    tied, untied = (preset_model("transnormerllm", tie_embeddings=tie) for tie in (True, False))
    extra = untied.parameter_counts()["total"] - tied.parameter_counts()["total"]
    assert extra == VOCABULARY * 32
    assert untied.parameter_counts()["non_embedding"] == tied.parameter_counts()["non_embedding"]
    tokens = some_tokens()
    tied.final_norm = untied.final_norm = torch.nn.Identity()
    for model, weight in ((tied, tied.embedding.weight), (untied, untied.head and untied.head.weight)):
        assert weight is not None
        seen: list[Tensor] = []
        model.blocks[-1].register_forward_hook(lambda *call, seen=seen: seen.append(sum(call[-1])))
        assert_near(model(tokens), seen[0] @ weight.T)


def test_scaled_embeddings():
    """Without blocks' output, final norm and head, what is left is sqrt(d) E[token]: sqrt(32) E."""
    for scale, factor in ((True, 32**0.5), (False, 1.0)):
        model = preset_model("transnormerllm", scale_embeddings=scale)
        seen: list[Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda *call, seen=seen: seen.append(call[1][0]))
        tokens = some_tokens()
        model(tokens)
        assert_near(seen[0], factor * model.embedding.weight[tokens])


@pytest.mark.parametrize("preset", registry.names("preset"))
def test_activation_checkpointing_changes_no_gradient(preset: str):
    model, tokens = preset_model(preset).train(), some_tokens(2)
    gradients = []
    for on in (False, True):
        model.activation_checkpointing = on
        gradients.append(torch.autograd.grad(model(tokens).square().sum(), list(model.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_learned_positions_end_with_the_context():
    model = preset_model("gpt2")
    _, state = model.prefill(some_tokens())
    for call in (
        lambda: model(some_tokens(time=CONTEXT + 1)),
        lambda: model.step(some_tokens()[:, 0], state),
    ):
        with pytest.raises(ValueError, match=f"end at {CONTEXT}, asked for {CONTEXT + 1}"):
            call()


@every_preset
def test_bf16_autocast_is_near_fp32(preset: str, version: str):
    """Over more than one chunk; weights of normal size, so that logits are too."""
    labels = {"model.preset": preset, "model.convention": version, "model.size": "0.1m"}
    model = LanguageModel(resolve({"training.steps": 1, **labels}).model, 64, 80)
    tokens = torch.randint(64, (2, 80))
    exact = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens)
    assert rounded.dtype == torch.bfloat16
    gap = (rounded.float() - exact).norm() / exact.norm()
    assert gap < 0.03  # bf16 has 8 bits: 2^-8 = 0.4 % a rounding, some ten of them in a row
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
