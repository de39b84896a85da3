"""Verdicts on the paper's claims, by rule, on made-up records of which the right verdict is known."""

from __future__ import annotations

from pathlib import Path

import figure_records
import pytest
from matplotlib.figure import Figure

from tnbench.paper_figures import gating, normalisation
from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import Pair, exactly, judge
from tnbench.paper_figures.shared.tables import Built, Row
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Verdict, judged, together
from tnbench.statistics import compare, mean_interval, paired_difference

BASE = [1.000, 1.012, 0.991, 1.006, 0.997]
NOISE = [0.0004, -0.0006, 0.0002, -0.0001, 0.0003]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What figures look like is no matter here."""
    monkeypatch.setattr(drawing, "forest", lambda *_: Figure())


def shifted(by: float, noise: float = 1.0) -> list[float | None]:
    return [base + by + noise * one for base, one in zip(BASE, NOISE, strict=True)]


def gate(folder: Path, values: list[float | None], **options) -> Built:
    figure_records.suite(folder, "gating", {"gate": BASE, "no-gate": values}, **options)
    return gating.build(Records(folder))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (shifted(0.05), Verdict.confirmed),
        (shifted(-0.05), Verdict.contradicted),
        (shifted(0.02, noise=200), Verdict.undecided),
        (shifted(0.0), Verdict.undecided),  # equivalent, where a difference is claimed
        ([1.5, None, None, None, None], Verdict.undecided),  # one pair
        ([None] * 5, Verdict.undecided),
    ],
)
def test_a_claimed_difference(values, verdict, tmp_path: Path):
    (found,) = gate(tmp_path, values).findings
    assert found.verdict == verdict, found.because


def test_no_records_are_not_measured_yet(tmp_path: Path):
    (found,) = gating.build(Records(tmp_path)).findings
    assert found.verdict == Verdict.missing
    assert found.command == "tnbench ablate gating"


@pytest.mark.parametrize(
    ("by", "noise", "margin", "verdict"),
    [
        (0.0, 1, 0.01, Verdict.confirmed),
        (0.05, 1, 0.01, Verdict.contradicted),
        (-0.05, 1, 0.01, Verdict.contradicted),
        (0.005, 1, 0.01, Verdict.contradicted),  # significant, and within the margin
        (0.0, 100, 0.01, Verdict.undecided),
        (0.0, 1, None, Verdict.undecided),  # no margin, no equivalence
    ],
)
def test_claimed_parity(by, noise, margin, verdict, tmp_path: Path):
    values = {"srmsnorm": BASE, "rmsnorm": shifted(by, noise), "layernorm": shifted(by, noise)}
    figure_records.suite(tmp_path, "normalisation", values, margin=margin)
    built = normalisation.build(Records(tmp_path))
    assert [finding.verdict for finding in built.findings] == [verdict] * 2
    if (by, margin) == (0.005, 0.01):
        assert "worse, but within" in built.findings[0].because


def test_holm_is_over_the_whole_table(tmp_path: Path):
    """p = 0.03 alone is significant; beside another comparison it is not."""
    values = [base + 0.02 + 37 * one for base, one in zip(BASE, NOISE, strict=True)]
    p = paired_difference(values, BASE, 0.05).p
    assert 0.025 < p < 0.05
    table = {"srmsnorm": BASE, "rmsnorm": values, "layernorm": values}
    figure_records.suite(tmp_path, "normalisation", table, margin=0.001)
    found = normalisation.build(Records(tmp_path)).findings[0]
    assert found.verdict == Verdict.undecided
    figure_records.suite(tmp_path / "alone", "normalisation", {"srmsnorm": BASE, "rmsnorm": values})
    found = normalisation.build(Records(tmp_path / "alone")).findings[0]
    assert found.verdict == Verdict.contradicted


def test_absolute_and_relative_effects_have_their_intervals(tmp_path: Path):
    row = next(row for row in gate(tmp_path, shifted(0.05)).rows if row.ours and row.against)
    expected = paired_difference([value for value in shifted(0.05) if value], BASE, 0.05)
    assert (row.difference.mean, row.difference.low) == pytest.approx((expected.mean, expected.low))
    assert row.relative.mean == pytest.approx(0.05 / mean_interval(BASE, 0.05).mean, rel=0.01)
    assert row.relative.low < row.relative.mean < row.relative.high
    assert (row.value.n, row.difference.n) == (5, 5)
    assert row.claim == "confirmed at this scale"
    assert len(row.runs) == 10


def test_each_folder_of_a_suite_has_its_own_verdict(tmp_path: Path):
    figure_records.suite(tmp_path, "gating", {"gate": BASE, "no-gate": shifted(0.05)})
    figure_records.suite(tmp_path / "code-corpus", "gating", {"gate": BASE, "no-gate": shifted(-0.05)})
    built = gating.build(Records(tmp_path))
    assert [(one.records, one.verdict) for one in built.findings] == [
        ("gating", Verdict.confirmed),
        ("code-corpus/gating", Verdict.contradicted),
    ]
    ours = [row for row in built.rows if row.ours and row.against]
    assert [row.claim for row in ours] == ["confirmed at this scale", "contradicted at this scale"]


def test_open_questions_keep_the_words_of_the_comparison():
    (found,) = compare([(shifted(0.05), BASE)], alpha=0.05)  # type: ignore[arg-type]
    assert judged(Expects.open, found) == "worse"


def test_a_claim_about_many_points():
    confirmed, contradicted, undecided = Verdict.confirmed, Verdict.contradicted, Verdict.undecided
    assert together([confirmed, confirmed]) is confirmed
    assert together([confirmed, undecided]) is undecided
    assert together([confirmed, contradicted, undecided]) is contradicted
    assert together([]) is Verdict.missing


FASTER = Claim("faster", "Twice as fast.", Expects.lower)
OTHER = [2.00, 2.04, 1.98]


def pair(own: list[float], other: list[float] | None = None, at: str = "1024") -> Pair:
    return Pair(at, own, other or OTHER, "ours", "theirs", "kernels/x", "a GPU", ("block",), "tnbench …")


@pytest.mark.parametrize(
    ("own", "least", "verdict"),
    [
        ([0.50, 0.51, 0.49], 2.0, Verdict.confirmed),
        ([1.30, 1.31, 1.29], 2.0, Verdict.contradicted),
        ([1.30, 1.31, 1.29], 1.0, Verdict.confirmed),
        ([1.00, 1.03, 0.98], 2.0, Verdict.undecided),
        ([0.50], 2.0, Verdict.undecided),
    ],
)
def test_at_least_so_many_times_as_fast(own, least, verdict):
    found, rows = judge(FASTER, [pair(own)], least)
    assert found.verdict == verdict, found.because
    assert rows[0].value.mean == pytest.approx(2.0 / own[0], rel=0.05)


def test_a_speed_that_fails_at_one_length_fails():
    found, rows = judge(FASTER, [pair([0.5, 0.51, 0.49]), pair([3.0, 3.1, 2.9], at="2048")], 2.0)
    assert found.verdict == Verdict.contradicted
    assert [row.claim for row in rows] == ["confirmed at this scale", "contradicted at this scale"]
    assert "1024 to 2048" in found.because


def test_an_open_question_of_speed_counts_points():
    question = Claim("open", "?", Expects.open)
    found, _ = judge(question, [pair([0.5, 0.51, 0.49]), pair([3.0, 3.1, 2.9], at="2048")])
    assert found.verdict == "mixed"
    assert "faster at 1, slower at 1, undecided at 0" in found.because
    assert judge(question, [])[0].verdict == Verdict.missing


def test_what_repeats_exactly_needs_no_test():
    row = Row("ours", "ours", "memory", "MB", runs=("block",))
    assert exactly(FASTER, True, "4 times less", row).verdict == Verdict.confirmed
    assert exactly(FASTER, False, "3 times less", row).verdict == Verdict.contradicted
