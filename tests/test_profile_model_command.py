"""`tnbench profile-model` from its command line, with made-up workers: searches, what fits, and notes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from model_bench import WORKER

from tnbench import cli
from tnbench.profiling.models import command, fit, report

SMALL = ["--device", "cpu", "--size", "0.1m"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own; what is measured fits up to 3,000 tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(command, "_command", lambda _: [sys.executable, str(WORKER), "fits-3", str(tmp_path)])
    monkeypatch.setattr(command, "_guess", lambda point, variant, **_: None)
    return tmp_path


def profile_model(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that a command prints which ends well."""
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-model", *SMALL, *arguments])
    out = capsys.readouterr().out
    assert left.value.code == 0, out
    return out.splitlines()


def test_the_plan_of_searches_shows_what_is_there(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    search = ["--largest", "batch", "--context", "64,1k", "--preset", "gpt2"]
    both = [*search, "--preset", "transformer", "--plan"]
    before = profile_model(capsys, *both)
    assert not (folder / "results").exists()
    assert before[:4] == [
        f"largest batch: train 0.1m, context {context}, fp32: {name}: to search"
        for context in ("64", "1k")
        for name in ("gpt2", "transformer")
    ]
    assert ": 4 of 4 searches to do; " in before[4]
    profile_model(capsys, *search[:3], "64", *search[4:])
    after = profile_model(capsys, *both)
    assert [line.rpartition(": ")[2] for line in after[:4]] == ["there", *["to search"] * 3]
    assert ": 3 of 4 searches to do; " in after[4]
    one = profile_model(capsys, *search[:3], "64", *search[4:], "--plan")
    assert ": 0 of 1 search to do; " in one[1]


def test_what_fits_is_answered_for_every_context_and_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question once: the largest size everywhere, contexts for each batch, batches for each context."""
    asked = ["--fit", "1GB", "--mode", "decode", "--preset", "transformer", "--vocabulary", "1000"]
    grid = ["--context", "256,512", "--batch", "1,2", "--precision", "bf16"]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(fit, "_memory", _tokens_as_bytes)
    head, *lines = profile_model(capsys, *asked, *grid, "--size", "0.1m,0.8m")
    assert "on a CPU by prediction, in bf16 with a vocabulary of 1,000 tokens" in head
    rows = [line.split()[2:6] for line in lines if line.strip().startswith("decode")]
    assert [row for row in rows if row[0] == "size"] == [
        ["size", "0.8m", context, batch] for context in ("256", "512") for batch in ("1", "2")
    ]
    assert {(row[1], row[3]) for row in rows if row[0] == "context"} == {
        (size, batch) for size in ("0.1m", "0.8m") for batch in ("1", "2")
    }
    assert {(row[1], row[2]) for row in rows if row[0] == "batch"} == {
        (size, context) for size in ("0.1m", "0.8m") for context in ("256", "512")
    }
    assert len(rows) == 4 + 4 + 4


def _tokens_as_bytes(config: object, mode: object, context: int, batch: int, vocab_size: int) -> fit.Memory:
    return fit.Memory(parameters=0, gradients=0, optimizer=0, activations=context * batch, state=0)


def test_settings_that_do_not_reach_a_peer_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    note = "note: --set does not change fla-retnet, which is another package's model"
    asked = ["--context", "64", "--preset", "gpt2", "--preset", "fla-retnet", "--plan"]
    assert note in profile_model(capsys, *asked, "--set", "model.gate=false")
    assert note not in profile_model(capsys, *asked)
    assert note not in profile_model(capsys, *asked[:4], "--plan", "--set", "model.gate=false")


def test_ctrl_c_while_tables_are_written_keeps_the_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(report, "write", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-model", *SMALL, "--context", "64", "--preset", "gpt2", "--rounds", "1"])
    said = capsys.readouterr()
    assert (left.value.code, said.err) == (130, "")
    assert "interrupted while tables and plots were written: the records are kept" in said.out
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        cli.main(["profile-model", "--report"])
    assert left.value.code == 0


def test_one_point_is_one_point(capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = profile_model(capsys, "--context", "64", "--preset", "gpt2", "--plan")
    assert ": 1 of 1 point to measure, 1 row, at least " in last
