"""Results that are not a finished run, and how each is recorded."""

from __future__ import annotations

import errno
import math
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_runs import manifest, same_run, tiny, values
from torch import nn

from tnbench.data import TokenData
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.training import checkpoint
from tnbench.training.loop import Progress, Unrecorded, run
from tnbench.training.memory import PeakMemory
from tnbench.training.state import LossWatch

pytestmark = pytest.mark.usefixtures("settled_process")


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


# out of memory


class Forgetful(LanguageModel):
    """Has memory for so many sequences at a time."""

    fits = 3
    alive: ClassVar[list[weakref.ref[LanguageModel]]] = []
    """Models that were there when each model was built."""

    def __init__(self, *arguments: Any) -> None:
        assert not any(model() for model in Forgetful.alive), "the model of the failed attempt is still there"
        super().__init__(*arguments)
        Forgetful.alive.append(weakref.ref(self))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if len(tokens) > Forgetful.fits:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nsecond line")
        return super().forward(tokens)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> type[Forgetful]:
    monkeypatch.setattr("tnbench.training.trainer.LanguageModel", Forgetful)
    monkeypatch.setattr(Forgetful, "fits", 3)
    monkeypatch.setattr(Forgetful, "alive", [])
    return Forgetful


def test_out_of_memory_goes_on_with_smaller_micro_batches(
    forgetful: type[Forgetful], corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    assert run(tiny(corpus), folder, data) == "finished"
    assert len(forgetful.alive) == 3  # 8 sequences, 4, 2
    record = manifest(folder)
    assert record["micro_batches"] == [[0, 64]]
    assert record["config"]["training"]["micro_batch_tokens"] is None
    assert record["attempts"] == 1
    assert [note.replace("out of memory after step 0 with ", "") for note in record["notes"]] == [
        "micro-batches of 256 tokens; went on with 128, and 256 per step as before",
        "micro-batches of 128 tokens; went on with 64, and 256 per step as before",
    ]
    assert run(tiny(corpus, micro_batch_tokens=64), other, data) == "finished"
    assert same_run(folder, other)


def test_out_of_memory_midway_goes_on_from_the_checkpoint_and_stays_small(
    forgetful: type[Forgetful], whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    """Six steps of 8 sequences at a time, then no more than 3; then cut short, and resumed."""
    folder, config, done = RunFolder(tmp_path / "run"), tiny(corpus, checkpoint_every=0, evaluations=0), []
    forgetful.fits = 8

    def watch(now: Progress) -> None:
        done.append(now.step)
        forgetful.fits = 8 if now.step < 6 else 3

    assert run(config, folder, data, progress=watch, stop=lambda: done[-1] == 9) == "interrupted"
    assert done == list(range(1, 10))
    forgetful.fits = 2  # more would be refused
    assert run(config, folder, data) == "finished"
    assert manifest(folder)["micro_batches"] == [[0, 256], [6, 64]]
    assert len(manifest(folder)["notes"]) == 2
    early, expected = ([v for v in values(f) if v[3] <= 6 and v[0] == "train_loss"] for f in (folder, whole))
    assert early == expected


def test_out_of_memory_with_one_sequence_is_an_outcome(
    forgetful: type[Forgetful], corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    folder, forgetful.fits = RunFolder(tmp_path / "run"), 0
    assert run(tiny(corpus), folder, data) == "out_of_memory"
    record = manifest(folder)
    assert len(forgetful.alive) == 4
    assert record["outcome"] == "out_of_memory"
    assert record["reason"] == "[enforce fail] DefaultCPUAllocator: can't allocate memory"
    assert record["stopped_step"] == 0
    assert record["micro_batches"] == [[0, 32]]
    assert len(record["notes"]) == 3


def test_a_model_that_does_not_fit_is_not_tried_again(
    corpus: Path, data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(*arguments: Any) -> None:
        built.append(arguments)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr("tnbench.training.trainer.LanguageModel", build)
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus), folder, data) == "out_of_memory"
    assert len(built) == 1
    assert manifest(folder)["reason"].startswith("CUDA out of memory")


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits are Linux's")
def test_real_want_of_memory(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    import resource

    folder, limits = RunFolder(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (100 << 20), limits[1]))
    try:
        outcome = run(tiny(corpus, batch_tokens=1 << 17, steps=1, evaluations=0), folder, data)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert outcome == "finished", manifest(folder)
    ((step, tokens),) = manifest(folder)["micro_batches"]
    assert step == 0
    assert tokens < 1 << 17


@pytest.mark.gpu
def test_real_want_of_memory_on_a_gpu(corpus: Path, data: TokenData, tmp_path: Path) -> None:
    """With 1 GiB: the logits of 2^21 tokens alone take twice that."""
    folder = RunFolder(tmp_path / "run")
    limit = (1 << 30) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        outcome = run(tiny(corpus, device="cuda", batch_tokens=1 << 21, steps=3), folder, data)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    record = manifest(folder)
    assert outcome == "finished", record
    ((step, tokens),) = record["micro_batches"]
    assert step == 0
    assert 1 << 12 < tokens < 1 << 20
    assert len(record["notes"]) == 21 - tokens.bit_length() + 1
    assert tokens * 257 * 4 < record["peak_memory_bytes"] < 1 << 30


# errors


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


# disks


@pytest.mark.parametrize("left", [64 << 10, 0])
def test_full_disk_keeps_what_was_finished(
    left: int, whole: RunFolder, corpus: Path, data: TokenData, small_disk: Path
) -> None:
    folder, filler = RunFolder(small_disk / "run"), small_disk / "filler"

    def fill(now: Progress) -> None:
        if now.step == 6 and not filler.exists():
            disk = os.statvfs(small_disk)
            filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - left)))

    config, told = tiny(corpus, checkpoint_every=0), f"the disk that holds {folder.path} is full"
    if left:
        assert run(config, folder, data, progress=fill) == "failed"
        assert manifest(folder)["outcome"] == "failed"
        assert manifest(folder)["reason"] == told
    else:
        with pytest.raises(Unrecorded, match=re.escape(told)):
            run(config, folder, data, progress=fill)
        assert manifest(folder)["outcome"] is None
    filler.unlink()
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    assert manifest(folder)["notes"] == []


def test_a_folder_that_cannot_be_written_is_named(
    whole: RunFolder, corpus: Path, data: TokenData, small_disk: Path
) -> None:
    """From the start, and from step 6 on."""
    folder = RunFolder(small_disk / "run")
    told = f"{folder.path} cannot be written: read-only file system"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    folder.path.mkdir()
    remount("ro")
    with pytest.raises(Unrecorded, match=re.escape(told)):
        run(tiny(corpus), folder, data)
    remount("rw")
    assert list(folder.path.iterdir()) == []

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def fail(now: Progress) -> None:
        if now.step == 6:
            patch.setattr(checkpoint, "sync", refuse)

    with pytest.MonkeyPatch.context() as patch:
        assert run(tiny(corpus, checkpoint_every=0), folder, data, progress=fail) == "failed"
    assert manifest(folder)["reason"] == told
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
