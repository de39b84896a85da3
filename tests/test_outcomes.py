"""Results that are not a finished run, and how each is recorded."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import manifest, same_run, tiny, values
from torch import nn

from tnbench.data import TokenData
from tnbench.model import LanguageModel
from tnbench.records import RunFolder
from tnbench.training.loop import Progress, run
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
