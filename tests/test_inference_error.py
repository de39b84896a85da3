"""The original inference against the robust one: overflow steps, errors, records, the figure, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tnbench.commands import run_alone
from tnbench.errors import RequestError
from tnbench.kernels.linear_attention import original, recurrent
from tnbench.profiling import inference_error as study_module
from tnbench.profiling import inference_error_model as model_module
from tnbench.profiling import inference_error_report as report_module
from tnbench.profiling.inference_error import (
    DTYPES,
    Study,
    decode_narrow,
    decode_original,
    measure,
    overflow_step,
    positions,
    products_flush,
)

pytestmark = pytest.mark.usefixtures("settled_process")

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "results" / "reference" / "models" / "inference-error"
SMALL = Study(heads=8, head_dim=32, length=192, seeds=2)
BOUNDS = {"fp32": 5e-6, "bf16": 4e-3, "fp16": 5e-4}
"""Of the robust form: a unit in the last place of the output; in fp32 λ is rounded too."""
SETTLED = 10
"""Steps after which outputs are sums of several terms, of which none is near zero by chance."""


def settled(row: dict) -> list[float]:
    """Median errors from `SETTLED` on."""
    return [x for t, x in zip(row["position"], row["median"], strict=True) if t >= SETTLED]


@pytest.fixture(scope="module")
def measured(settled_process: None) -> dict[str, tuple[list[dict], list[dict]]]:
    return {name: measure(SMALL, name, lambda text: None) for name in DTYPES}


@pytest.mark.parametrize(
    ("slope", "dtype", "step"),
    [
        (1 / 2, "fp32", 178),
        (1 / 2, "bf16", 178),
        (1 / 2, "fp16", 23),
        (1 / 16, "fp32", 1420),
        (1 / 16, "fp16", 178),
        (1 / 256, "fp32", 22714),
        (1 / 256, "fp16", 2840),
        (2**-0.25, "fp32", 106),
        (2**-0.25, "fp16", 14),
    ],
)
def test_predicted_steps_are_those_of_exact_powers(slope, dtype, step):
    assert overflow_step(slope, DTYPES[dtype]) == step
    for t, infinite in ((step - 1, False), (step, True)):
        power = torch.tensor(slope * t, dtype=torch.float64).exp().to(DTYPES[dtype])
        assert bool(power.isinf()) == infinite


@pytest.mark.parametrize("name", DTYPES)
def test_the_original_overflows_where_predicted(measured, name):
    """Never after λ^(−t) itself, and where its state in float64 does, but for a step of rounding."""
    overflows = 0
    for row in measured[name][1]:
        assert row["predicted"] == overflow_step(row["slope"], DTYPES[name])
        for state, seen in zip(row["state"], row["seen"], strict=True):
            if row["predicted"] <= SMALL.length:
                overflows += 1
                assert seen <= row["predicted"]
                assert abs(seen - state) <= 1
                assert (row["predicted"] - seen) * row["slope"] < 1.5
            elif row["predicted"] > 1.5 * SMALL.length:
                assert state is seen is None
    assert overflows == SMALL.seeds * {"fp32": 1, "bf16": 1, "fp16": 4}[name]


@pytest.mark.parametrize("name", DTYPES)
def test_the_robust_form_keeps_its_error(measured, name):
    series = [row for row in measured[name][0] if row["algorithm"] == "robust"]
    assert len(series) == SMALL.heads
    for row in series:
        assert row["position"][-1] == SMALL.length
        assert 0 < max(settled(row)) < BOUNDS[name]


def test_the_original_loses_digits_before_it_overflows(measured):
    """In fp16, λ^t is subnormal long before λ^(−t) overflows."""
    series = {(row["algorithm"], row["head"]): row for row in measured["fp16"][0]}
    for head in (1, 2, 3):
        assert series["original", head]["median"][-1] > 5 * max(settled(series["robust", head]))


@pytest.mark.parametrize("head_dim", [16, 32])
def test_bf16_rises_before_its_overflow_where_products_flush(head_dim):
    study = Study(heads=8, head_dim=head_dim, length=176, seeds=2)
    series = measure(study, "bf16", lambda text: None)[0]
    fastest = next(row for row in series if (row["algorithm"], row["head"]) == ("original", 1))
    assert fastest["position"][-1] >= 173
    assert (fastest["median"][-1] > 0.05) == products_flush(study, torch.bfloat16)


def inputs(dtype: torch.dtype, time: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, time, 4, 8).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("name", DTYPES)
def test_segments_of_the_original_are_the_operator_bit_for_bit(name):
    q, k, v = inputs(DTYPES[name], 60)
    log_decay = -torch.tensor([2.0, 0.5, 0.25, 0.01])  # the first overflows in every dtype
    whole, _ = original(q, k, v, log_decay)
    found, state = [], None
    for part in (slice(0, 17), slice(17, 18), slice(18, 60)):
        out, state = decode_original(q[:, part], k[:, part], v[:, part], log_decay, part.start, state)
        found.append(out)
    assert torch.equal(torch.cat(found, dim=1).nan_to_num(7.0), whole.nan_to_num(7.0))
    assert not whole.isfinite().all()


def test_a_narrow_state_of_fp32_is_the_robust_form():
    q, k, v = inputs(torch.float32, 40)
    log_decay = -torch.tensor([0.5, 0.1, 0.01, 0.001])
    halves = [decode_narrow(q[:, :20], k[:, :20], v[:, :20], log_decay, 0, None)]
    halves.append(decode_narrow(q[:, 20:], k[:, 20:], v[:, 20:], log_decay, 20, halves[0][1]))
    expected, _ = recurrent(q, k, v, log_decay)
    torch.testing.assert_close(torch.cat([out for out, _ in halves], dim=1), expected, rtol=1e-5, atol=1e-5)


def test_a_narrow_state_is_rounded_after_every_step():
    q, k, v = inputs(torch.bfloat16, 30)
    _, state = decode_narrow(q, k, v, -torch.full((4,), 0.01), 0, None)
    assert state is not None
    assert torch.equal(state, state.bfloat16().to(state.dtype))


def test_inputs_are_the_same_for_any_number_of_seeds_and_dtype():
    few, many = (Study(heads=2, head_dim=4, length=300, seeds=n) for n in (1, 3))
    for one, other in zip(few.inputs(torch.float32), many.inputs(torch.float16), strict=True):
        assert one[0] == other[0]
        for x, y in zip(one[1:], other[1:], strict=True):
            assert torch.equal(x[0].half(), y[0])


def test_positions_are_ascending_and_within_the_length():
    assert positions(1) == [1]
    found = positions(1000, 178)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (1, 1000)
    assert {142, 178} <= set(found)
    assert max(positions(100, 178)) == 100


def test_a_model_is_lost_with_its_fastest_head(monkeypatch):
    monkeypatch.setattr(model_module, "TOKENS", 32)
    found = model_module.decode_model({"fp16": torch.float16}, sequences=2, device="cpu")
    lost = {row["algorithm"]: row for row in found["rows"]}
    assert all(20 <= step <= 23 for step in lost["original"]["first_lost"])
    assert lost["robust"]["first_lost"] == [None, None]
    assert lost["robust"]["largest_error"] < 1e-2


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command; gives its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_alone(study_module.main, list(arguments))
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return run


def test_command_records_and_report(command, tmp_path, monkeypatch):
    """Records hold what was measured; table and figure are rebuilt from them alone."""
    monkeypatch.setattr(model_module, "TOKENS", 26)
    sizes = ["--heads", "3", "--head-dim", "8", "--length", "200", "--seeds", "2", "--dtype", "fp16,fp32"]
    status, output = command(*sizes, "--results", str(tmp_path))
    assert status == 0, output
    folder = tmp_path / "models" / "inference-error"
    names = {path.name for path in folder.iterdir()}
    rest = {"errors.csv", "overflow.csv", "table.md", "inference-error.png", "inference-error.pdf"}
    assert names == rest | {"records.jsonl"}
    record = report_module.read(folder)
    report_module.write(tmp_path, record)
    assert report_module.read(tmp_path) == record
    assert record["provenance"]["versions"]["torch"] == str(torch.__version__)
    assert record["seeds"] == 2

    before = {name: (folder / name).read_bytes() for name in rest}
    for name in rest:
        (folder / name).unlink()
    monkeypatch.setattr(study_module, "measure", None)
    assert command("--report", "--results", str(tmp_path))[0] == 0
    assert {name: (folder / name).read_bytes() for name in rest} == before

    frame = report_module.load(folder)
    drawn = report_module.figure(frame)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["fp16", "fp32"]
    first = frame[(frame["dtype"] == "fp16") & (frame["algorithm"] == "original") & (frame["head"] == 1)]
    curve = drawn.axes[0].lines[0]
    assert np.array_equal(curve.get_xdata(), first["position"])
    assert np.array_equal(curve.get_ydata(), first["median"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "fp61"], "no dtype 'fp61', did you mean"),
        (["--layer", "24"], "layer = 24 must be one of 0 to 23"),
        (["--length", "0"], "length = 0 must be at least 1"),
        (["--device", "tpu"], "take cpu"),
        (["--report"], "no records"),
        (["--report", "--heads", "4"], "only --results goes with it"),
        (["--report", "--device", "cpu"], "only --results goes with it"),
        (["--heads", "abc"], "Invalid value for '--heads'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(command, arguments, message, tmp_path):
    status, output = command(*arguments, "--results", str(tmp_path))
    assert status == 2
    assert output.startswith("tnbench: ")
    assert message in output
    assert output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_foreign_records_are_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"schema": 7}\n{}\n')
    with pytest.raises(ValueError, match="no record of"):
        report_module.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda head, series: head.pop("overflow"),
        lambda head, series: head.update(overflow=[]),
        lambda head, series: head.update(overflow=3),
        lambda head, series: head["model"].pop("rows"),
        lambda head, series: head["model"]["rows"][0].update(algorithm="another"),
        lambda head, series: series[0].pop("median"),
        lambda head, series: series[0].update(median=[]),
        lambda head, series: series[0].update(dtype="fp8"),
        lambda head, series: series.clear(),
        lambda head, series: series.insert(1, "text"),
    ],
)
def test_damaged_records_are_told_in_one_line(command, damage, tmp_path):
    """Whatever is missing in them; nothing is written."""
    head, *series = map(json.loads, (FOLDER / "records.jsonl").read_text().splitlines())
    damage(head, series)
    folder = tmp_path / "models" / "inference-error"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, (head, *series))))
    status, output = command("--report", "--results", str(tmp_path))
    assert (status, output.count("\n")) == (2, 1), output
    assert "records.jsonl is damaged, or no record of tnbench.profiling.inference_error" in output
    assert [path.name for path in folder.iterdir()] == ["records.jsonl"]


# What the page and the committed folder say


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return report_module.read(FOLDER)


def page() -> str:
    return (ROOT / "docs" / "inference.md").read_text()


def test_committed_tables_and_page_are_those_of_the_records(record):
    tables = [report_module.steps_table(record), report_module.errors_table(record)]
    tables.append(report_module.model_table(record))
    assert (FOLDER / "table.md").read_text() == "\n\n".join(tables) + "\n"
    for table in tables:
        assert table in page()


def test_numbers_of_the_page_are_those_of_the_records(record):
    text = " ".join(page().split())
    seeds, steps = record["seeds"], report_module.overflow(record)
    assert f"Eight heads of dim {record['head_dim']}" in text
    assert record["heads"] == 8
    assert f"{record['length']:,} steps, {seeds} sequences" in text
    width = record["heads"] * record["head_dim"]
    assert f"σ = 0.02 √{width} = {record['deviation']:.2f}" in text
    limits = {name: f"{value:.3f}" for name, value in record["log_limits"].items()}
    assert "{fp32} in fp32, {bf16} in bf16, {fp16} in fp16".format(**limits) in text

    assert (steps["seen_seeds"] == seeds).all()
    assert (steps["last"] <= steps["predicted"]).all()
    assert f"in {steps['agree'].sum()} of the {steps['seeds'].sum()} cases" in text
    pairs = [
        (row["dtype"], before - seen)
        for row in record["overflow"]
        for before, seen in zip(row["state"], row["seen"], strict=True)
        if before != seen
    ]
    assert f"in the other {len(pairs)}, both in bf16, the overflow comes at most" in text
    assert {dtype for dtype, _ in pairs} == {"bf16"}
    assert f"at most {max(early for _, early in pairs)} steps before it" in text
    assert all(early > 0 for _, early in pairs)

    early = {(row.dtype, row.head): row.predicted - row.first for row in steps.itertuples()}
    share = {key: early[key] / row.predicted for key, row in zip(early, steps.itertuples(), strict=True)}
    assert max(early[dtype, 1] for dtype in DTYPES) == 1
    for dtype in ("fp32", "fp16"):
        assert f"{early[dtype, 8]} steps ({share[dtype, 8]:.1%}) in {dtype}".replace("%", " %") in text
    assert f"predicted at {overflow_step(1 / 256, torch.float32)} in fp32" in text


def test_errors_in_the_prose_of_the_page_are_in_its_tables(record):
    """Every error that the prose names is an entry of the table."""
    prose = [line for line in page().splitlines() if not line.startswith("|")]
    named = re.findall(r"[\d.]+e-\d\d", "\n".join(prose))
    entries = re.findall(r"\d\.\de-\d\d", report_module.errors_table(record))
    assert len(named) > 10
    assert set(named) <= set(entries)


def test_the_page_says_what_this_processor_does(record):
    """The rise of the original's error in bf16, in the last 7.5 %, is put down to flushed subnormals."""
    assert record["products_flush"] == {"fp32": False, "bf16": True, "fp16": False}
    frame = report_module.load(FOLDER)
    mine = frame[(frame["dtype"] == "bf16") & (frame["algorithm"] == "original")]
    before = mine[mine["position"] <= 0.925 * mine["predicted"]]
    assert before["median"].max() < 0.02 < 0.4 < mine.groupby("head")["median"].last().min()


def test_the_model_of_the_page_is_the_one_of_the_records(record):
    model, text = record["model"], " ".join(page().split())
    start = f"TransNormerLLM of size {model['size']} with {model['heads']} heads, initial weights,"
    assert f"{start} {model['sequences']} sequences of {model['tokens']} random tokens" in text


def test_the_figure_is_drawn_from_the_committed_records(record):
    drawn = report_module.figure(report_module.load(FOLDER))
    assert [axes.get_title(loc="left") for axes in drawn.axes] == list(DTYPES)
    for axes, predicted in zip(drawn.axes, ("178", "178", "23"), strict=True):
        marks = [line for line in axes.lines if line.get_marker() == "v"]
        assert len(marks) == record["heads"]
        assert str(int(min(line.get_xdata()[0] for line in marks))) == predicted  # type: ignore[index]
        assert [text.get_text() for text in axes.texts] == [f"1/{2**n}" for n in range(1, 9)]


def test_the_committed_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


def test_another_study_is_not_written_over(tmp_path: Path):
    record = {"schema": 1, "heads": 2, "log_limits": {"fp32": 88.7}, "series": [{"head": 1}]}
    report_module.write(tmp_path, record)
    report_module.require_alike(tmp_path, {"heads": 2}, ["fp32"])
    for heads, dtypes in ((3, ["fp32"]), (2, ["bf16"])):
        with pytest.raises(RequestError, match="another folder"):
            report_module.require_alike(tmp_path, {"heads": heads}, dtypes)
