"""The memory model: predicted peaks beside measured ones, and what fits a budget."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torch.fx import symbolic_trace

from tnbench.config import RunConfig
from tnbench.errors import RequestError
from tnbench.evaluation.generation import Decoder, inference_model
from tnbench.model import LanguageModel
from tnbench.profiling.kernels.memory import peak
from tnbench.profiling.models import fit, memory
from tnbench.profiling.models.fused import walk
from tnbench.profiling.models.memory import Memory, predict
from tnbench.profiling.models.tracing import LIBRARIES
from tnbench.resolution import resolve
from tnbench.training.optimizer import adamw
from tnbench.training.step import objective, optimizer_step

VOCABULARY, SEQUENCES = 1000, 4
FAMILIES = ("transnormerllm", "transformer", "gpt2", "transnormer-t1", "transnormer-t2", "retnet")
CLOSE = 0.03  # of the measured peak; compiled steps: 0.1


def configured(preset: str, size: str = "0.4m", context: int = 128, **training: object) -> RunConfig:
    return resolve(
        {"model.preset": preset, "model.size": size, "data.context": context},
        {"training.steps": 2, "training.batch_tokens": SEQUENCES * context},
        {f"training.{key}": value for key, value in training.items()},
    )


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def measured(config: RunConfig, mode: str) -> int:
    """The peak of the second call on this CPU, from torch's own record of its allocations."""
    context, training = config.data.context, config.training
    model = LanguageModel(config.model, VOCABULARY, context)
    if mode == "train":
        model.activation_checkpointing = training.activation_checkpointing
        optimizer, loss = adamw(model, training), objective(model, training)
        sequences = training.batch_tokens // context
        micro = (training.micro_batch_tokens or training.batch_tokens) // context
        batch = torch.zeros(sequences, context + 1, dtype=torch.int64)

        def call() -> object:
            return optimizer_step(model, optimizer, batch, training, loss=loss, micro_sequences=micro)

        call()
        held = nbytes(batch, *(x for state in optimizer.state.values() for x in state.values()))
    else:
        inference_model(model, training.precision)
        if mode == "prefill":
            tokens = torch.zeros(SEQUENCES, context, dtype=torch.int64)
            call = torch.inference_mode()(lambda: model.prefill(tokens, last_only=True)[0])
            held = nbytes(tokens)
        else:
            decoder = Decoder(model, SEQUENCES, context, graph=False)
            call, held = decoder.repeatable(context - 1), decoder.state_bytes
    beyond = peak(call, "cpu")
    assert beyond is not None
    return held + nbytes(*model.parameters(), *model.buffers()) + beyond


def check(config: RunConfig, mode: memory.Mode, close: float = CLOSE) -> Memory:
    training = config.training
    batch = SEQUENCES
    if training.micro_batch_tokens:
        batch = training.micro_batch_tokens // config.data.context
    found = predict(config, VOCABULARY, mode, batch=batch, device="cpu")
    assert found.total == pytest.approx(measured(config, mode), rel=close)
    return found


@pytest.mark.parametrize(
    ("preset", "mode"),
    [("transnormerllm", "train"), ("transnormerllm", "prefill"), ("transformer", "decode")],
)
def test_prediction_is_what_is_measured(preset, mode):
    # A product of few rows takes a scratch of its own, which a smaller model would notice.
    check(configured(preset, "1m" if mode == "decode" else "0.1m", precision="bf16"), mode)


def test_checkpointing_accumulation_and_chunked_loss_are_in_the_prediction():
    plain = configured("gpt2", "0.1m", precision="bf16")
    everything = {"activation_checkpointing": True, "micro_batch_tokens": 256, "loss": "chunked"}
    config = configured("gpt2", "0.1m", precision="bf16", **everything)
    assert check(config, "train") != predict(plain, VOCABULARY, "train", batch=2, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prediction_is_what_is_measured_for_every_family(preset, precision):
    for training in ({}, {"activation_checkpointing": True}, {"loss": "chunked"}):
        check(configured(preset, "1m", 256, precision=precision, **training), "train")
    for mode in ("prefill", "decode"):
        check(configured(preset, "1m", 256, precision=precision), mode)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
@pytest.mark.parametrize("how", [True, "blocks"])
def test_compiled_steps_are_predicted_within_a_tenth(preset, how):
    check(configured(preset, "0.1m", 256, precision="bf16", compile=how), "train", 0.1)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_and_recomputed_steps_are_predicted_within_a_tenth():
    recomputed = configured("transformer", "0.1m", 256, compile=True, activation_checkpointing=True)
    check(recomputed, "train", 0.1)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("preset", "device", "mode"),
    [
        ("transnormerllm", "cuda", "train"),
        ("transnormer-t1", "cuda", "decode"),
        pytest.param("transnormer-t1", "cuda", "train", marks=pytest.mark.slow),
        pytest.param("transnormer-t1", "cpu", "train", marks=pytest.mark.slow),
        pytest.param("transnormerllm", "cpu", "prefill", marks=pytest.mark.slow),
    ],
)
def test_peaks_of_deep_models_follow_from_a_few_layers(preset, device, mode):
    config = configured(preset, "0.8m", 128, precision="bf16")
    config = config.model_copy(update={"model": config.model.model_copy(update={"layers": 9})})
    for batch in (1, 16) if mode == "train" else (2,):  # the peak is at the update, and at the loss
        direct = memory._trace(config, 9, VOCABULARY, mode, batch, device)
        largest = max(direct.values(), key=lambda found: found.total)
        assert predict(config, VOCABULARY, mode, batch=batch, device=device).total == largest.total


def test_parts_are_what_the_model_has():
    config = configured("transnormerllm", "0.1m", 256)
    with torch.device("meta"):
        model = LanguageModel(config.model, VOCABULARY, 256)
    weights = 4 * model.parameter_counts()["total"]
    few = predict(config, VOCABULARY, "train", batch=1, device="cpu")
    assert few.parameters == pytest.approx(weights, rel=0.001)
    assert few.optimizer == pytest.approx(2 * weights, rel=0.001)
    assert 0 <= few.gradients <= weights
    assert few.state == 0
    decoding = predict(config, VOCABULARY, "decode", batch=3, device="cpu")
    assert decoding.state == pytest.approx(3 * 4 * model.state_size(256), rel=0.001)
    assert (decoding.gradients, decoding.optimizer) == (0, 0)


def test_states_of_linear_attention_do_not_grow_and_caches_do():
    def bytes_at(preset: str, context: int) -> Memory:
        config = configured(preset, "385m", context, precision="bf16")
        return predict(config, 50272, "decode", batch=1, device="cuda")

    assert bytes_at("transnormerllm", 256) == bytes_at("transnormerllm", 131072)
    short, long = bytes_at("transformer", 1024), bytes_at("transformer", 131072)
    assert long.state == pytest.approx(128 * short.state, rel=0.001)


def test_a_gpu_has_no_scores_and_no_chunks_of_states_in_memory():
    config = configured("transnormerllm", "0.1m", 1024, precision="bf16")
    there = predict(config, VOCABULARY, "train", batch=4, device="cuda").activations - LIBRARIES["cuda"]
    here = predict(config, VOCABULARY, "train", batch=4, device="cpu").activations
    assert there < 0.9 * here


def test_attention_that_is_computed_again_is_the_same():
    """A recomputation happens inside Tensor.backward; saved values that differ there are refused by torch."""
    totals = [
        predict(
            configured("transformer", "0.4m", 1024, activation_checkpointing=again),
            VOCABULARY,
            "train",
            batch=SEQUENCES,
            device="cuda",
        ).activations
        for again in (True, False)
    ]
    assert totals[0] < 0.8 * totals[1]


def test_the_largest_model_is_predicted_within_seconds():
    config = configured("transnormerllm", "175b", 8192, precision="bf16")
    begun = time.process_time()
    found = predict(config, 50272, "train", batch=1, device="cuda")
    assert time.process_time() - begun < 10  # one to two on an idle machine
    assert found.total > 16 * 150e9


def test_a_fused_operator_writes_memory_only_for_others():
    def chain(x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten.mm.default(
            torch.ops.aten.mul.Tensor(torch.ops.aten.exp.default(x), torch.ops.aten.neg.default(x)), w
        )

    graph = symbolic_trace(chain).graph
    for node in graph.nodes:
        node.meta["val"] = torch.empty(8, 8, device="meta")
    steps = walk(graph, {"x", "w"})
    assert max(steps.early, steps.late) == 2 * 8 * 8 * 4  # the product's operand and its result


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("80GB", 80 * 10**9), ("24GiB", 24 * 2**30), ("512 MB", 512 * 10**6), ("1.5gib", 3 << 29), ("7", 7)],
)
def test_budgets(text, wanted):
    assert fit.parse_budget(text) == wanted


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "80 G", "80 apples", "1e400GB", "9" * 500 + "GB"])
def test_what_is_no_budget(text):
    with pytest.raises(RequestError, match="no amount of memory"):
        fit.parse_budget(text)


@pytest.mark.parametrize("budget", [90, 99, 1000, 123_456, 10**7, 10**12])
def test_a_search_finds_the_edge_in_few_steps(budget):
    asked = []

    def bytes_of(n: int) -> int:
        return 90 + 7 * n + (n // 1000) ** 2

    def needs(n: int) -> int:
        asked.append(n)
        return bytes_of(n)

    found = fit.search(needs, budget, 1 << 20)
    assert found == 0 or bytes_of(found) <= budget
    assert found == 1 << 20 or budget < bytes_of(found + found // 32 + 1)
    assert len(asked) <= 8


def test_what_fits_fits_and_a_little_more_does_not():
    config, budget = configured("transformer", "35m", 2048, precision="bf16", device="cuda"), 10**10

    def total(mode: memory.Mode, context: int, batch: int) -> int:
        at = memory.at_context(config, context)
        return predict(at, 50272, mode, batch=batch, device="cuda").total

    context = fit.largest_context(config, budget, "decode", batch=1, vocab_size=50272)
    assert context % fit.CONTEXT_STEP == 0
    assert total("decode", context, 1) <= budget < total("decode", context + context // 32 + 256, 1)
    batch = fit.largest_batch(config, budget, "train", vocab_size=50272)
    assert total("train", 2048, batch) <= budget < total("train", 2048, batch + 1 + batch // 32)
    assert fit.largest_batch(config, 10**8, "train", vocab_size=50272) == 0


def test_answers_name_the_largest_size_first():
    sizes = {size: configured("gpt2", size, 1024, precision="bf16") for size in ("0.1m", "385m", "7b")}
    size, *rest = fit.answers(sizes, 2 * 10**9, "decode", batch=2, vocab_size=VOCABULARY)
    assert (size.question, size.answer) == ("size", "385m")
    assert [row.question for row in rest] == ["context", "batch"] * 3
    assert [row.answer is None for row in rest] == [False] * 4 + [True] * 2
    for row in rest[:4]:
        assert row.memory is not None
        assert row.memory.total <= 2 * 10**9


def test_a_wrong_question_is_refused():
    config = configured("gpt2")
    for mode, batch, device in (("guess", 1, "cpu"), ("train", 0, "cpu"), ("train", 1, "tpu")):
        with pytest.raises(ValueError, match="known are train, prefill, decode"):
            predict(config, VOCABULARY, mode, batch=batch, device=device)  # type: ignore[arg-type]
