"""LRPE's phases in 16 bits: roundings against arithmetic of their own, scores, records, command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tnbench.commands import run_alone
from tnbench.interop.official_position import RoundedLRPE
from tnbench.profiling import phase_error as study_module
from tnbench.profiling import phase_error_report as report_module
from tnbench.profiling.phase_error import DTYPES, Study, phase_errors, phases, rotation, score_errors

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / report_module.FOLDER
SMALL = Study(heads=2, head_dim=8, length=600, draws=2, windows=2)
DIGITS = {"bf16": 8, "fp16": 11}


def rounded(x: float, digits: int) -> float:
    """x with so many binary digits, ties to even."""
    if not x:
        return 0.0
    unit = 2.0 ** (math.floor(math.log2(x)) + 1 - digits)
    return round(x / unit) * unit


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return report_module.read(REFERENCE)


def series(record: dict[str, Any], dtype: str, form: str) -> dict[str, Any]:
    return next(one for one in record["series"] if (one["dtype"], one["form"]) == (dtype, form))


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("form", report_module.FORMS)
def test_phases_are_rounded_where_the_form_says(dtype: str, form: str):
    theta, digits = torch.tensor([1.0, 0.7, 0.3]), DIGITS[dtype]
    found, exact = phases(form, DTYPES[dtype], theta, 2040, 2100)
    for row, n in enumerate(range(2040, 2100)):
        for column, value in enumerate(theta.tolist()):
            short = rounded(value, digits)
            position = rounded(n, digits) if form in ("positions", "both") else n
            used = short if form in ("both", "theta") else value
            wanted = used * position
            if form == "both":
                wanted = rounded(wanted, digits)
            assert found[row, column].item() == pytest.approx(wanted, rel=1e-7)
            assert exact[row, column].item() == (short if form == "both" else value) * n


def test_phases_are_those_of_the_faithful_model():
    """The cosines that the rounding of the official code gives are those of the phases here."""
    for form in ("positions", "both"):
        lrpe = rotation(SMALL, form, torch.bfloat16)
        assert isinstance(lrpe, RoundedLRPE)
        ones = torch.ones(1, 600, 2, 8, dtype=torch.bfloat16)
        turned = lrpe.rotate(ones, ones, 0)[0][0, :, 0, :8]
        found, _ = phases(form, torch.bfloat16, SMALL.theta[0], 0, 600)
        assert torch.equal(turned, found.float().cos().bfloat16())


def test_bins_cover_all_positions_once():
    assert SMALL.edges == sorted(set(SMALL.edges))
    assert (SMALL.edges[0], SMALL.edges[-1]) == (1, 600)
    assert {256, 512} <= set(SMALL.edges)
    assert Study(length=1).edges == [1]


def test_errors_of_a_small_study():
    bins, lost = phase_errors(SMALL, "both", torch.bfloat16)
    assert lost is None
    assert len(bins) == len(SMALL.edges) - 1
    ours, _ = phase_errors(SMALL, "ours", torch.bfloat16)
    assert max(error for error in ours if error is not None) < 1e-4
    assert all(own > 100 * other for own, other in zip(bins[8:], ours[8:], strict=True) if own and other)


def test_scores_break_beyond_256_and_ours_do_not():
    broken = score_errors(SMALL, "positions", torch.bfloat16)[1]
    kept = score_errors(SMALL, "ours", torch.bfloat16)[1]
    for begin, own, exact in zip(SMALL.edges, broken, kept, strict=False):
        assert own is not None
        assert exact is not None
        assert exact < 0.01
        if begin >= 256:
            assert own > 5 * exact
    inside = [own / exact for begin, own, exact in zip(SMALL.edges, broken, kept, strict=False)
              if begin < 215 and own and exact]  # fmt: skip
    assert max(inside) == pytest.approx(1, rel=0.01)


def test_scores_of_a_rounded_theta_are_compared_with_the_unrounded():
    errors = score_errors(SMALL, "theta", torch.bfloat16)
    kept = score_errors(SMALL, "ours", torch.bfloat16)
    assert errors[256][-1] > 5 * kept[256][-1]  # type: ignore[operator]
    assert errors[256][0] is None
    assert score_errors(SMALL, "ours", torch.float32)[256][-1] < 1e-4  # type: ignore[operator]


def test_positions_of_fp16_end(record: dict[str, Any]):
    """65,520 is the least number that rounds to infinity."""
    for form in ("positions", "both"):
        one = series(record, "fp16", form)
        assert one["first_lost"] == 65520
        assert one["phase"][-1] is None
        assert one["score"]["1"][-1] is None
    assert all(one["first_lost"] is None for one in record["series"] if one["dtype"] != "fp16")


def test_committed_errors_are_those_of_the_page_on_checkpoints(record: dict[str, Any]):
    """Off by up to 0.5 rad before position 256; before 2,048 by nearly a unit of rounding, which is 8."""
    both = series(record, "bf16", "both")["phase"]
    assert report_module.largest(record, both, 256) == 0.5
    assert 7.5 < report_module.largest(record, both, 2048) < 8
    alone = series(record, "bf16", "positions")["phase"]
    assert report_module.largest(record, alone, 256) < 1e-5
    assert report_module.largest(record, alone, 2048) == 4
    for one in record["series"]:
        if one["form"] == "ours":
            assert report_module.largest(record, one["phase"], record["length"]) < 0.004


def test_committed_errors_come_again(record: dict[str, Any]):
    """Phases of the first 2,048 positions, to the last digit kept."""
    study = Study(record["heads"], record["head_dim"], 2048)
    for dtype, form in (("bf16", "both"), ("fp16", "positions"), ("fp32", "ours")):
        bins, _ = phase_errors(study, form, DTYPES[dtype])
        assert bins == series(record, dtype, form)["phase"][: len(bins)]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_alone(study_module.main, list(arguments))
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_command_records_and_says_the_same_again(command, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(study_module, "Study", partial(Study, windows=1))
    sizes = ["--heads", "1", "--head-dim", "4", "--length", "40", "--results", str(tmp_path)]
    status, said, _ = command(*sizes)
    assert status == 0
    path = tmp_path / report_module.FOLDER / report_module.RECORDS
    first = path.read_text().splitlines()
    status, again, _ = command("--report", "--results", str(tmp_path))
    assert status == 0
    assert again.strip()
    assert again.strip() in said
    assert command(*sizes)[0] == 0
    assert path.read_text().splitlines()[1:] == first[1:]
    status, _, told = command("--heads", "2", "--results", str(tmp_path))
    assert status == 2
    assert "holds another study" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heads", "0"], "heads = 0 must be at least 1"),
        (["--length", "0"], "length = 0 must be at least 1"),
        (["--report"], "no records in"),
        (["--report", "--heads", "4"], "only --results goes with it"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(command, arguments, said, tmp_path: Path):
    status, _, told = command(*arguments, "--results", str(tmp_path))
    assert status == 2
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda head, rows: head.update(study="another"),
        lambda head, rows: head.pop("begins"),
        lambda head, rows: head.pop("heads"),
        lambda head, rows: rows.pop(),
        lambda head, rows: rows[0]["phase"].pop(),
        lambda head, rows: rows[0]["score"].pop("16"),
        lambda head, rows: rows.insert(0, "text"),
    ],
)
def test_damaged_records_are_told_in_one_line(command, damage, tmp_path: Path):
    head, *rows = map(json.loads, (REFERENCE / report_module.RECORDS).read_text().splitlines())
    damage(head, rows)
    folder = tmp_path / report_module.FOLDER
    folder.mkdir(parents=True)
    (folder / report_module.RECORDS).write_text("\n".join(map(json.dumps, (head, *rows))))
    status, _, told = command("--report", "--results", str(tmp_path))
    assert (status, told.count("\n")) == (2, 1)
    assert "is damaged, or no record of tnbench.profiling.phase_error" in told
