"""`tnbench profile-kernels`: campaigns with made-up workers, interrupted and resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from kernel_bench import FINE, MEASUREMENT, Bench, point

from tnbench.errors import RequestError
from tnbench.profiling.kernels import rows
from tnbench.profiling.kernels.campaign import Measurement, Point
from tnbench.profiling.lines import RecordsError
from tnbench.profiling.progress import Progress


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_crash_hang_and_lost_context_leave_the_others_alone(bench: Bench) -> None:
    odd = ["crash", "killed", "hang", "lost", "oom", "wrong", "unsupported"]
    progress = bench.run([point(1000, {"fine-1+noise": "ours", **dict.fromkeys(odd, "peer")})])
    assert bench.statuses() == {
        "fine-1+noise": "ok",
        "crash": "crashed",
        "killed": "crashed",
        "hang": "hung",
        "lost": "error",
        "oom": "oom",
        "wrong": "wrong",
        "unsupported": "unsupported",
    }
    reasons = {row["implementation"]: row["reason"] for row in bench.store.read().blocks[0].rows}
    assert reasons["crash"] == "ended with status 7: Fatal: the driver is gone"
    assert reasons["killed"] == "ended by SIGKILL"
    assert reasons["hang"] == "no answer to time within 0.5 s"
    assert reasons["oom"] == "because it is oom"
    assert progress.rows == {
        "ok": 1,
        "crashed": 2,
        "hung": 1,
        "error": 1,
        "oom": 1,
        "wrong": 1,
        "unsupported": 1,
    }


def test_cores_to_spare_compile_and_judge_side_by_side(bench: Bench) -> None:
    """Throw-away processes see each case of ours once, and one of each peer, which meets it alone afterwards;
    what is not compiled does without them. Rounds stay interleaved."""
    points = [point(length, {**FINE, "crash": "peer"}) for length in (1000, 2000)]
    bench.run(points, side_by_side=True)
    blocks = bench.store.read().blocks
    assert [len(block.rows) for block in blocks] == [5, 5]
    assert bench.statuses() == dict.fromkeys(FINE, "ok") | {"crash": "crashed"}
    for name, source in FINE.items():
        done = bench.requests(name)
        assert done.count("compile") == {"ours": 2, "peer": 1}.get(source, 0)
        assert done.count("prepare") == 2 + (source == "peer")
        assert done.count("time") == 2 * MEASUREMENT.rounds


def test_what_fails_its_gate_is_not_timed(bench: Bench) -> None:
    bench.run([point(1000, {"wrong": "peer", "fine-1": "ours"})])
    assert bench.requests("wrong") == ["prepare", "quit"]
    assert bench.requests("fine-1") == ["prepare", *["time"] * 3, "quit"]


def test_a_dead_worker_is_replaced_and_then_given_up(bench: Bench) -> None:
    lengths = (2000, 3000, 4000, 5000, 6000)
    bench.run([point(length, {"crash": "peer", "lost": "peer", "fine-1": "ours"}) for length in lengths])
    assert bench.processes("crash") == 3
    assert bench.processes("lost") == 5
    assert bench.processes("fine-1") == 1
    last = bench.store.read().blocks[-1].rows[0]
    assert (last["status"], last["reason"]) == ("crashed", "not tried: it failed 3 times in a row")


def test_rounds_are_interleaved_and_their_order_turns(bench: Bench) -> None:
    order: list[str] = []

    def watch(progress: Progress) -> None:
        if progress.doing.startswith("round") and progress.doing not in order:
            order.append(progress.doing)

    bench.run([point(1000, {"fine-1": "ours", "fine-2": "peer", "fine-3": "peer"})], watch=watch)
    turns = [doing.partition(": ")[2] for doing in order]
    assert turns == [
        *("fine-1", "fine-2", "fine-3"),
        *("fine-2", "fine-3", "fine-1"),
        *("fine-3", "fine-1", "fine-2"),
    ]


def test_the_very_slow_are_left_after_two_rounds(bench: Bench) -> None:
    bench.run([point(1000, {"fine-1": "ours", "fine-29": "peer", "fine-40": "softmax"}, graph=True)])
    frame = rows.kernels(bench.store.read()).set_index("implementation")
    assert frame["rounds"].to_dict() == {"fine-1": 3, "fine-29": 3, "fine-40": 2}
    found = rows.comparisons(bench.store.read()).set_index("kind")
    assert found["rounds"].to_dict() == {"best peer": 3, "best softmax": 2}
    assert found.loc["best softmax", "speedup"] == pytest.approx(40, rel=0.03)


def test_a_rerun_measures_only_what_is_missing(bench: Bench) -> None:
    two = {"fine-1": "ours", "fine-3": "peer"}
    assert bench.run([point(1000, two)]).skipped == 0
    again = bench.run([point(1000, two), point(2000, two)])
    assert (again.done, again.skipped) == (2, 1)
    before = bench.store.path.read_bytes()
    assert bench.run([point(1000, two), point(2000, {"fine-1": "ours"})]).skipped == 2
    assert bench.store.path.read_bytes() == before
    # one more implementation, another number of rounds, other kernels: measured again, as a whole
    assert bench.run([point(1000, {**two, "fine-9": "peer"})]).skipped == 0
    assert bench.run([point(1000, two)], Measurement(2, 3, 0.01)).skipped == 0
    changed = Point(**{**vars(point(1000, two)), "kernel_hash": "4567"})
    assert bench.run([changed]).skipped == 0
    assert len(bench.store.read().blocks) == 5
    assert [block.line["kernel_hash"] for block in bench.store.read().shown()] == ["4567", "0123"]


def test_what_crashed_is_measured_once_more(bench: Bench) -> None:
    """A kill may be the machine's fault; what fails for its own reasons must not cost every later run."""
    points = [point(1000, {"killed": "peer", "fine-1": "ours"})]
    assert [bench.run(points).skipped for _ in range(3)] == [0, 0, 1]
    assert bench.run([point(1000, {"fine-1": "ours"})]).skipped == 1


def test_a_revision_beside_a_fuller_measurement(bench: Bench) -> None:
    """Tables keep the block with the peers, whatever the number of twins; the pair comes from its own."""
    bench.run([point(1000, {"fine-1": "ours", "fine-3": "peer"})])
    bench.run([point(1000, {"fine-1": "ours", "fine-2@c": "revision", "fine-1@c": "revision"})])
    records = bench.store.read()
    assert rows.kernels(records)["implementation"].to_list() == ["fine-1", "fine-3"]
    found = rows.comparisons(records)
    assert found[["against", "kind"]].to_numpy().tolist() == [
        ["fine-3", "best peer"],
        ["fine-1@c", "revision c"],
    ]
    assert rows.summary(records)["kind"].to_list() == ["best peer", "revision c"]


def test_foreign_lines_are_reported_and_ignored(bench: Bench) -> None:
    bench.run([point(1000, {"fine-1": "ours"})])
    foreign = [
        {"kind": "row", "block": "x", "implementation": "y"},
        {"kind": "block", "block": "x", "rows": 0, "case": {"operator": "q"}},
        {"kind": "roofline", "session": "s", "copy_bytes_per_second": "fast"},
        {"kind": "energy", "block": bench.store.read().blocks[0].id, "implementation": "fine-1"},
        {"kind": "note"},
        {"kind": "session", "session": ["a"]},
        [1],
    ]
    with bench.store.path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in foreign)
    records = bench.store.read()
    assert len(records.problems) == len(foreign)
    assert len(rows.kernels(records)) == 1


def test_energy_is_added_later(bench: Bench) -> None:
    points = [point(1000, {"fine-1": "ours", "oom": "peer"})]
    bench.run(points)
    blocks = bench.store.read().blocks
    assert bench.run(points, energy=0.1).skipped == 0
    assert [block.id for block in bench.store.read().blocks] == [block.id for block in blocks]
    assert bench.store.read().blocks[0].energy["fine-1"]["joules_per_call"] == 1.0
    assert bench.requests("fine-1").count("time") == 3
    assert bench.run(points, energy=0.1).skipped == 1


def test_records_survive_a_kill_between_and_inside_lines(bench: Bench) -> None:
    points = [point(length, {"fine-1": "ours", "fine-3": "peer"}) for length in (1000, 2000)]
    bench.run(points)
    whole = bench.store.path.read_bytes().splitlines(keepends=True)
    rows_of_second = [n for n, line in enumerate(whole) if b'"kind": "row"' in line][2:]
    bench.store.path.write_bytes(b"".join(whole[: rows_of_second[1]]))  # killed between two rows of a point
    assert len(bench.store.read().blocks) == 1
    bench.store.path.write_bytes(b"".join(whole[:-1]) + whole[-1][:40])  # inside the line that ends the point
    records = bench.store.read()
    assert len(records.blocks) == 1
    assert records.problems == [f"records.jsonl: line {len(whole)} is broken and was ignored"]
    assert bench.run(points).skipped == 1
    records = bench.store.read()
    assert len(records.blocks) == 2
    assert len(records.problems) == 1


def test_ctrl_c_and_the_time_limit_keep_finished_points(bench: Bench) -> None:
    points = [point(length, {"fine-1": "ours", "slow": "peer"}) for length in (1000, 2000, 3000)]

    def interrupt(progress: Progress) -> None:
        if progress.done == 1 and progress.doing == "round 2: slow":
            signal.raise_signal(signal.SIGINT)

    assert bench.run(points[:2], watch=interrupt).stopped == "interrupted"
    assert len(bench.store.read().blocks) == 1
    stopped = bench.run(points, time_limit=0.1)
    assert (stopped.stopped, stopped.done, stopped.skipped) == ("time limit", 1, 1)
    assert bench.run(points).done == 3


def test_a_full_disk_is_one_error_that_keeps_the_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run([point(1000, {"fine-1": "ours"})])
    before = bench.store.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tnbench.profiling.lines.os.fsync", full)
    with pytest.raises(RecordsError, match=r"cannot write .*: no space left on device"):
        bench.run([point(2000, {"fine-1": "ours"})])
    assert bench.store.path.read_bytes().startswith(before)


def test_two_campaigns_do_not_write_to_one_folder(bench: Bench) -> None:
    with bench.store.writing(), pytest.raises(RequestError, match="another tnbench profile-kernels"):  # noqa: SIM117
        with bench.store.writing():
            pass
