"""A host that launches steps before it reads the figures of the last ones: records, checkpoints, divergence.

On a GPU it is one step ahead; here a CPU is made to, which computes the same numbers either way.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import manifest, same_run, tiny, values

from tnbench.data import TokenData
from tnbench.records import RunFolder
from tnbench.training import checkpoint, figures, loop, trainer
from tnbench.training.loop import Progress, run
from tnbench.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(params=[1, pytest.param(3, marks=pytest.mark.slow)])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs launch so many steps before they read the figures of the first."""
    monkeypatch.setattr(loop, "Trainer", partial(Trainer, lag=request.param))
    return request.param


def test_figures_are_read_after_the_next_launches(
    ahead: int, corpus: Path, data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    step, read = trainer.optimizer_step, figures.InFlight.read

    def launch(*given: Any, **options: Any) -> Any:
        events.append("launch")
        return step(*given, **options)

    def reading(self: figures.InFlight) -> figures.Figures:
        events.append("read")
        return read(self)

    monkeypatch.setattr(trainer, "optimizer_step", launch)
    monkeypatch.setattr(figures.InFlight, "read", reading)
    assert run(tiny(corpus, steps=6, evaluations=0), RunFolder(tmp_path / "run"), data) == "finished"
    assert events[: ahead + 1] == ["launch"] * (ahead + 1)
    assert events.count("launch") == events.count("read") == 6
    reads = [index for index, event in enumerate(events) if event == "read"]
    assert [events[:index].count("launch") for index in reads] == [min(6, n + ahead + 1) for n in range(6)]


def test_records_are_those_of_a_run_in_step(
    ahead: int, whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    told: list[int] = []
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus), folder, data, progress=lambda now: told.append(now.step)) == "finished"
    assert same_run(folder, whole)
    assert told == sorted(told)
    assert told[-1] == 12
    record, other = manifest(folder), manifest(whole)
    assert record["stopped_step"] == other["stopped_step"]
    assert record["evaluation"] == other["evaluation"]
    assert record["training_seconds"] > 0


@pytest.mark.parametrize(("step", "phase"), [(1, "training"), (5, "training"), (8, "evaluating")])
def test_resumed_equals_uninterrupted(
    step: int, phase: str, ahead: int, whole: RunFolder, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    """What was launched when the run was stopped is accounted for, and is not done again."""
    now: list[Progress] = []

    def stop() -> bool:
        return now[-1].step >= step and now[-1].phase == phase

    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus), folder, data, progress=now.append, stop=stop) == "interrupted"
    assert step <= manifest(folder)["stopped_step"] <= step + ahead
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)


def test_checkpoints_hold_steps_that_were_accounted_for(
    ahead: int,
    whole: RunFolder,
    corpus: Path,
    data: TokenData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step of the state is the optimizer's own, and the metrics reach up to it."""
    saved = []
    save = checkpoint.save_training

    def watched(path: Path, model: Any, optimizer: Any, record: Any, metrics: bytes) -> None:
        done = {int(state["step"]) for state in optimizer.state.values()}
        saved.append(record["state"]["step"])
        assert done == {saved[-1]}
        assert metrics.count(b'"train_loss"') == saved[-1]
        save(path, model, optimizer, record, metrics)

    monkeypatch.setattr(checkpoint, "save_training", watched)
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus, checkpoint_every=0), folder, data) == "finished"
    assert same_run(folder, whole)
    assert len(saved) >= 11


def test_divergence_is_found_at_the_same_step(
    ahead: int, corpus: Path, data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps launched after it leave nothing in the records."""
    step, calls = trainer.optimizer_step, []

    def spoilt(*given: Any, **options: Any) -> Any:
        loss, norm = step(*given, **options)
        calls.append(loss)
        return (torch.full_like(loss, torch.nan) if len(calls) == 6 else loss), norm

    monkeypatch.setattr(trainer, "optimizer_step", spoilt)
    folder = RunFolder(tmp_path / "run")
    assert run(tiny(corpus, evaluations=0), folder, data) == "diverged"
    assert len(calls) == 6 + ahead
    record = manifest(folder)
    assert (record["stopped_step"], record["reason"]) == (6, "loss is nan")
    assert max(value[3] for value in values(folder)) == 6
    assert not folder.weights.exists()


def test_seconds_of_steps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched at 0 and 1, read at 5 and 8; the next launched at 20 after a pause and read at 22."""
    clock = iter([5.0, 8.0, 22.0])
    monkeypatch.setattr(figures.time, "perf_counter", lambda: next(clock))
    flight, one = figures.InFlight(), torch.ones(())
    flight.add(one, one, 0.1, 0.0)
    flight.add(one, one, 0.1, 1.0)
    assert [flight.read().seconds, flight.read().seconds] == [5, 3]
    flight.add(one, one, 0.1, 20.0)
    assert flight.read().seconds == 2
    assert len(flight) == 0
