"""Decoding in place: prefill and steps against the parallel forward pass, for whatever is registered."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from test_models import PRESETS, VOCABULARY, built
from test_registry import compositions, configured
from torch import Tensor
from triton_processes import interpreted

from tnbench import registry
from tnbench.config import ModelConfig
from tnbench.evaluation import generation
from tnbench.evaluation.generation import DTYPES, Decoder, inference_model
from tnbench.model import LanguageModel, mixers
from tnbench.model.decays import LearnedDecay
from tnbench.model.feature_maps import FeatureMap
from tnbench.model.mixers import Parts
from tnbench.model.positions import Position
from tnbench.resolution import resolve

CONTEXT = 10
every_composition = pytest.mark.parametrize("config", compositions().values(), ids=list(compositions()))
every_preset = pytest.mark.parametrize(("preset", "version"), PRESETS)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    torch.set_num_threads(1)


def preset_model(preset: str, version: str = "v2", *, context: int = CONTEXT, **diff: Any) -> LanguageModel:
    """A tiny model of a preset in fp32; weights large enough for every part to matter."""
    tiny = {"width": 32, "heads": 4, "layers": 3, "channel_width": 40, "init_std": 0.2, **diff}
    labels = {"training.steps": 1, "model.preset": preset, "model.convention": version}
    config = resolve(labels, {f"model.{key}": value for key, value in tiny.items()}).model
    return built(config, wide=False, context=context)


def some_tokens(batch: int, time: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time))


@torch.no_grad()
def in_place(model: LanguageModel, tokens: Tensor, cut: int) -> tuple[Tensor, Any]:
    """Logits of all tokens, the first `cut` at once and the others one by one, and the final state."""
    state = model.allocate(*tokens.shape)
    places = [part.data_ptr() for layer in state.layers for part in layer]
    logits = []
    if cut:
        first, same = model.prefill(tokens[:, :cut], state)
        assert same is state
        logits = [first]
    logits += [model.decode(token, state)[:, None] for token in tokens[:, cut:].unbind(1)]
    assert [part.data_ptr() for layer in state.layers for part in layer] == places, "a state has moved"
    return torch.cat(logits, dim=1), state


def assert_near(ours: Tensor, theirs: Tensor, gap: float) -> None:
    """As vectors per token: single logits may be near zero."""
    error = (ours.double() - theirs.double()).norm(dim=-1) / theirs.double().norm(dim=-1)
    assert error.max() < gap, float(error.max())


# Every composition


@every_composition
@torch.no_grad()
def test_steps_in_place_are_the_parallel_form(config: ModelConfig):
    model, tokens = built(config), some_tokens(2, CONTEXT)
    logits, state = in_place(model, tokens, 4)
    torch.testing.assert_close(logits, model(tokens), rtol=1e-10, atol=1e-10)
    assert state.tokens == state.position.item() == CONTEXT


@torch.no_grad()
def test_a_step_reads_no_value_on_the_host():
    """On the meta device there are none: what would wait for a GPU raises here. Every mixer and position."""
    different = {f"{config.mixer} {config.position}": config for config in compositions().values()}
    token = torch.empty(2, dtype=torch.int64, device="meta")
    for name, config in different.items():
        with torch.device("meta"):
            model = LanguageModel(config, VOCABULARY, CONTEXT)
        state = model.allocate(2, CONTEXT)
        assert model.decode(token, state).shape == (2, VOCABULARY), name
        assert state.tokens == 1
        if model.constant_state:
            sizes = [
                [part.shape for layer in model.allocate(2, n).layers for part in layer] for n in (5, 500)
            ]
            assert sizes[0] == sizes[1], name


# Presets, lengths and precisions


@every_preset
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 300])
@torch.no_grad()
def test_prefill_and_decode_are_the_forward_pass(preset: str, version: str, length: int):
    """fp32; the last 12 tokens one by one; block-diagonal attention has blocks of 64."""
    model, tokens = preset_model(preset, version, context=length), some_tokens(2, length)
    logits, _ = in_place(model, tokens, max(0, length - 12))
    assert_near(logits, model(tokens), 1e-5)


@every_preset
@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.05), ("fp16", 0.01)])
@torch.no_grad()
def test_decoding_in_half_precision_is_near_fp32(preset: str, version: str, precision: Any, limit: float):
    """Weights of normal size. Each rounding is 2^-8 or 2^-11 (0.4 or 0.05 %), some ten of them in a row."""
    model, tokens = preset_model(preset, version, context=80, init_std=0.02), some_tokens(2, 80)
    exact = model(tokens)
    model = inference_model(model, precision)
    logits, _ = in_place(model, tokens, 60)
    assert logits.dtype == DTYPES[precision]
    assert_near(logits, exact, limit)
    assert_near(logits, model(tokens), limit)


@pytest.mark.slow
@pytest.mark.parametrize("preset", registry.names("preset"))
@torch.no_grad()
def test_a_hundred_thousand_tokens(preset: str):
    """Models of constant state: a prefill in segments and steps behind it, against one parallel pass."""
    length = 100_000
    model, tokens = inference_model(preset_model(preset), "fp32"), some_tokens(1, length)
    if not model.constant_state:
        pytest.skip("its state grows")
    expected = model(tokens)[:, -20:]
    decoder = Decoder(model, 1, length)
    logits = [decoder.prefill(tokens[:, :-19])]
    logits += [decoder.step(token) for token in tokens[:, -19:].unbind(1)]
    assert decoder.tokens == length
    assert_near(torch.stack(logits, dim=1), expected, 1e-4)


@every_preset
@torch.no_grad()
def test_rows_of_a_batch_are_decoded_independently(preset: str, version: str):
    model, tokens = preset_model(preset, version), some_tokens(3, CONTEXT)
    together, _ = in_place(model, tokens, 4)
    for row in range(3):
        alone, _ = in_place(model, tokens[row : row + 1], 4)
        assert_near(together[row : row + 1], alone, 1e-5)


@pytest.mark.slow
def test_whole_models_on_the_kernels():
    interpreted("", "interpreted_generation.py")


# Prefill


@every_preset
@torch.no_grad()
def test_last_only_gives_the_last_logits(preset: str, version: str):
    model, tokens = preset_model(preset, version), some_tokens(2, CONTEXT)
    whole, state = model.prefill(tokens[:, :6])
    last, same = model.prefill(tokens[:, :6], last_only=True)
    assert last.shape == (2, 1, VOCABULARY)
    assert_near(last, whole[:, -1:], 1e-6)
    for ours, theirs in zip(same.layers, state.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@every_preset
@torch.no_grad()
def test_long_prompts_are_read_in_segments(preset: str, version: str, monkeypatch: pytest.MonkeyPatch):
    """Of 14 tokens for two sequences: passes of 7 each; then steps go on as after one pass."""
    model = inference_model(preset_model(preset, version, context=40), "fp32")
    tokens, passes, prefill = some_tokens(2, 40), [], model.prefill

    def noted(piece: Tensor, *rest: Any, **options: Any) -> Any:
        passes.append(piece.shape[1])
        return prefill(piece, *rest, **options)

    monkeypatch.setattr(model, "prefill", noted)
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 14)
    decoder = Decoder(model, 2, 40)
    expected = model(tokens)
    assert_near(decoder.prefill(tokens[:, :31]), expected[:, 30], 1e-5)
    assert passes == [7, 7, 7, 7, 3]
    assert_near(decoder.step(tokens[:, 31]), expected[:, 31], 1e-5)
    assert_near(decoder.prefill(tokens[:, 32:]), expected[:, -1], 1e-5)


# Precisions


@every_preset
def test_what_stays_in_fp32(preset: str, version: str):
    """Matrices and embeddings in bf16; the rest, and states of recurrences, in fp32."""
    model = inference_model(preset_model(preset, version), "bf16")
    assert not model.training
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim == 2 and name != "position.weight"
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name
        assert not parameter.requires_grad
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    for block, state in zip(model.layers, model.allocate(1, 4).layers, strict=True):
        linear = isinstance(block.token_mixer, mixers.GatedLinearAttention | mixers.NormAttention)
        assert {part.dtype for part in state} == {torch.float32 if linear else torch.bfloat16}


def test_learned_decays_stay_in_fp32():
    model = inference_model(preset_model("transnormerllm", decay="learned"), "bf16")
    decay: Any = model.layers[0].token_mixer.decay
    assert isinstance(decay, LearnedDecay)
    assert decay.log_slope.dtype == torch.float32


def test_no_such_precision():
    with pytest.raises(ValueError, match="known are fp32, bf16"):
        inference_model(preset_model("gpt2"), "fp8")  # type: ignore[arg-type]


# Limits


def test_the_capacity_is_named():
    model = preset_model("transformer")
    tokens = some_tokens(1, 4)
    state = model.allocate(1, 4)
    model.prefill(tokens, state)
    for call in (
        lambda: model.decode(tokens[:, 0], state),
        lambda: model.prefill(tokens[:, :1], state),
        lambda: Decoder(model, 1, 4).prefill(some_tokens(1, 5)),
    ):
        with pytest.raises(ValueError, match="allocated for 4 tokens, asked for 5"):
            call()
    assert state.tokens == 4


def test_models_of_constant_state_have_no_capacity():
    model = preset_model("transnormerllm")
    _, state = in_place(model, some_tokens(1, CONTEXT), 5)
    assert state.capacity is None
    model.decode(some_tokens(1, 1)[:, 0], state)


def test_learned_positions_end():
    model = preset_model("gpt2")
    _, state = in_place(model, some_tokens(1, CONTEXT), 5)
    state.capacity = None
    with pytest.raises(ValueError, match=f"end at {CONTEXT}, asked for {CONTEXT + 1}"):
        model.decode(some_tokens(1, 1)[:, 0], state)


def test_decoding_needs_an_allocated_state():
    model = preset_model("gpt2")
    with pytest.raises(ValueError, match="allocate"):
        model.decode(torch.zeros(1, dtype=torch.int64), model.initial_state(1))


# Parts that the decode operator does not know


class Doubled(FeatureMap):
    """Not one of the built-in maps."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.abs()


class Scaled(Position):
    """Grows with the position; nothing that the operator could compute."""

    place = "scores"

    def rotate(self, q: Tensor, k: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        steps = (start + torch.arange(q.shape[1])).view(-1, 1, 1) + 1
        return q * steps, k / steps


@torch.no_grad()
def test_parts_of_third_parties_are_computed_before_the_step():
    parts = Parts(feature_map=Doubled(), position=Scaled())
    mixer = mixers.NormAttention(16, 2, parts)
    x = torch.randn(2, 6, 16)
    state = mixer.allocate(2, 6, x)
    out = [mixer.decode(token, state, torch.tensor([n]), n)[:, None] for n, token in enumerate(x.unbind(1))]
    torch.testing.assert_close(torch.cat(out, dim=1), mixer(x), rtol=1e-5, atol=1e-5)


# The decoder


@torch.no_grad()
def test_a_decoder_begins_again():
    model, tokens = inference_model(preset_model("transnormer-t1"), "fp32"), some_tokens(2, CONTEXT)
    decoder = Decoder(model, 2, CONTEXT)
    first = decoder.prefill(tokens)
    decoder.reset()
    assert decoder.tokens == 0
    assert torch.equal(decoder.prefill(tokens), first)


@pytest.mark.parametrize("preset", registry.names("preset"))
@torch.no_grad()
def test_a_repeatable_step_stays_at_its_place(preset: str):
    model = inference_model(preset_model(preset), "fp32")
    decoder = Decoder(model, 2, 8)
    step = decoder.repeatable(7)
    logits = [step().clone() for _ in range(2)]
    assert decoder.tokens == 7
    assert decoder.state.position is not None
    assert decoder.state.position.item() == 7
    assert all(part.isfinite().all() for part in logits)
    if not model.constant_state:
        assert torch.equal(*logits)
    with pytest.raises(ValueError, match="needs a model on a GPU"):
        decoder.repeatable(7, graph=True)


def test_a_repeatable_step_has_room():
    decoder = Decoder(inference_model(preset_model("transformer"), "fp32"), 1, 8)
    with pytest.raises(ValueError, match="allocated for 8 tokens, asked for 9"):
        decoder.repeatable(8)


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="not on a GPU"):
        Decoder(preset_model("transnormerllm"), 1, 8, graph=True)
    with pytest.raises(ValueError, match="its cache grows"):
        Decoder(preset_model("transformer"), 1, 8, graph=True)


def test_state_bytes_are_those_declared():
    """4 bytes a value, and the key dim of a diagonal block is that of whole blocks."""
    for preset in ("transnormerllm", "retnet", "transformer"):
        model = inference_model(preset_model(preset), "fp32")
        assert Decoder(model, 3, 50).state_bytes == 3 * 4 * model.state_size(50)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["transnormerllm", "transformer", "transnormer-t1"])
@torch.no_grad()
def test_compiled_steps_are_eager_steps(preset: str):
    """One graph for models of constant state, however far the sequence goes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = inference_model(preset_model(preset), "fp32")
    tokens = some_tokens(2, CONTEXT)
    logits = []
    for compiled in (False, True):
        decoder = Decoder(model, 2, CONTEXT, compiled=compiled)
        steps = [decoder.step(token).clone() for token in tokens.unbind(1)]
        logits.append(torch.stack(steps, dim=1))
    assert_near(logits[1], logits[0], 1e-5)
    if model.constant_state:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_mixed_layers_decode():
    """Layers of softmax attention among linear ones: not of constant state, and still right."""
    model = built(configured(mixer=["gla", "softmax"], position="rope"), wide=False)
    tokens = some_tokens(2, CONTEXT)
    assert not model.constant_state
    assert_near(in_place(model, tokens, 3)[0], model(tokens), 1e-5)
