"""`tnbench profile-model`: campaigns with made-up workers, interrupted and resumed."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from model_bench import MEASUREMENT, Bench, point

from tnbench.profiling.lines import RecordsError
from tnbench.profiling.models.campaign import Measurement
from tnbench.profiling.progress import Progress


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_fails_is_a_row_and_leaves_the_others_alone(bench: Bench) -> None:
    names = ["fine-1", "crash", "error", "oom", "unsupported", "hang", "dies", "fine-2"]
    progress = bench.run([point(names)])
    rows = bench.rows()
    assert {name: row["status"] for name, row in rows.items()} == {
        "fine-1": "ok",
        "crash": "failed",
        "error": "failed",
        "oom": "oom",
        "unsupported": "unsupported",
        "hang": "failed",
        "dies": "failed",
        "fine-2": "ok",
    }
    assert rows["crash"]["reason"] == "crashed: ended with status 7: Fatal: the driver is gone"
    assert rows["error"]["reason"] == "ValueError: its result is not finite"
    assert rows["hang"]["reason"] == "hung: no answer to time within 0.5 s"
    assert rows["dies"]["reason"] == "crashed: ended by SIGKILL"
    assert progress.rows == {"ok": 2, "failed": 4, "oom": 2 - 1, "unsupported": 1}
    assert len(rows["fine-2"]["times"]["rounds"]) == MEASUREMENT.rounds


def test_each_variant_at_a_point_is_a_process_of_its_own(bench: Bench) -> None:
    bench.run([point(["fine-1", "fine-2"]), point(["fine-1", "fine-2"], context=2048)])
    assert bench.processes("fine-1") == bench.processes("fine-2") == 2
    assert bench.requests("fine-1") == ["prepare", "time", "time", "time", "quit"] * 2


def test_rounds_are_interleaved_in_a_turning_order(bench: Bench) -> None:
    seen: list[str] = []

    def watch(progress: Progress) -> None:
        if progress.doing.startswith("round") and progress.doing not in seen:
            seen.append(progress.doing)

    bench.run([point(["fine-1", "fine-2", "fine-3"])], watch=watch)
    assert [text.rpartition("-")[2] for text in seen] == list("123" + "231" + "312")
    assert bench.store.read().blocks[0].line["interleaved"] is True


def test_what_only_fits_alone_is_timed_alone(bench: Bench) -> None:
    bench.run([point(["big-1", "big-2"])], replace(MEASUREMENT, energy=0.1))
    rows = bench.rows()
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert bench.store.read().blocks[0].line["interleaved"] is False
    assert len(rows["big-2"]["times"]["rounds"]) == MEASUREMENT.rounds
    assert rows["big-2"]["energy"]["joules_per_call"] == 2.0
    for name in ("big-1", "big-2"):  # the rounds of a variant are those of one process
        assert "prepare time time time energy" in " ".join(bench.requests(name))


def test_what_does_not_fit_alone_either_leaves_the_others_interleaved(bench: Bench) -> None:
    bench.run([point(["fine-1", "oom", "fine-2"])])
    assert bench.store.read().blocks[0].line["interleaved"] is True
    assert [row["status"] for row in bench.store.read().blocks[0].rows] == ["ok", "oom", "ok"]
    assert bench.requests("fine-1") == ["prepare", "prepare", "time", "time", "time", "quit"]


def test_a_rerun_measures_only_what_is_missing(bench: Bench) -> None:
    points = [point(["fine-1", "fine-2"], context=context) for context in (1024, 2048)]
    bench.run(points[:1])
    progress = bench.run(points)
    assert (progress.skipped, progress.done) == (1, 2)
    assert bench.run(points).skipped == 2
    before = bench.processes("fine-1")
    assert bench.run([replace(points[0], variants=points[0].variants[:1])]).skipped == 1
    assert bench.processes("fine-1") == before
    for changed in (replace(points[0], code="4567"), replace(points[0], stack={"torch": "3"})):
        assert bench.run([changed]).skipped == 0
    assert bench.run(points[:1], Measurement(4, 3, 0.01)).skipped == 0


def test_a_failure_is_tried_once_more(bench: Bench) -> None:
    one = [point(["fine-1", "crash"])]
    assert [bench.run(one).skipped for _ in range(3)] == [0, 0, 1]


def test_interrupted_and_out_of_time_keep_what_is_finished(bench: Bench) -> None:
    points = [point(["fine-1"], context=context) for context in (1024, 2048)]

    def press(progress: Progress) -> None:
        if progress.done == 1:
            signal.raise_signal(signal.SIGINT)

    assert bench.run(points, watch=press).stopped == "interrupted"
    assert len(bench.store.read().blocks) == 1
    assert bench.run(points, time_limit=0.0).stopped == "time limit"
    assert bench.run(points).stopped == ""
    assert len(bench.store.read().blocks) == 2


def test_a_cut_off_block_does_not_count(bench: Bench) -> None:
    bench.run([point(["fine-1", "fine-2"])])
    whole = bench.store.path.read_bytes()
    for cut in (len(whole) - 10, whole.rindex(b'{"kind": "block"')):
        bench.store.path.write_bytes(whole[:cut])
        assert bench.store.read().blocks == []
    bench.run([point(["fine-1", "fine-2"])])
    assert len(bench.store.read().blocks) == 1


def test_a_full_disk_keeps_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point(["fine-1"], context=context) for context in (1024, 2048)]
    bench.run(points[:1])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tnbench.profiling.lines.os.fsync", full)
    with pytest.raises(RecordsError, match="no space left on device"):
        bench.run(points)
    monkeypatch.undo()
    assert len(bench.store.read().blocks) == 1
    assert bench.run(points).skipped == 1


@pytest.mark.parametrize(("limit", "guess"), [(100, None), (100, 90_000), (100, 300_000), (2, 4096)])
def test_the_largest_context_is_found_from_any_guess(bench: Bench, limit: int, guess: int | None) -> None:
    """`fits-N` fits up to N thousand tokens."""
    one = [point([f"fits-{limit}"], context=1024)]
    bench.search(one, "context", guess)
    line = bench.store.read().largest[-1]
    assert line["status"] == "ok"
    assert 0 <= 1000 * limit - line["value"] <= max(256, 0.02 * 1000 * limit)
    assert line["value"] % 256 == 0
    values = [trial["value"] for trial in line["trials"]]
    assert len(values) == len(set(values)) <= 16
    assert bench.search(one, "context", guess).skipped == 1


def test_the_largest_batch_and_what_cannot_be_searched(bench: Bench) -> None:
    bench.search([point(["fits-10", "unsupported", "fits-0.1"], context=1024)], "batch", None)
    found = {line["variant"]: line for line in bench.store.read().largest}
    assert found["fits-10"]["value"] == 9
    assert (found["unsupported"]["status"], found["unsupported"]["value"]) == ("unsupported", None)
    assert (found["fits-0.1"]["status"], found["fits-0.1"]["value"]) == ("ok", 0)
    assert len(found["unsupported"]["trials"]) == 1
