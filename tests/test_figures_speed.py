"""Figures of speed and memory from made-up measurements of models and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tnbench.paper_figures import (
    context_speed,
    downstream,
    inference,
    largest_context,
    lightning_attention,
    srmsnorm,
)
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.profiling.kernels.store import Store as KernelStore
from tnbench.profiling.models.store import Store as ModelStore

CONFIRMED, CONTRADICTED = Verdict.confirmed, Verdict.contradicted
CASE = {"size": "1b", "batch": 1, "vocabulary": 64, "precision": "bf16", "suite": "", "limit": None}
SPREAD = (0.998, 1.001, 1.0, 1.002, 0.999)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What figures look like is no matter here, but that they are drawn: of inference and of kernels."""
    monkeypatch.setattr(context_speed, "_figure", lambda *_: Figure())
    monkeypatch.setattr(largest_context, "bars", lambda *_: Figure())


def models(root: Path, mode: str, seconds: Mapping[str, Mapping[int, float]], state: int = 64) -> Records:
    """Blocks of both models at every context; a call makes as many tokens as it says in `tokens`."""
    folder = root / "models" / "gpu"
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"kind": "session", "session": "s", "device": "a GPU"}]
    for context in next(iter(seconds.values())):
        block = f"{mode}-{context}"
        tokens = 1 if mode == "decode" else context
        for number, (variant, times) in enumerate(seconds.items()):
            rounds = [times[context] * SPREAD[(place + 2 * number) % 5] for place in range(5)]
            lines.append(
                {
                    "kind": "row", "block": block, "variant": variant, "config": variant, "source": "ours",
                    "diff": {}, "status": "ok", "tokens": tokens, "flops": 1.0, "floor_bytes": 1.0,
                    "times": {"median": times[context], "rounds": rounds}, "state_bytes": state,
                    "peak_memory_bytes": 1000 * context,
                }
            )  # fmt: skip
        lines.append(
            {
                "kind": "block", "block": block, "session": "s", "time": "now", "rows": len(seconds),
                "case": {**CASE, "mode": mode, "context": context}, "measurement": {}, "code": "abc",
                "command": "tnbench profile-model", "interleaved": True,
            }
        )  # fmt: skip
    ModelStore(folder).append(lines)
    return Records(root)


def verdicts(findings: Sequence) -> dict[str, Any]:
    return {finding.claim.name: finding.verdict for finding in findings}


def test_decoding_in_constant_time_and_faster(tmp_path: Path):
    ours, rival = {256: 1e-3, 4096: 1.001e-3}, {256: 1.2e-3, 4096: 4e-3}
    built = inference.build(models(tmp_path, "decode", {"transnormerllm": ours, "transformer": rival}))
    assert verdicts(built.findings) == dict.fromkeys(
        ("constant-time", "constant-memory", "faster"), CONFIRMED
    )
    assert {stamp.kind for stamp in built.stamps} == {"models"}
    speeds = {row.at: row.value.mean for row in built.rows if row.measure == "speed, decoding"}
    assert speeds == pytest.approx({"256": 1.2, "4096": 4.0}, rel=0.01)


def test_decoding_that_grows_and_is_slower(tmp_path: Path):
    ours, rival = {256: 1e-3, 4096: 2e-3}, {256: 0.5e-3, 4096: 4e-3}
    built = inference.build(models(tmp_path, "decode", {"transnormerllm": ours, "transformer": rival}))
    found = verdicts(built.findings)
    assert found["constant-time"] == CONTRADICTED
    assert found["faster"] == CONTRADICTED
    assert "+100.00 %" in built.findings[0].because


def test_one_context_says_nothing_of_growth(tmp_path: Path):
    built = inference.build(models(tmp_path, "decode", {"transnormerllm": {256: 1e-3}}))
    assert verdicts(built.findings) == dict.fromkeys(
        ("constant-time", "constant-memory", "faster"), Verdict.missing
    )


def test_training_at_a_constant_speed(tmp_path: Path):
    ours, rival = {1024: 0.1, 16384: 1.6}, {1024: 0.11, 16384: 4.0}
    built = context_speed.build(models(tmp_path, "train", {"transnormerllm": ours, "transformer": rival}))
    assert verdicts(built.findings) == {"constant": CONFIRMED, "faster": CONFIRMED}
    speed = [row for row in built.rows if row.ours and row.unit == "tokens/s" and row.at == "1024"]
    assert speed[0].value.mean == pytest.approx(10_240)


@pytest.mark.parametrize(("ours", "verdict"), [(48_000, CONFIRMED), (30_000, CONTRADICTED)])
def test_the_longer_context(ours, verdict, tmp_path: Path):
    folder = tmp_path / "models" / "gpu"
    folder.mkdir(parents=True)
    case = {name: value for name, value in CASE.items() if name != "limit"}
    lines = [
        {
            "kind": "largest", "session": "s", "time": "now", "variant": variant,
            "case": {**case, "mode": "train", "axis": "context"}, "config": variant, "status": "ok",
            "code": "abc", "value": value,
        }
        for variant, value in (("transformer", 37_000), ("transnormerllm", ours))
    ]  # fmt: skip
    ModelStore(folder).append([{"kind": "session", "session": "s", "device": "a GPU"}, *lines])
    built = largest_context.build(Records(tmp_path))
    assert verdicts(built.findings) == {"longer": verdict}
    row = next(row for row in built.rows if row.ours and row.subject == "TransNormerLLM")
    assert row.relative.mean == pytest.approx(ours / 37_000 - 1)


def kernels(
    root: Path, operator: str, shapes: Sequence[dict], mode: str, seconds: Mapping[str, float]
) -> Records:
    """Blocks in which every implementation takes so many seconds for a token or row."""
    folder = root / "kernels" / "gpu"
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"kind": "session", "session": "s", "device": "a GPU"}]
    for number, shape in enumerate(shapes):
        size = shape.get("length") or shape["rows"]
        for place, (name, each) in enumerate(seconds.items()):
            rounds = [each * size * SPREAD[(turn + 2 * place) % 5] for turn in range(5)]
            lines.append(
                {
                    "kind": "row", "block": f"b{number}", "implementation": name, "source": "ours",
                    "status": "ok", "eager": {"median": each * size, "rounds": rounds},
                    "peak_memory_bytes": int(1e9 * each * size),
                }
            )  # fmt: skip
        lines.append(
            {
                "kind": "block", "block": f"b{number}", "session": "s", "time": "now", "rows": len(seconds),
                "case": {"operator": operator, "mode": mode, "dtype": "bfloat16", "shape": shape},
                "measurement": {}, "kernel_hash": "abc", "command": "tnbench profile-kernels", "tokens": 1,
                "floor_bytes": 1, "flops": 1,
            }
        )  # fmt: skip
    KernelStore(folder).append(lines)
    return Records(root)


def test_lightning_attention_that_is_too_slow(tmp_path: Path):
    """1.5 times is not twice; and twice less memory is not four times."""
    shape = {"batch": 4, "heads": 16, "key_dim": 128, "value_dim": 128, "decay": "geometric"}
    shapes = [{**shape, "length": length} for length in (4096, 8192)]
    found = kernels(tmp_path, "linear_attention", shapes, "both", {"quadratic": 3e-6, "lightning1": 2e-6})
    told = verdicts(lightning_attention.build(found).findings)
    assert told["speed"] == CONTRADICTED
    assert told["memory"] == CONTRADICTED
    assert told["speed-2"] == told["flash-forward"] == Verdict.missing


def test_the_norm_against_eager_torch(tmp_path: Path):
    shapes = [
        {"rows": rows, "width": width, "form": "srmsnorm"} for rows in (1024, 4096) for width in (512, 1024)
    ]
    times = {"triton": 1e-9, "torch": 8e-9, "torch-compiled": 1e-9, "copy": 1e-9}
    built = srmsnorm.build(kernels(tmp_path, "norm", shapes, "backward", times))
    told = verdicts(built.findings)
    assert told["eager-backward"] == CONFIRMED
    assert told["eager-forward"] == Verdict.missing
    assert told["compiled-backward"] == "undecided"
    assert built.stamps[0].stale


def test_benchmarks_of_ours_stand_beside_the_printed_ones(tmp_path: Path):
    """Only every question, with the paper's metric and number of examples, is the paper's task."""
    (tmp_path / "evals").mkdir()
    rows = [
        "piqa,mine,acc,0.55,0.01,True,1838,0,,0.5,False,k1",
        "piqa,mine,acc_norm,0.99,0.01,True,1838,0,,0.5,False,k1",
        "piqa,mine,acc,0.98,0.01,True,100,0,100,0.5,False,k2",
        "piqa,mine,acc,0.97,0.01,True,1838,5,,0.5,False,k3",
        "cloze,mine,acc,0.96,0.01,True,500,0,,0.25,False,k4",
    ]
    head = "task,model,metric,value,stderr,higher_is_better,items,fewshot,limit,chance,at_chance,key"
    (tmp_path / "evals" / "results.csv").write_text("\n".join([head, *rows]) + "\n")
    built = downstream.build(Records(tmp_path))
    (row,) = [row for row in built.rows if row.ours]
    assert (row.measure, row.value.n, row.runs) == ("PIQA (acc)", 1838, ("k1",))
    assert row.value.mean == pytest.approx(55)
    assert row.value.high - row.value.mean == pytest.approx(1.96, abs=0.01)
    assert [finding.verdict for finding in built.findings] == [Verdict.undecided]
