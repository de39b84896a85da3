"""Training: schedules, optimizer, evaluation and a whole run."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY, manifest, tiny, values
from torch import nn

from tnbench.config import RunConfig
from tnbench.data import TokenData
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.resolution import resolve
from tnbench.training import checkpoint
from tnbench.training.evaluate import evaluate
from tnbench.training.loop import run
from tnbench.training.optimizer import clip, parameter_groups
from tnbench.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("settled_process")


# schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of warm-up; wsd decays over the last 4 of them
        (
            {"name": "wsd", "decay": 0.4},
            [0.5, 1, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)],
        ),
        ({"name": "wsd", "decay": 0}, [0.5] + [1] * 9),
        ({"name": "constant"}, [0.5] + [1] * 9),
        (
            {"name": "cosine", "floor": 0.2},
            [0.5, 1] + [0.2 + 0.4 * (1 + math.cos(math.pi * n / 8)) for n in range(8)],
        ),
    ],
)
def test_schedules_by_hand(corpus: Path, schedule: dict[str, Any], expected: list[float]) -> None:
    training = tiny(corpus, steps=10, warmup=2, learning_rate=0.01, schedule=schedule).training
    rates = [learning_rate(training, step) for step in range(10)]
    assert rates == pytest.approx([0.01 * factor for factor in expected])


def test_schedule_mistakes_are_named(corpus: Path) -> None:
    with pytest.raises(RequestError, match="did you mean cosine"):
        tiny(corpus, schedule="cosin")
    with pytest.raises(RequestError, match="decay"):
        tiny(corpus, schedule={"name": "wsd", "decay": 1.5})


# optimizer


def test_only_matrices_decay(corpus: Path) -> None:
    config = resolve(
        TINY,
        {"data.corpus": str(corpus), "training.steps": 1, "model.position": "lrpe", "model.decay": "learned"},
        {"model.norm": "rmsnorm", "model.tie_embeddings": False},
    )
    model = LanguageModel(config.model, 257, 32)
    matrices, rest = parameter_groups(model, 0.1)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0)
    names = {id(p): name for name, p in model.named_parameters()}
    decaying = {names[id(p)] for p in matrices["params"]}
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert decaying == linear
    others = " ".join(names[id(p)] for p in rest["params"])
    assert all(part in others for part in ("embedding", "theta", "log_slope", "norm"))
    assert len(matrices["params"]) + len(rest["params"]) == len(names)


def test_clipping_tells_the_norm_and_scales_to_the_limit() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    for limit, expected in ((0, [3.0, 0.0, 4.0]), (10, [3.0, 0.0, 4.0]), (1, [0.6, 0.0, 0.8])):
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert clip(parameters, limit).item() == pytest.approx(5)
        gradients = [value for p in parameters[:2] for value in p.grad.tolist()]  # type: ignore[union-attr]
        assert gradients == pytest.approx(expected, abs=1e-5)


def test_activation_checkpointing_gives_the_same_gradients(corpus: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(tiny(corpus).model, 257, 32)
    tokens = torch.randint(257, (2, 32))
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        model(tokens).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_accumulation_equals_one_batch(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    curves = []
    for micro in (256, 64):
        folder = RunFolder(tmp_path / str(micro))
        assert run(tiny(corpus, steps=4, micro_batch_tokens=micro), folder, data) == "finished"
        curves.append([v for v in values(folder) if v[0] in ("train_loss", "gradient_norm")])
    for whole_batch, accumulated in zip(*curves, strict=True):
        assert accumulated[:1] + accumulated[2:] == whole_batch[:1] + whole_batch[2:]
        assert accumulated[1] == pytest.approx(whole_batch[1], rel=1e-4)


# evaluation


def test_evaluation_by_hand(corpus: Path, data: TokenData) -> None:
    torch.manual_seed(0)
    model = LanguageModel(tiny(corpus).model, data.vocab_size, 32).train()
    texts = data.evaluation("tune", 32, max_bytes=1000)
    found = evaluate(model, texts, sequences=4)
    assert model.training
    nats = tokens = 0
    with torch.no_grad():
        for inputs, targets in texts.batches(1):
            for scores, target in zip(model(inputs)[0].tolist(), targets[0].tolist(), strict=True):
                nats -= math.log(math.exp(scores[target]) / sum(math.exp(score) for score in scores))
                tokens += 1
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / texts.text_bytes, rel=1e-5)
    assert found.loss_bits == pytest.approx(found.loss / math.log(2))
    assert evaluate(model, texts, sequences=4) == found


# a whole run


def test_records_of_a_finished_run(whole: RunFolder) -> None:
    record = manifest(whole)
    assert record["outcome"] == "finished"
    assert record["stopped_step"] == record["steps"] == 12
    assert record["attempts"] == 1
    assert record["variant"] == "base"
    assert record["notes"] == []
    assert record["peak_memory_bytes"] > 0
    assert 0 < record["training_seconds"] < 60
    assert record["tokens_per_second"] > 0
    assert RunConfig.model_validate(record["config"]).training.total_steps == 12
    assert not whole.resume.exists()

    found = values(whole)
    losses = [v for v in found if v[0] == "train_loss"]
    assert [v[3] for v in losses] == list(range(1, 13))
    assert [v[4] for v in losses] == [256 * step for step in range(1, 13)]
    assert losses[0][1] > losses[-1][1] + 0.2
    curve = [v for v in found if v[0] == "val_bits_per_byte" and v[5] == "tune"]
    assert [v[3] for v in curve] == [4, 8, 12]
    final = {v[0]: (v[1], v[2]) for v in found if v[5] == "report"}
    assert {name: unit for name, (_, unit) in final.items()} == {
        "val_loss": "nats",
        "val_loss_bits": "bits",
        "val_bits_per_byte": "bits per byte",
    }
    assert found[-1][0] == "epochs"


def test_final_weights_give_the_reported_figure(whole: RunFolder, corpus: Path, data: TokenData) -> None:
    model = LanguageModel(tiny(corpus).model, data.vocab_size, 32)
    assert checkpoint.load_weights(whole.weights, model)["step"] == 12
    found = evaluate(model, data.evaluation("report", 32), sequences=8)
    reported = [v[1] for v in values(whole) if v[0] == "val_bits_per_byte" and v[5] == "report"]
    assert reported == pytest.approx([found.bits_per_byte], rel=1e-6)


def test_a_run_leaves_the_process_as_it_was(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handler = signal.getsignal(signal.SIGINT)
    run(tiny(corpus, steps=1, evaluations=0), RunFolder(tmp_path / "run"), data, keep_weights=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_run_that_has_ended_is_left_alone(whole: RunFolder, corpus: Path, data: TokenData) -> None:
    before = whole.manifest.read_bytes(), whole.metrics.read_bytes()
    whole.resume.write_bytes(b"left by a crash after the manifest")
    assert run(tiny(corpus), whole, data) == "finished"
    assert (whole.manifest.read_bytes(), whole.metrics.read_bytes()) == before
    assert not whole.resume.exists()


def test_bf16_keeps_fp32_weights(whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus, precision="bf16"), folder, data) == "finished"
    assert {tensor.dtype for tensor in load_file(folder.weights).values()} == {torch.float32}
    figures = [[v[1] for v in values(f) if v[0] == "val_loss"] for f in (folder, whole)]
    assert figures[0] != figures[1]
    assert figures[0] == pytest.approx(figures[1], rel=0.02)


@pytest.mark.slow
def test_compile_gives_the_same_losses(
    whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus, compile=True), folder, data) == "finished", manifest(folder)["traceback"]
    figures = [[v[1] for v in values(f) if v[0] == "train_loss"] for f in (folder, whole)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)


def test_no_gpu_is_a_mistake_in_the_request(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="no GPU"):
        run(tiny(corpus, device="cuda"), RunFolder(tmp_path / "run"), data)
    assert not (tmp_path / "run").exists()


def test_manifest_is_plain_json(whole: RunFolder) -> None:
    text = whole.manifest.read_text()
    assert json.loads(text)["schema"] == 1
    assert "NaN" not in text
