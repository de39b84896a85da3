"""Training: schedules, optimizer, checkpoints, evaluation, and runs that are cut short in every way."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tnbench.config import RunConfig
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, read_metrics
from tnbench.resolution import resolve
from tnbench.training import checkpoint
from tnbench.training.evaluate import evaluate
from tnbench.training.loop import Progress, run
from tnbench.training.memory import PeakMemory
from tnbench.training.optimizer import adamw, clip, parameter_groups
from tnbench.training.schedule import learning_rate
from tnbench.training.state import LossWatch, State

MEASURED = {"step_seconds", "tokens_per_second", "peak_memory_bytes"}
TINY = {
    "model.width": 32,
    "model.layers": 2,
    "model.heads": 4,
    "model.channel_width": 48,
    "data.context": 32,
    "training.steps": 12,
    "training.batch_tokens": 256,
    "training.evaluations": 3,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of random words, about 80 KB."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 9))) for _ in range(300)]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(1200)]
    path = folder / "words.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module", autouse=True)
def _settled_process() -> Iterator[None]:
    """One thread, and a garbage collector that does not look through torch's imports before every run."""
    import torch._dynamo

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tiny(corpus: Path, **training: Any) -> RunConfig:
    return resolve(TINY, {"data.corpus": str(corpus)}, {f"training.{k}": v for k, v in training.items()})


@pytest.fixture(scope="module")
def data(corpus: Path) -> TokenData:
    return prepare(tiny(corpus).data, quiet=True)


def values(folder: RunFolder) -> list[tuple[Any, ...]]:
    """All metric values that do not measure the machine, exactly and in order."""
    lines, problems = read_metrics(folder.metrics)
    assert not problems
    kept = [line for line in lines if line["name"] not in MEASURED]
    return [tuple(line[key] for key in ("name", "value", "unit", "step", "tokens", "split")) for line in kept]


def same_run(folder: RunFolder, other: RunFolder) -> bool:
    weights, others = load_file(folder.weights), load_file(other.weights)
    assert weights.keys() == others.keys()
    return all(torch.equal(weights[n], others[n]) for n in weights) and values(folder) == values(other)


def manifest(folder: RunFolder) -> dict[str, Any]:
    found = folder.read_manifest()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(corpus: Path, data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The uninterrupted run that resumed ones have to equal."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    assert run(tiny(corpus), folder, data, attributes={"variant": "base"}) == "finished"
    return folder


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


# cut short and resumed


class Watcher:
    """Stops a run at the n-th progress report of a phase, from a step on."""

    def __init__(self, step: int, phase: str) -> None:
        self.at, self.phase, self.reached = step, phase, False

    def progress(self, now: Progress) -> None:
        self.reached = now.step >= self.at and now.phase == self.phase

    def stop(self) -> bool:
        return self.reached


@pytest.mark.parametrize(
    ("step", "phase"),
    [(1, "training"), (5, "training"), (8, "evaluating"), (12, "training"), (12, "evaluating")],
)
def test_resumed_equals_uninterrupted(
    step: int, phase: str, whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder, watcher = RunFolder(tmp_path / "run"), Watcher(step, phase)
    assert run(tiny(corpus), folder, data, progress=watcher.progress, stop=watcher.stop) == "interrupted"
    record = manifest(folder)
    assert (record["outcome"], record["ended"], record["stopped_step"]) == (None, None, step)
    assert folder.resume.exists()
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    assert manifest(folder)["attempts"] == 2
    assert manifest(folder)["notes"] == []


def test_ctrl_c_waits_for_the_step(whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path) -> None:
    def press(now: Progress) -> None:
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus), folder, data, progress=press) == "interrupted"
    assert manifest(folder)["stopped_step"] == 3
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)


KILLED = """
import json, os, signal, sys
from tnbench.config import RunConfig
from tnbench.data import prepare
from tnbench.records import RunFolder
from pathlib import Path
from tnbench.training.loop import run

config = RunConfig.model_validate(json.loads(sys.argv[1]))

def progress(now):
    if now.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

run(config, RunFolder(Path(sys.argv[2])), prepare(config.data, quiet=True), progress=progress)
"""


def test_killed_equals_uninterrupted(whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = tiny(corpus, checkpoint_every=0).model_dump_json()
    command = [sys.executable, "-c", KILLED, config, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert manifest(folder)["attempts"] == 1
    assert folder.resume.exists()
    with open(folder.metrics, "ab") as file:
        file.write(b'{"name": "train_loss", "val')
    (folder.resume.parent / ".training.safetensors.1.tmp").write_bytes(b"unfinished")
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    assert manifest(folder)["attempts"] == 2
    assert [path.name for path in folder.resume.parent.iterdir()] == ["model.safetensors"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def belong_to_another_run(path: Path) -> None:
    RunFolder(path.parent.parent).path.rename(path.parent.parent.with_name("other"))


def lose_metrics(path: Path) -> None:
    (path.parent.parent / "metrics.jsonl").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte, "damaged"),
        (truncate, "cannot be read"),
        (belong_to_another_run, "belongs to run"),
        (lose_metrics, "no longer there"),
    ],
)
def test_a_damaged_checkpoint_starts_again_and_says_so(
    damage: Any, told: str, whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder, watcher = RunFolder(tmp_path / "run"), Watcher(5, "training")
    run(tiny(corpus), folder, data, progress=watcher.progress, stop=watcher.stop)
    damage(folder.resume)
    folder = folder if folder.path.exists() else RunFolder(tmp_path / "other")
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    (note,) = manifest(folder)["notes"]
    assert told in note
    assert "from the beginning" in note


# checkpoints


def test_checkpoint_is_replaced_as_a_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = tiny(corpus), tmp_path / "training.safetensors"
    model = LanguageModel(config.model, 257, 32)
    optimizer = adamw(model, config.training)
    record = {"run_id": "a", "metrics_length": 0, "state": State(watch=LossWatch(0.1 + 0.2, 3)).to_json()}
    checkpoint.save_training(path, model, optimizer, record)
    before = path.read_bytes()
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save_training(path, model, optimizer, record)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    checkpoint.save_training(path, model, optimizer, record)
    other = LanguageModel(config.model, 257, 32)
    restored = adamw(other, config.training)
    read = checkpoint.load_training(path, other, restored, "a", 0)
    assert State.from_json(read["state"]) == State(watch=LossWatch(0.1 + 0.2, 3))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert optimizer.state[mine].keys() == restored.state[theirs].keys()
        assert all(torch.equal(v, restored.state[theirs][k]) for k, v in optimizer.state[mine].items())


def test_a_checkpoint_of_another_model_is_refused(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(path, LanguageModel(tiny(corpus).model, 257, 32), {})
    with pytest.raises(checkpoint.CheckpointError, match="embedding"):
        checkpoint.load_weights(path, LanguageModel(tiny(corpus).model, 300, 32))
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load_weights(tmp_path / "none", LanguageModel(tiny(corpus).model, 257, 32))


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model, path = nn.Sequential(first, second), tmp_path / "model.safetensors"
    checkpoint.save_weights(path, model, {})
    assert list(load_file(path)) == ["0.weight"]
    stored = first.weight.detach().clone()
    nn.init.zeros_(first.weight)
    checkpoint.load_weights(path, model)
    assert torch.equal(second.weight, stored)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [64 << 10, 0])
def test_full_disk_keeps_what_was_finished(
    left: int, whole: RunFolder, corpus: Path, data: TokenData, small_disk: Path
) -> None:
    folder, filler = RunFolder(small_disk / "run"), small_disk / "filler"

    def fill(now: Progress) -> None:
        if now.step == 6 and not filler.exists():
            disk = os.statvfs(small_disk)
            filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - left)))

    assert run(tiny(corpus, checkpoint_every=0), folder, data, progress=fill) == "failed"
    record = manifest(folder)
    if left:
        assert record["outcome"] == "failed"
        assert record["reason"] == f"the disk that holds {folder.path} is full"
    else:
        assert record["outcome"] is None
    filler.unlink()
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    assert manifest(folder)["notes"] == []


# results that are not a finished run


def test_a_silly_learning_rate_diverges(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = tiny(corpus, steps=60, learning_rate=1e6, warmup=0, evaluations=0)
    assert run(config, folder, data) == "diverged"
    record = manifest(folder)
    assert record["outcome"] == "diverged"
    assert 1 < record["stopped_step"] <= 60
    assert "loss" in record["reason"] or "norm" in record["reason"]
    assert values(folder)[-1][3] == record["stopped_step"]
    assert not folder.weights.exists()
    assert not folder.resume.exists()


@pytest.mark.parametrize(
    ("losses", "norms", "told", "step"),
    [
        ([5.0, math.nan], [1, 1], "loss is nan", 2),
        ([5.0, 5.0, 5.0], [1, 1, math.inf], "gradient norm is inf", 3),
        ([5.0, 5.0, 70.0], [1] * 3, "above 10 times", 3),
        ([5.0] + [9.0] * 30, [1] * 31, "for 20 steps", 21),
        ([5.0] + ([9.0] * 19 + [5.0]) * 3, [1] * 61, None, None),
        ([12.0] + [17.0] * 30, [1] * 31, None, None),
    ],
)
def test_divergence_by_hand(
    losses: list[float], norms: list[float], told: str | None, step: int | None
) -> None:
    watch = LossWatch()  # ln 257 = 5.55, so 8.3 is high for a first loss of 5, and 18 for one of 12
    reasons = [watch.reason(loss, norm, 257) for loss, norm in zip(losses, norms, strict=True)]
    found = [(n, reason) for n, reason in enumerate(reasons, start=1) if reason]
    if told is None:
        assert not found
    else:
        assert found[0][0] == step
        assert told in found[0][1]


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits are Linux's")
def test_out_of_memory_is_an_outcome(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    import resource

    folder, limits = RunFolder(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20), limits[1]))
    try:
        outcome = run(tiny(corpus, batch_tokens=1 << 21), folder, data)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert outcome == "out_of_memory"
    record = manifest(folder)
    assert record["outcome"] == "out_of_memory"
    assert "memory" in record["reason"]
    assert record["stopped_step"] == 0


def test_an_error_is_recorded(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    def fail(now: Progress) -> None:
        raise KeyError(f"step {now.step}\nsecond line")

    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus), folder, data, progress=fail) == "failed"
    record = manifest(folder)
    assert record["reason"].startswith("KeyError: ")
    assert "\n" not in record["reason"]
    assert "in fail" in record["traceback"]
    assert run(tiny(corpus), folder, data) == "finished"
    assert manifest(folder)["attempts"] == 2
    assert "traceback" not in manifest(folder)


def test_randomness_in_training_is_refused(
    corpus: Path, data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noisy(LanguageModel):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(tokens), 0.1, self.training)

    monkeypatch.setattr("tnbench.training.trainer.LanguageModel", Noisy)
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus, steps=2), folder, data) == "failed"
    assert "random numbers" in manifest(folder)["reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_peak_memory_counts_from_its_start() -> None:
    size = 64 << 20
    torch.ones(2 * size, dtype=torch.uint8)  # before: does not count
    peak = PeakMemory(torch.device("cpu"))
    torch.ones(size, dtype=torch.uint8)
    with peak.set_aside():
        torch.ones(3 * size, dtype=torch.uint8)
    assert 0.98 * size < peak.read() < 1.3 * size  # the kernel counts in batches of pages


def test_manifest_is_plain_json(whole: RunFolder) -> None:
    text = whole.manifest.read_text()
    assert json.loads(text)["schema"] == 1
    assert "NaN" not in text
