"""The memory model beside what torch's allocator measures on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from tnbench.config import RunConfig
from tnbench.evaluation.generation import Decoder, inference_model
from tnbench.model import LanguageModel
from tnbench.profiling.models.memory import predict
from tnbench.resolution import resolve
from tnbench.training.optimizer import adamw
from tnbench.training.step import objective, optimizer_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

VOCABULARY = 50272


def configured(preset: str, size: str, context: int, sequences: int, **training: object) -> RunConfig:
    return resolve(
        {"model.preset": preset, "model.size": size, "data.context": context},
        {"training.steps": 2, "training.batch_tokens": sequences * context, "training.device": "cuda"},
        {"training.precision": "bf16", **{f"training.{key}": value for key, value in training.items()}},
    )


def call_of(config: RunConfig, mode: str, sequences: int) -> Callable[[], object]:
    context, training = config.data.context, config.training
    with torch.device("cuda"):
        model = LanguageModel(config.model, VOCABULARY, context)
    if mode == "train":
        model.activation_checkpointing = training.activation_checkpointing
        optimizer, loss = adamw(model, training), objective(model, training)
        batch = torch.randint(VOCABULARY, (sequences, context + 1), device="cuda")
        return lambda: optimizer_step(model, optimizer, batch, training, loss=loss)
    inference_model(model, training.precision)
    if mode == "prefill":
        tokens = torch.randint(VOCABULARY, (sequences, context), device="cuda")
        return torch.inference_mode()(lambda: model.prefill(tokens, last_only=True)[0])
    return Decoder(model, sequences, context, graph=False).repeatable(context - 1, graph=False)


def measured(config: RunConfig, mode: str, sequences: int) -> int:
    """The peak of the second call, all that lies there between calls included."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    call = call_of(config, mode, sequences)
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
@pytest.mark.parametrize(("size", "sequences"), [("35m", 8), ("385m", 8)])
@pytest.mark.parametrize("training", [{}, {"compile": True}, {"activation_checkpointing": True}], ids=str)
def test_training(preset: str, size: str, sequences: int, training: dict):
    config = configured(preset, size, 2048, sequences, **training)
    found = predict(config, VOCABULARY, "train", batch=sequences, device="cuda")
    there = measured(config, "train", sequences)
    torch._dynamo.reset()
    assert found.total == pytest.approx(there, rel=0.1), (found, there)


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
def test_long_contexts_and_blocks(preset: str):
    for context, training in ((32768, {"compile": True}), (8192, {"compile": "blocks"})):
        config = configured(preset, "385m", context, 1, **training)
        found = predict(config, VOCABULARY, "train", batch=1, device="cuda")
        there = measured(config, "train", 1)
        torch._dynamo.reset()
        assert found.total == pytest.approx(there, rel=0.1), (context, training, found, there)


@pytest.mark.parametrize("preset", ["transnormerllm", "transformer"])
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_inference(preset: str, mode: str):
    config = configured(preset, "385m", 8192, 4)
    found = predict(config, VOCABULARY, mode, batch=4, device="cuda")  # type: ignore[arg-type]
    there = measured(config, mode, 4)
    assert found.total == pytest.approx(there, rel=0.1), (found, there)
