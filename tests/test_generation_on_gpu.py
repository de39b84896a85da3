"""Generation on a GPU: graphs and compiled steps against eager ones, against the parallel form, and flat."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from test_decoding import VOCABULARY, assert_near, preset_model, some_tokens
from test_models import PRESETS
from torch import Tensor

from tnbench import registry
from tnbench.evaluation import generation
from tnbench.evaluation.generation import Decoder, generate, inference_model
from tnbench.evaluation.sampling import Sampler
from tnbench.model import LanguageModel
from tnbench.resolution import resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("fixed_seed"),
]

every_preset = pytest.mark.parametrize(("preset", "version"), PRESETS)
GAPS = {"fp32": 2e-3, "bf16": 0.05, "fp16": 0.01}
"""Distance to the exact logits, as vectors: TF32 products in some kernels; ten roundings of 2^-8 in a row."""


@pytest.fixture
def fixed_seed() -> None:
    torch.manual_seed(0)


def on_gpu(preset: str, precision: Any, version: str = "v2", **diff: Any) -> LanguageModel:
    """Head dims of 64; weights of normal size."""
    tiny = {"width": 256, "channel_width": 320, "init_std": 0.02, **diff}
    return inference_model(preset_model(preset, version, context=512, **tiny).cuda(), precision)


def sized(preset: str, size: str, vocabulary: int = 50272) -> LanguageModel:
    """A preset of a named size in bf16."""
    with torch.device("cuda"):
        labels = {"training.steps": 1, "model.preset": preset, "model.size": size}
        model = LanguageModel(resolve(labels).model, vocabulary, 2048)
    return inference_model(model, "bf16")


def stepped(decoder: Decoder, tokens: Tensor, cut: int) -> Tensor:
    """Logits of the tokens from `cut` on, which are read one by one."""
    decoder.reset()
    decoder.prefill(tokens[:, :cut])
    return torch.stack([decoder.step(token).clone() for token in tokens[:, cut:].unbind(1)], dim=1)


@every_preset
@pytest.mark.parametrize("precision", GAPS)
@torch.no_grad()
def test_prefill_and_decode_are_the_parallel_form(preset: str, version: str, precision: str):
    """The kernels, against float64 on the CPU by the plain forms."""
    tokens = some_tokens(2, 200)
    torch.manual_seed(1)
    model = on_gpu(preset, precision, version)
    torch.manual_seed(1)
    exact = preset_model(preset, version, context=512, width=256, channel_width=320, init_std=0.02).double()
    expected = exact(tokens)
    for length in (1, 2, 65, 200):
        cut = max(1, length - 20)
        decoder = Decoder(model, 2, length)
        assert_near(decoder.prefill(tokens[:, :cut]).cpu(), expected[:, cut - 1], GAPS[precision])
        if length > cut:
            logits = stepped(decoder, tokens[:, :length], cut)
            assert_near(logits.cpu(), expected[:, cut:length], GAPS[precision])


@pytest.mark.parametrize("preset", registry.names("preset"))
@pytest.mark.parametrize("precision", GAPS)
@torch.no_grad()
def test_segments_of_a_prompt_are_one_prefill(preset: str, precision: str, monkeypatch: pytest.MonkeyPatch):
    """Later segments attend to a cache: a bias, no causal square."""
    model, tokens = on_gpu(preset, precision), some_tokens(2, 300).cuda()
    whole = Decoder(model, 2, 300, graph=False).prefill(tokens)
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 140)
    pieces = Decoder(model, 2, 300, graph=False).prefill(tokens)
    assert_near(pieces, whole, GAPS[precision])


@pytest.mark.parametrize("preset", ["transnormerllm", "retnet", "transnormer-t1", "transnormer-t2"])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_a_replayed_step_is_the_eager_step(preset: str, compiled: bool):
    """Bit for bit, over the block boundary of diagonal attention; compiled kernels are others, and near."""
    model, tokens = on_gpu(preset, "bf16"), some_tokens(3, 150).cuda()
    eager = stepped(Decoder(model, 3, 150, graph=False), tokens, 50)
    decoder = Decoder(model, 3, 150, compiled=compiled)
    replayed = stepped(decoder, tokens, 50)
    if compiled:
        assert_near(replayed, eager, GAPS["bf16"])
    else:
        assert torch.equal(replayed, eager)
    assert torch.equal(stepped(decoder, tokens, 50), replayed)


@pytest.mark.parametrize("preset", ["transformer", "gpt2"])
@torch.no_grad()
def test_a_cache_is_captured_at_a_fixed_length(preset: str):
    """The replayed step is the eager step at that length, as often as it is called."""
    model = on_gpu(preset, "bf16")
    decoder = Decoder(model, 2, 300)
    eager = decoder.repeatable(257, graph=False)().clone()
    step = decoder.repeatable(257)
    for _ in range(3):
        assert torch.equal(step(), eager)
    assert decoder.tokens == 257


@torch.no_grad()
def test_a_captured_step_keeps_what_it_reads():
    """Nobody else holds the decoder, its model and its state; other tensors take any memory that is freed."""

    def logits(graph: bool) -> Tensor:
        torch.manual_seed(0)
        step = Decoder(on_gpu("transformer", "bf16"), 2, 300).repeatable(257, graph=graph)
        gc.collect()
        others = [torch.full((1 << 18,), float("nan"), device="cuda") for _ in range(256)]
        found = step().clone()
        del others
        return found

    assert torch.equal(logits(True), logits(False))


@torch.no_grad()
def test_a_compiled_step_of_a_cache():
    model, tokens = on_gpu("transformer", "bf16"), some_tokens(2, 60).cuda()
    eager = stepped(Decoder(model, 2, 60), tokens, 20)
    assert_near(stepped(Decoder(model, 2, 60, compiled=True), tokens, 20), eager, GAPS["bf16"])


@pytest.mark.parametrize("preset", registry.names("preset"))
@torch.no_grad()
def test_rows_of_a_batch_are_near_the_rows_alone(preset: str):
    """Other shapes take other kernels: near, not equal."""
    model, tokens = on_gpu(preset, "bf16"), some_tokens(3, 40).cuda()
    together = stepped(Decoder(model, 3, 40), tokens, 20)
    for row in range(3):
        alone = stepped(Decoder(model, 1, 40), tokens[row : row + 1], 20)
        assert_near(together[row : row + 1], alone, GAPS["bf16"])


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_what_is_under_way_changes_no_token(preset: str):
    """Sampled tokens of steps that are launched ahead are those of steps that are waited for."""
    model, prompt = on_gpu(preset, "fp32"), some_tokens(1, 7)
    decoder, rows = Decoder(model, 4, 100), []
    for asynchronous in (True, False):
        decoder.asynchronous = asynchronous
        decoder.reset()
        # Hot: at 0.8 an untrained model whose embeddings are tied repeats the token that it reads.
        sample = Sampler(4, temperature=2.0, top_k=11, top_p=0.9, seed=3, device="cuda")
        rows.append([row.tolist() for row in generate(decoder, prompt, sample, tokens=90)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 90
    assert len({token for row in rows[0] for token in row}) > 1


@pytest.mark.parametrize("preset", registry.names("preset"))
@torch.no_grad()
def test_steps_and_draws_do_not_wait(preset: str):
    """Nothing on the way to the next token asks the GPU for a value."""
    model = on_gpu(preset, "bf16")
    decoder = Decoder(model, 2, 30, graph=False)
    sample = Sampler(2, temperature=0.8, top_k=5, top_p=0.9, device="cuda")
    token = sample(decoder.step(torch.zeros(2, dtype=torch.int64, device="cuda")))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            token = sample(decoder.step(token))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert token.max() < VOCABULARY


def milliseconds(step: Any, calls: int = 50) -> float:
    """The median of single calls."""
    times = []
    for _ in range(calls):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[calls // 2]


@torch.no_grad()
def test_time_and_memory_are_flat():
    """TransNormerLLM-385M after 256 and after 128k tokens: one state, one time within 5 %."""
    model = sized("transnormerllm", "385m")
    decoder = Decoder(model, 1, 1 << 17)
    token = torch.zeros(1, dtype=torch.int64, device="cuda")
    found = []
    for context in (256, 1 << 17) * 3:
        decoder.seek(context)
        milliseconds(lambda: decoder.step(token), 20)
        torch.cuda.reset_peak_memory_stats()
        found.append((milliseconds(lambda: decoder.step(token)), torch.cuda.max_memory_allocated()))
    short, long = min(found[0::2]), min(found[1::2])
    assert long[0] < 1.05 * short[0], found
    assert found[0][1] == found[1][1]


@torch.no_grad()
def test_a_long_prompt_is_read_in_constant_memory():
    """After the weights: 100k tokens take no more than 17k do."""
    model = sized("transnormerllm", "385m")
    peaks = []
    for length in (17_000, 100_000):
        decoder = Decoder(model, 1, length, graph=False)
        torch.cuda.reset_peak_memory_stats()
        logits = decoder.prefill(torch.randint(50272, (1, length), device="cuda"))
        peaks.append(torch.cuda.max_memory_allocated())
        assert logits.isfinite().all()
    assert peaks[1] < 1.01 * peaks[0] + 2**20, peaks


@pytest.mark.parametrize("preset", registry.names("preset"))
@torch.no_grad()
def test_a_hundred_thousand_tokens(preset: str):
    """Models of constant state, fp32: segments and replayed steps behind them, against one parallel pass."""
    model = inference_model(preset_model(preset, init_std=0.02, width=256, channel_width=320).cuda(), "fp32")
    if not model.constant_state:
        pytest.skip("its state grows")
    tokens = some_tokens(1, 100_000).cuda()
    expected, _ = model.prefill(tokens)
    decoder = Decoder(model, 1, 100_000)
    assert_near(stepped(decoder, tokens, 100_000 - 30), expected[:, -30:], GAPS["fp32"])
