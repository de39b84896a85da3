"""Figures of what the paper leaves open on its kernels: block sizes, energy; from made-up records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from tnbench.paper_figures import block_sizes
from tnbench.paper_figures.shared import outputs
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.profiling.block_sizes_records import FILE
from tnbench.profiling.kernels.store import kernel_hash

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
