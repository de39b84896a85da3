"""Figures of what the paper leaves open on its kernels: block sizes, energy; from made-up records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from tnbench import cli
from tnbench.paper_figures import block_sizes, energy
from tnbench.paper_figures.shared import outputs
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.profiling.block_sizes_records import FILE
from tnbench.profiling.kernels import command
from tnbench.profiling.kernels.store import Store, kernel_hash

GPU = {"batch": 4, "heads": 16, "key_dim": 128, "value_dim": 128, "decay": "geometric"}


def arm(
    implementation: str, block: int, ms: float | None, *, taken: bool = False, status: str = "ok"
) -> dict:
    """Four rounds around a time; without one, refused."""
    rounds = [] if ms is None else [1e-3 * ms * factor for factor in (1.0, 1.01, 0.99, 1.0)]
    return {
        "implementation": implementation,
        "block": block,
        "taken": taken,
        "status": status,
        "reason": None if ms is not None else "o is off by 1.00e-01",
        "errors": {"o": 2e-3} if ms is not None else {},
        "peak_memory_bytes": 1_000_000 * block if ms is not None else None,
        "seconds": None if ms is None else {"median": 1e-3 * ms, "rounds": rounds},
    }


def line(number: int, mode: str, length: int, arms: list[dict], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "point",
        "id": f"{number:012x}",
        "device": "A GPU",
        "case": {
            "operator": "linear_attention",
            "mode": mode,
            "dtype": "bfloat16",
            "shape": {**GPU, "length": length},
        },
        "blocks": [16, 64, 256],
        "measurement": {"rounds": 4, "calls": 20, "seconds": 0.05},
        "threads": None,
        "kernel_hash": kernel_hash("linear_attention"),
        "torch": "2",
        "triton": "3",
        "way": "graph",
        "arms": arms,
        "command": "python -m tnbench.profiling.block_sizes",
        **changes,
    }


def write(root: Path, *lines: dict[str, Any], machine: str = "a-gpu", tail: str = "") -> Records:
    folder = root / "kernels" / machine
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
        file.write(tail)
    return Records(root)


def gpu(root: Path) -> Records:
    """Triton is fastest with 64, twice as slow with 16 and wrong with 256; torch's smallest block has no room
    at the longer length."""
    lines = []
    for number, (mode, length) in enumerate((m, n) for m in ("forward", "both") for n in (1024, 65536)):
        base = length / 1024 * (1 if mode == "forward" else 3)
        small = arm("chunked", 16, None, status="oom") if length > 1024 else arm("chunked", 16, 8 * base)
        arms = [
            arm("triton", 16, 2 * base),
            arm("triton", 64, base, taken=True),
            arm("triton", 256, None, status="wrong"),
            small,
            arm("chunked", 64, 4 * base, taken=True),
            arm("chunked", 256, 3 * base),
        ]
        lines.append(line(number, mode, length, arms))
    return write(root, *lines)


def texts(axes: Axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


def findings(built: Built, implementation: str) -> dict[str, Any]:
    return {one.claim.name: one for one in built.findings if f", {implementation}," in one.setting}


def test_block_sizes_of_a_gpu(tmp_path: Path):
    """How much slower the smallest and the largest block are, for each implementation by itself."""
    built = block_sizes.build(gpu(tmp_path))
    triton, torch_ = findings(built, "Triton"), findings(built, "chunked torch")
    assert triton["smallest"].verdict == "faster"
    assert triton["smallest"].because.startswith("2.00 to 2.00 times as fast at 4 points (1024 to 65536)")
    assert (triton["largest"].verdict, triton["taken"].verdict) == ("the same", "the same")
    assert torch_["smallest"].because.startswith("1.33 to 2.67")  # 64 is the smallest that fits at the end
    assert torch_["taken"].because.startswith("1.33 to 1.33")
    assert "at all of 4 points" in torch_["largest"].because
    refused = [row for row in built.rows if math.isnan(row.value.mean)]
    assert sorted((row.subject, row.verdict) for row in refused) == [
        ("Triton, block 256", "wrong"),
        ("Triton, block 256", "wrong"),
        ("Triton, block 256", "wrong"),
        ("Triton, block 256", "wrong"),
        ("chunked torch, block 16", "oom"),
        ("chunked torch, block 16", "oom"),
    ]
    first, _, third, _ = built.figure.axes
    assert "×\nwrong" in texts(first)
    assert "×\n64k oom" in texts(third)
    assert "1k tokens" in texts(first)
    first_row = next(row for row in built.rows if row.subject == "Triton, block 16")
    assert (first_row.measure, first_row.unit, first_row.at) == ("time, forward", "ms", "1024")
    assert first_row.value.mean == pytest.approx(2.0)
    outputs.write(block_sizes.ABOUT, built, tmp_path)
    assert (tmp_path / "block-sizes.png").stat().st_size > 10_000


def test_machines_stand_apart_and_the_latest_line_counts(tmp_path: Path):
    gpu(tmp_path)
    cpu = line(9, "forward", 1024, [arm("chunked", 16, 9.0), arm("chunked", 64, 1.0, taken=True)])
    cpu |= {"device": "A CPU", "threads": 1, "kernel_hash": "0123"}
    again = {**cpu, "id": "a" * 12, "arms": [arm("chunked", 16, 3.0), arm("chunked", 64, 1.0, taken=True)]}
    built = block_sizes.build(write(tmp_path, cpu, again, machine="a-cpu"))
    mine = [one for one in built.findings if one.setting.startswith("A CPU, chunked torch, batch 4")]
    assert mine[0].because.startswith("3.00 [")
    assert mine[0].runs == ("a" * 12,)
    assert mine[0].records == "kernels/a-cpu"
    assert len(built.figure.axes) == 6
    assert [(stamp.folder, stamp.stale) for stamp in built.stamps] == [
        ("kernels/a-cpu", True),
        ("kernels/a-gpu", False),
    ]


def test_block_sizes_without_records(tmp_path: Path):
    built = block_sizes.build(write(tmp_path, tail="{broken\n"))
    assert {(one.verdict, one.command) for one in built.findings} == {
        (Verdict.missing, "python -m tnbench.profiling.block_sizes")
    }
    assert "not measured yet" in texts(built.figure.axes[0])


def test_a_broken_line_is_told(tmp_path: Path):
    records = write(tmp_path, line(0, "forward", 1024, [{"block": 16}]), tail="{broken\n")
    assert not block_sizes.build(records).rows
    assert records.problems == [
        f"kernels/a-gpu: {FILE}: line {number} is broken and was ignored" for number in (1, 2)
    ]


# Energy


def block(
    root: Path, name: str, mode: str, length: int, joules: dict[str, float | None], **changes: Any
) -> Records:
    """A block of timed rows, the energy of each counted over 2 s; None: the counter did not move."""
    folder = root / "kernels" / "a-gpu"
    folder.mkdir(parents=True, exist_ok=True)
    shape = {**GPU, "length": length}
    lines: list[dict[str, Any]] = [{"kind": "session", "session": "s", "device": "A GPU"}]
    for one in joules:
        lines.append(
            {"kind": "row", "block": name, "implementation": one, "source": "ours", "status": "ok",
             "eager": {"median": 1e-3, "rounds": [1e-3] * 3}}
        )  # fmt: skip
    lines.append(
        {
            "kind": "block", "block": name, "session": "s", "time": "now", "rows": len(joules),
            "case": {"operator": "linear_attention", "mode": mode, "dtype": "bfloat16", "shape": shape},
            "measurement": {}, "kernel_hash": kernel_hash("linear_attention"), "floor_bytes": 1, "flops": 1,
            "command": "tnbench profile-kernels linear_attention", "tokens": 4 * length, **changes,
        }
    )  # fmt: skip
    for one, value in joules.items():
        lines.append(
            {"kind": "energy", "block": name, "implementation": one, "window": 2.0, "status": "ok",
             "joules_per_call": value, "watts": None if value is None else 400.0, "calls": 100}
        )  # fmt: skip
    Store(folder).append(lines)
    return Records(root)


def test_energy_over_the_length(tmp_path: Path):
    """Naive attention's joules per token grow with the length, ours do not; softmax is as frugal at 1,024."""
    for mode in ("forward", "both"):
        for length in (1024, 2048, 4096, 8192):
            tokens, factor = 4 * length, length / 1024
            each = {
                "triton": 2e-6, "lightning1": 3e-6 * factor, "quadratic": 8e-6 * factor,
                "softmax-flash": 3e-6 * factor, "softmax-cudnn": 2.1e-6 * factor,
            }  # fmt: skip
            joules = {name: value * tokens for name, value in each.items()}
            block(tmp_path, f"{mode}{length}", mode, length, {**joules, "chunked": None})
    built = energy.build(Records(tmp_path))
    told = {one.claim.name: one for one in built.findings}
    assert told["naive"].verdict == "less"
    assert told["naive"].because.startswith("4 to 32 times less energy per token at 8 points; less at 8")
    assert told["softmax"].verdict == "undecided"
    assert "less at 6, more at 0, within 10 % at 2" in told["softmax"].because
    assert told["length"].verdict == "does not grow"
    assert (
        "forward: 1.00 times the joules per token at 8,192 tokens of those at 1,024" in told["length"].because
    )
    rows = {(row.subject, row.against, row.measure, row.at): row for row in built.rows}
    own = rows["triton", "", "energy, forward", "8192"]
    assert (own.value.mean, own.unit, own.value.n) == (pytest.approx(2.0), "J per million tokens", 1)
    assert "one window of 2 s, 100 calls: no interval; idle power is part of it" in own.note
    saved = rows["triton", "softmax-cudnn", "energy saved, forward", "8192"]
    assert (saved.value.mean, saved.verdict) == (pytest.approx(8.4), "less")
    assert not [row for row in built.rows if row.subject == "chunked"]
    assert "naive" in texts(built.figure.axes[0])
    outputs.write(energy.ABOUT, built, tmp_path)
    assert (tmp_path / "energy.png").stat().st_size > 10_000


def test_energy_is_that_of_the_block_which_has_most_of_it(tmp_path: Path):
    """Not of the one that reports show, which has more implementations; nor of older code."""
    many = dict.fromkeys(["triton", "quadratic", "fla-chunk", "mlstm"])
    block(tmp_path, "old", "forward", 1024, {"triton": 9.0, "quadratic": 9.0, "chunked": 9.0}, torch="1")
    block(tmp_path, "few", "forward", 1024, {"triton": 4.096e-3, "quadratic": 8.192e-3}, torch="2")
    block(tmp_path, "one", "forward", 1024, {**many, "triton": 9.0}, torch="2")
    built = energy.build(block(tmp_path, "none", "forward", 1024, many, torch="2"))
    assert built.runs == ["few"]
    assert {row.subject: row.value.mean for row in built.rows if row.measure == "energy, forward"} == {
        "triton": pytest.approx(1.0), "quadratic": pytest.approx(2.0),
    }  # fmt: skip
    told = {one.claim.name: one.verdict for one in built.findings}
    assert told == {"naive": "less", "softmax": Verdict.missing, "length": Verdict.missing}


@pytest.mark.parametrize(
    ("growth", "verdict"), [(0.5, "does not grow"), (1.05, "does not grow"), (1.2, "grows")]
)
def test_growth_of_the_energy(growth: float, verdict: str, tmp_path: Path):
    block(tmp_path, "a", "forward", 1024, {"triton": 1.0})
    built = energy.build(block(tmp_path, "b", "forward", 4096, {"triton": 4.0 * growth}))
    assert {one.claim.name: one.verdict for one in built.findings}["length"] == verdict


def test_energy_without_records(tmp_path: Path):
    """Blocks whose energy was not counted are none."""
    built = energy.build(block(tmp_path, "a", "forward", 1024, {"triton": None, "quadratic": None}))
    assert {(one.verdict, one.command) for one in built.findings} == {
        (Verdict.missing, energy.ABOUT.measure.command)
    }
    assert not built.rows
    assert all("not measured yet" in texts(axes) for axes in built.figure.axes)


def test_the_command_of_energy_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """Every length in both modes, with naive, softmax and Lightning Attention, 2 s for each."""
    monkeypatch.setattr(command, "machine_of", lambda device: ("cuda", "A GPU"))
    words = energy.ABOUT.measure.command.split()
    assert words[0] == "tnbench"
    with pytest.raises(SystemExit) as left:
        cli.main([*words[1:], "--plan", "--results", str(tmp_path)])
    assert not left.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.count(", ".join(energy.MEASURED[:3])) == 1 for line in lines[:8])
    assert "8 of 8 points to measure, 40 rows, at least 98 s of timing" in lines[8]
