"""`tnbench profile-kernels`: rows, tables and plots from records, and one real run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernel_bench import FINE, MEASUREMENT, Bench, point

from tnbench import cli
from tnbench.profiling.kernels import campaign, plots, rows
from tnbench.profiling.kernels.panels import panels
from tnbench.profiling.kernels.plots import MEASURES
from tnbench.profiling.kernels.store import Block, Store
from tnbench.report import drawing


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
