"""Runs that are cut short and resumed, and the checkpoints they resume from."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import manifest, same_run, tiny
from torch import nn

from tnbench.data import TokenData
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.training import checkpoint
from tnbench.training.loop import Progress, run
from tnbench.training.optimizer import adamw
from tnbench.training.state import LossWatch, State

pytestmark = pytest.mark.usefixtures("settled_process")


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
    """Its record says so itself; the manifest beside it does not."""
    _, tensors = checkpoint._read(path)
    checkpoint._write(path, tensors, {"run_id": "b", "state": State().to_json()})


def be_of_an_earlier_form(path: Path) -> None:
    record, tensors = checkpoint._read(path)
    del tensors["metrics"]
    checkpoint._write(path, tensors, record)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte, "damaged"),
        (truncate, "cannot be read"),
        (belong_to_another_run, "belongs to run b"),
        (be_of_an_earlier_form, "holds no metrics"),
    ],
)
def test_a_damaged_checkpoint_starts_again_and_says_so(
    damage: Any, told: str, whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder, watcher = RunFolder(tmp_path / "run"), Watcher(5, "training")
    run(tiny(corpus), folder, data, progress=watcher.progress, stop=watcher.stop)
    damage(folder.resume)
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    (note,) = manifest(folder)["notes"]
    assert told in note
    assert "from the beginning" in note


# taken over


def test_a_run_that_was_taken_over_writes_nothing_more(
    whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    """As a process that was suspended: another one has finished the run before it goes on."""
    folder, ended = RunFolder(tmp_path / "run"), []

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}

    def suspend(now: Progress) -> None:
        if now.step == 6 and not ended:
            ended.append(run(tiny(corpus), folder, data))
            ended.append(files())

    config = tiny(corpus, checkpoint_every=0)
    assert run(config, folder, data, progress=suspend, mine=lambda: not ended) == "displaced"
    assert ended == ["finished", files()]
    assert same_run(folder, whole)
    assert manifest(folder)["attempts"] == 2


# checkpoints


def test_checkpoint_is_replaced_as_a_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = tiny(corpus), tmp_path / "training.safetensors"
    model = LanguageModel(config.model, 257, 32)
    optimizer = adamw(model, config.training)
    record = {"run_id": "a", "state": State(watch=LossWatch(0.1 + 0.2, 3)).to_json()}
    checkpoint.save_training(path, model, optimizer, record, b"")
    before = path.read_bytes()
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save_training(path, model, optimizer, record, b"a line\n")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    checkpoint.save_training(path, model, optimizer, record, b"a line\n")
    other = LanguageModel(config.model, 257, 32)
    restored = adamw(other, config.training)
    read, metrics = checkpoint.load_training(path, other, restored, "a")
    assert metrics == b"a line\n"
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
