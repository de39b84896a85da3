"""`tnbench profile-kernels`: campaigns with made-up workers, verdicts by hand, reports, wrong requests."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.profiling.kernels import campaign, plots, rows
from tnbench.profiling.kernels.campaign import Campaign, Measurement, Point, Progress
from tnbench.profiling.kernels.panels import panels
from tnbench.profiling.kernels.plots import MEASURES
from tnbench.profiling.kernels.pool import Pool
from tnbench.profiling.kernels.store import Block, RecordsError, Store
from tnbench.report import drawing

WORKER = Path(__file__).with_name("fake_kernel_worker.py")
FINE = {"fine-1": "ours", "fine-3": "peer", "fine-9": "torch", "fine-2": "softmax"}
MEASUREMENT = Measurement(rounds=3, calls=3, seconds=0.01)


def point(length: int, implementations: dict[str, str], mode: str = "forward", graph: bool = False) -> Point:
    shape = {"batch": 2, "heads": 4, "key_dim": 64, "value_dim": 64, "decay": "geometric", "length": length}
    case = {"operator": "linear_attention", "mode": mode, "dtype": "bfloat16", "shape": shape}
    return Point(
        case=case,
        tokens=2 * length,
        floor_bytes=1000 * length,
        flops=10**6 * length,
        graph=graph,
        implementations=implementations,
        kernel_hash="0123",
        stack={"torch": "2", "triton": None},
        command="tnbench profile-kernels linear_attention",
    )


class Bench:
    """Campaigns in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "machine")
        self.store.folder.mkdir()

    def run(
        self, points: Sequence[Point], measurement: Measurement = MEASUREMENT, **options: Any
    ) -> Progress:
        with Pool(self.command, {"time": 0.5}) as pool:
            one = Campaign(pool, self.store, measurement, **options)
            return one.run(points, self.store.read(), {"device": "a machine", "versions": {"torch": "2"}})

    def command(self, name: str) -> list[str]:
        return [sys.executable, str(WORKER), name, str(self.folder)]

    def processes(self, name: str) -> int:
        return len(list(self.folder.glob(f"{name}.*")))

    def requests(self, name: str) -> list[str]:
        return [json.loads(line)["do"] for path in self.folder.glob(f"{name}.*") for line in path.open()]

    def statuses(self) -> dict[str, str]:
        return {row["implementation"]: row["status"] for row in self.store.read().blocks[-1].rows}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two lengths in two modes, graphs at the shorter, a peer that is out of memory at one, energy."""
    bench = Bench(tmp_path_factory.mktemp("measured"))
    points = [
        point(length, {**FINE, **extra}, mode, graph=length == 1000)
        for mode in ("both",)
        for length, extra in ((1000, {"wrong": "peer"}), (4000, {"oom": "peer"}))
    ]
    bench.run(points, energy=0.1)
    return bench.store


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
    """Throw-away processes see each case once; peers meet their first case alone; rounds stay interleaved."""
    points = [point(length, {**FINE, "crash": "peer"}) for length in (1000, 2000)]
    bench.run(points, side_by_side=True)
    blocks = bench.store.read().blocks
    assert [len(block.rows) for block in blocks] == [5, 5]
    assert bench.statuses() == dict.fromkeys(FINE, "ok") | {"crash": "crashed"}
    for name, source in FINE.items():
        done = bench.requests(name)
        assert done.count("compile") == 2
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
        if progress.done == 1:
            threading.Timer(0.02, signal.raise_signal, [signal.SIGINT]).start()

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

    monkeypatch.setattr("tnbench.profiling.kernels.store.os.fsync", full)
    with pytest.raises(RecordsError, match=r"cannot write .*: no space left on device"):
        bench.run([point(2000, {"fine-1": "ours"})])
    assert bench.store.path.read_bytes().startswith(before)


def test_two_campaigns_do_not_write_to_one_folder(bench: Bench) -> None:
    with bench.store.writing(), pytest.raises(RequestError, match="another tnbench profile-kernels"):  # noqa: SIM117
        with bench.store.writing():
            pass


def test_rows_by_hand(measured: Store) -> None:
    frame = rows.kernels(measured.read())
    assert tuple(frame.columns) == rows.COLUMNS
    assert len(frame) == 10
    row = frame[(frame["mode"] == "both") & (frame["implementation"] == "fine-1")].iloc[0]
    assert row["latency_seconds"] == pytest.approx(1e-3, rel=0.03)
    assert row["graph_seconds"] == pytest.approx(0.5e-3, rel=0.03)
    assert row["launch_share"] == pytest.approx(0.5)
    assert row["floor_seconds"] == pytest.approx(1e-3)  # 1000 bytes a token at 1 GB/s
    assert row["roofline_share"] == pytest.approx(1e-3 / row["graph_seconds"])
    assert row["tflops"] == pytest.approx(1e9 / row["graph_seconds"] / 1e12)
    assert row["gigabytes_per_second"] == pytest.approx(1e6 / row["graph_seconds"] / 1e9)
    assert (row["joules_per_call"], row["joules_per_token"]) == (1.0, 1.0 / 2000)
    assert (row["error_o"], row["error_dq"], row["error_other"], row["error_limit"]) == (
        1e-3,
        2e-3,
        3e-3,
        2e-3,
    )
    assert (row["registers"], row["spills"], row["shared_bytes"]) == (128, 3, 300)
    assert row["instruction"] == "fma+wgmma"
    assert row["best_peer"] == "fine-3"
    assert row["speedup"] == pytest.approx(3, rel=0.03)
    assert row["verdict"] == "faster"
    assert row["reproduce"] == "tnbench profile-kernels linear_attention --implementation fine-1 --rounds 3"
    peer = frame[frame["implementation"] == "fine-3"].iloc[0]
    assert (peer["best_peer"], peer["verdict"]) == ("fine-9", "faster")
    assert frame[frame["source"] == "softmax"]["verdict"].isna().all()
    bad = frame[frame["implementation"] == "oom"].iloc[0]
    assert (bad["status"], bad["reason"]) == ("oom", "because it is oom")
    assert math.isnan(bad["latency_seconds"])
    assert math.isnan(bad["error_o"])


def test_summary_counts_what_is_left_out(measured: Store, bench: Bench) -> None:
    found = rows.summary(measured.read()).set_index(["mode", "kind"]).loc[("both", "best peer")]
    assert (found["points"], found["compared"], found["left_out"], found["faster"]) == (2, 2, 0, 2)
    assert found["speedup"] == pytest.approx(3, rel=0.03)
    slow = {"fine-9": "ours", "fine-3": "peer"}
    nobody = {"fine-9": "ours", "oom": "peer"}
    bench.run([point(1000, slow), point(2000, slow), point(3000, nobody)])
    found = rows.summary(bench.store.read()).iloc[0]
    assert (found["compared"], found["left_out"], found["slower"]) == (2, 1, 2)
    assert found["slower_points"] == "B2 H4 D64 n1000; B2 H4 D64 n2000"
    assert found["speedup"] == pytest.approx(1 / 3, rel=0.03)


def test_a_revision_is_compared_with_its_own_twin(bench: Bench) -> None:
    bench.run([point(1000, {"fine-1": "ours", "fine-1@2": "revision"})])
    found = rows.comparisons(bench.store.read())
    twin = rows.kernels(bench.store.read()).iloc[1]
    assert twin["reproduce"].endswith("--implementation fine-1 --against 2 --rounds 3")
    assert found[["implementation", "against", "kind"]].to_numpy().tolist() == [
        ["fine-1", "fine-1@2", "revision 2"]
    ]


def test_report_again_gives_the_same_bytes(measured: Store, tmp_path: Path, capsys, monkeypatch) -> None:
    folder = tmp_path / "results" / "kernels" / "machine"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_bytes(measured.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(drawing.STYLE, "savefig.dpi", 60)
    monkeypatch.delitem(MEASURES, "roofline")
    contents = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main(["profile-kernels", "--report"])
        assert ended.value.code == 0
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    plots = {f"linear_attention-bfloat16-{kind}.{end}" for kind in MEASURES for end in ("png", "pdf")}
    tables = {"kernels.csv", "comparisons.csv", "summary.csv", "break_even.csv", "table.md", "records.jsonl"}
    assert contents[0].keys() == plots | tables
    page = contents[0]["table.md"].decode()
    assert "| fine-1 | **0.505** | **4.04** |" in page
    assert "| × best peer | 3.00+ | 3.00+ |" in page
    assert "because it is oom" in page
    out = capsys.readouterr().out
    assert "× best peer" in out
    assert "measured with other kernels" in out


def test_a_copy_is_never_the_fastest() -> None:
    def row(name: str, seconds: float) -> dict[str, Any]:
        return {"implementation": name, "source": name, "status": "ok", "eager": {"median": seconds}}

    assert campaign.outcome([row("copy", 1e-3), row("torch", 2e-3)]) == "fastest torch 2 ms; 2 ok"


def test_no_share_of_the_roofline_is_cut_off(measured: Store) -> None:
    frame = rows.kernels(measured.read())
    frame["roofline_share"] *= 3 / frame["roofline_share"].max()
    drawn = plots.figure("roofline", list(panels(frame)), plots.looks(frame))
    assert drawn is not None
    assert drawn.axes[0].get_ylim()[1] > 3


def test_a_block_that_differs_in_anything_is_not_current() -> None:
    key = point(1000, {}).key(MEASUREMENT)
    block = Block({**key, "block": "1"}, [])
    assert block.matches(key)
    for name in key:
        assert not block.matches({**key, name: "other"})


def test_a_tiny_real_run(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(campaign, "ROOFLINE", "quadratic")  # one process for both
    monkeypatch.delitem(MEASURES, "roofline")
    words = ["linear_attention", "--length", "32", "--shape", "1,2", "--head-dim", "16", "--mode", "both"]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["profile-kernels", *words, "--implementation", "quadratic", "--rounds", "2", "--device", "cpu"]
        )
    assert ended.value.code == 0, capsys.readouterr()
    (folder,) = (tmp_path / "results" / "kernels").iterdir()
    (block,) = Store(folder).read().blocks
    (row,) = block.rows
    assert row["status"] == "ok"
    assert row["errors"].keys() == {"o", "dq", "dk", "dv"}
    assert len(row["eager"]["rounds"]) == 2


@pytest.mark.slow
def test_the_default_run_on_a_cpu(tmp_path: Path) -> None:
    """Under two minutes on two cores that do nothing else."""
    words = [sys.executable, "-m", "tnbench.cli", "profile-kernels", "--device", "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "results" / "kernels").iterdir()
    assert list(folder.glob("*.png"))
    assert {row["status"] for block in Store(folder).read().blocks for row in block.rows} <= {
        "ok",
        "unsupported",
        "oom",
    }
