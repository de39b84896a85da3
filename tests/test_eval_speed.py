"""Times beside lm-eval's Hugging Face model: a record with the same answers from both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from tnbench.commands import run_alone
from tnbench.evaluation import speed
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_alone(speed.main, [str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_both_answer_alike(whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture):
    options = ("--limit", 2, "--batch-sizes", "1,4", "--rounds", 2, "--max-length", 64, "--device", "cpu")
    assert command("--run", whole.path, *options, "--results", tmp_path) == 0
    (line,) = [json.loads(x) for x in (tmp_path / speed.FOLDER / "records.jsonl").read_text().splitlines()]
    assert line["requests"] == 8
    assert line["largest_difference_nats"] < 1e-4
    assert line["best_batch_size"] in (1, 4)
    times = line["hf_seconds"]
    assert [len(times[size]) for size in sorted(times, key=lambda size: len(times[size]))] == [1, 2]
    best = times[str(line["best_batch_size"])]
    ratios = [b / a for a, b in zip(line["ours_seconds"], best, strict=True)]
    assert line["speedup"] == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    assert line["forward"]["speedup_low"] < line["forward"]["speedup"] < line["forward"]["speedup_high"]
    assert "times as fast as lm-eval's model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-sizes", "1,no"), "give numbers from 1"),
        (("--batch-sizes", "0"), "give numbers from 1"),
        (("--task", "cloze,piqa"), "give one task"),
        (("--task", "small"), "give one task"),
        (("--precision", "fp8"), "known are fp32, bf16"),
        (("--run", "nothing"), "nothing"),
    ],
)
def test_what_is_wrong_is_said(
    options: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert command(*options, "--device", "cpu", "--results", tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / speed.FOLDER / "records.jsonl").exists()
