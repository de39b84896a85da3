"""`tnbench figures --check`: spans, numbers outside of them, records that are gone, stale or changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import figure_records
import pytest
import yaml
from matplotlib.figure import Figure

from tnbench import cli
from tnbench.ablation.sides import Record
from tnbench.errors import RequestError
from tnbench.paper_figures import gating, normalisation, registry, stress_test
from tnbench.paper_figures.shared import checking, drawing, freshness, repeating, spans
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Stamp

DIFFERENCE = "record gating/comparisons.csv [variant = no-gate] difference +.3f interval"


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What figures look like is no matter here."""
    for module, name in ((drawing, "forest"), (stress_test, "bars")):
        monkeypatch.setattr(module, name, lambda *_: Figure((1, 1)))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one suite's records, its figure, and pages that tell of it."""
    root = tmp_path / "results" / "reference"
    figure_records.suite(root, "gating", {"gate": [1.0, 1.1, 1.05], "no-gate": [1.2, 1.31, 1.24]})
    (root / "gating" / "comparisons.csv").write_text(
        "variant,base,metric,margin,alpha,difference,low,high\n"
        "no-gate,gate,val_bits_per_byte,0.01,0.05,0.2,0.1752,-0.2248\n"
        "relu,gate,val_bits_per_byte,0.01,0.05,0.4,0.3,0.5\n"
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        f"It is <!-- {DIFFERENCE} -->+0.200 [+0.175, −0.225]<!-- end --> bits per byte worse.\n"
    )
    (tmp_path / "docs" / "reproduction.md").write_text("Not measured yet.\n")
    return tmp_path


@pytest.fixture
def figured(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with its committed figures, two of them alone."""
    monkeypatch.setattr(registry, "MODULES", {"gating": "gating", "stress-test": "stress_test"})
    monkeypatch.setattr(registry, "GROUPS", {"All": ("gating", "stress_test")})
    monkeypatch.chdir(checkout)
    assert figures() == 0
    return checkout


def figures(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["figures", *arguments])
    return int(left.value.code or 0)


def check(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    status = figures("--check")
    return status, capsys.readouterr().out.splitlines()


def test_all_is_well(figured: Path, capsys):
    before = {path: path.read_bytes() for path in figured.rglob("*") if path.is_file()}
    status, told = check(capsys)
    assert (status, told) == (0, ["2 figures, 2 pages: nothing to complain of"])
    assert {path: path.read_bytes() for path in figured.rglob("*") if path.is_file()} == before


def test_a_changed_number_in_a_page(figured: Path, capsys):
    page = figured / "README.md"
    text = page.read_text()
    page.write_text(text.replace("+0.200", "+0.201"))
    status, told = check(capsys)
    assert status == 1
    assert told[0].startswith("README.md, line 1: says '+0.201 [+0.175, −0.225]', the records say '+0.200 [")
    assert figures() == 0  # writes it anew
    assert page.read_text() == text


def test_a_number_outside_a_span(figured: Path, capsys):
    (figured / "docs" / "reproduction.md").write_text("Ours.\n\nIt is 1.68 times as fast.\n")
    assert check(capsys) == (
        1,
        ["reproduction.md, line 3: 1.68 times stands in no span", "2 figures, 2 pages: 1 problem"],
    )


def test_a_record_that_a_span_names_is_missing(figured: Path, capsys):
    page = figured / "README.md"
    page.write_text(page.read_text().replace("gating/comparisons.csv", "gone/comparisons.csv"))
    status, told = check(capsys)
    assert status == 1
    assert told[0] == "README.md, line 1: the record gone/comparisons.csv is missing"


def test_records_of_a_figure_are_missing(figured: Path, capsys):
    shutil.rmtree(figured / "results" / "reference" / "gating" / "runs")
    status, told = check(capsys)
    assert status == 1
    assert told[0].startswith("gating: its records are missing (")
    assert "tnbench ablate gating measures again" in told[0]


def test_a_changed_record(figured: Path, capsys):
    root = figured / "results" / "reference"
    shutil.rmtree(root / "gating")
    figure_records.suite(root, "gating", {"gate": [1.0, 1.1, 1.05], "no-gate": [1.2, 1.31, 1.25]})
    status, told = check(capsys)
    assert status == 1
    assert any("gating.csv is not what the records give: run tnbench figures gating" in line for line in told)
    assert any("report.html is not what the records give" in line for line in told)


def test_a_changed_table(figured: Path, capsys):
    table = figured / "results" / "reference" / "figures" / "gating.csv"
    table.write_text(table.read_text().replace("2.263", "2.264"))
    assert "gating.csv is not what the records give" in check(capsys)[1][0]
    table.unlink()
    assert "gating.csv is missing" in check(capsys)[1][0]


def test_stale_records_and_how_they_count_again(figured: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    from tnbench.paper_figures.shared import records

    made = records.source_hash()
    monkeypatch.setattr(records, "source_hash", lambda: "0123456789ab")
    status, told = check(capsys)
    assert status == 1
    assert told[0].startswith(
        f"gating: gating is stale: its training code was {made}, now it is 0123456789ab; measure again"
    )
    entry = {"kind": "training", "records": made, "code": "0123456789ab", "seen": "the same values"}
    (figured / "results" / "reference" / "code.yaml").write_text(yaml.safe_dump([entry]))
    assert check(capsys)[0] == 0
    entry["code"] = "ba9876543210"
    (figured / "results" / "reference" / "code.yaml").write_text(yaml.safe_dump([entry]))
    assert check(capsys)[0] == 1


@pytest.mark.parametrize(
    "text", ["{", "a: 1", "[1]", "- {kind: a}", "- {kind: a, records: b, code: c, seen: ''}"]
)
def test_a_list_of_equal_code_that_is_none(text, tmp_path: Path):
    (tmp_path / "code.yaml").write_text(text)
    with pytest.raises(RequestError, match="expected a list of entries"):
        freshness.stale([Stamp("gating", "training", "a", "b")], tmp_path)


def test_repeating_writes_what_it_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figure_records.suite(tmp_path, "gating", {"gate": [1.0, 1.1], "no-gate": [1.2, 1.3]}, code="a" * 12)
    figure_records.suite(tmp_path, "normalisation", {"srmsnorm": [1.0], "rmsnorm": [1.2]}, code="a" * 12)
    answers, fails = [], {"gate"}

    def again(run: Record, folder: Path) -> tuple[bool, str]:
        answers.append(run.variant)
        return run.variant not in fails, "said"

    monkeypatch.setattr(repeating, "again", again)
    with pytest.raises(SystemExit) as left:
        repeating.run_alone(repeating.main, ["--records", str(tmp_path)])
    assert left.value.code == 1
    assert not (tmp_path / "code.yaml").exists()
    for module in (gating, normalisation):  # of one code: not the one without the other
        assert freshness.stale(module.build(Records(tmp_path)).stamps, tmp_path)
    answers.clear()
    fails.clear()
    with pytest.raises(SystemExit) as left:
        repeating.run_alone(repeating.main, ["--records", str(tmp_path)])
    assert left.value.code == 0
    assert sorted(answers) == ["gate", "no-gate", "rmsnorm", "srmsnorm"]  # one run of each variant
    assert not freshness.stale(gating.build(Records(tmp_path)).stamps, tmp_path)
    (entry,) = freshness.read(tmp_path)
    assert "2 runs of gating" in entry["seen"]
    assert "2 runs of normalisation" in entry["seen"]


def test_pages_belong_to_the_reference_alone(checkout: Path):
    assert len(checking.pages(checkout / "results" / "reference")) == 2
    assert checking.pages(checkout / "results") == []


# Spans


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text("name,x,x_low,x_high,low,high,y\na,0.5,0.4,0.6,1,2,4\nb,-2,-3,-1,,,9\n")
    (tmp_path / "f.json").write_text(
        '{"ratio": 1.684, "ratio_low": 1.53, "ratio_high": 1.85, "a": {"n": 30}}'
    )
    return tmp_path


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("t.csv [name = a] x .2f", "0.50"),
        ("t.csv [name = b] x +.1f", "−2.0"),
        ("t.csv [name = a] x .1f interval", "0.5 [0.4, 0.6]"),
        ("t.csv [name = a] y .0f interval", "4 [1, 2]"),
        ("t.csv [name = a] x .0%", "50 %"),
        ("t.csv [name = a, y = 4] x .0%; y d; name s", "50 %, 4, a"),
        ("t.csv min(y) d; max(y) d; geomean(y) .0f; count() d; sum(y) d", "4, 9, 6, 2, 13"),
        ("t.csv each(y) d", "4, 9"),
        ("f.json ratio .2f interval; a.n d", "1.68 [1.53, 1.85], 30"),
    ],
)
def test_what_a_span_shows(what, text, table: Path):
    assert spans.shown(what, table, ", ") == text


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no.csv x .2f", "the record no.csv is missing"),
        ("t.csv [name = c] x .2f", "has no row"),
        ("t.csv [nam = a] x .2f", "has no column nam"),
        ("t.csv x .2f", "2 rows are left"),
        ("t.csv [name = a] z .2f", "no field z"),
        ("t.csv [name = b] low .2f", "the field low is empty"),
        ("t.csv [name = a] x", "no field with its form"),
        ("t.csv [name = a] name .2f", "cannot be shown as .2f"),
        ("t.csv mode(y) d", "mode is unknown"),
        ("t.csv", "is no span"),
    ],
)
def test_a_span_that_cannot_be_shown_says_why(what, said, table: Path):
    with pytest.raises(ValueError, match=said):
        spans.shown(what, table, ", ")
    page = f"It is <!-- record {what} -->1<!-- end -->."
    assert any(said in problem for problem in spans.differences(page, table))


def test_spans_are_written_anew(table: Path):
    page = "x <!-- record t.csv [name = a] x .2f -->9<!-- end --> y\n"
    page += "| a | <!-- record t.csv each(y) d --><!-- end --> |\n"
    now, problems = spans.rendered(page, table)
    assert not problems
    assert "-->0.50<!-- end --> y" in now
    assert "-->4 | 9<!-- end --> |" in now  # in a table, one cell each
    assert spans.rendered(now, table) == (now, [])
    broken = now.replace("0.50", "0.5\n0").replace("4 | 9", "4 |  9")
    assert len(spans.differences(broken, table)) == 1  # a line break inside a number is another number


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("A <!-- record t.csv [name = a] x .2f -->0.50", "not closed"),
        ("A\n<!-- record t.csv [name = a] x .2f -->0.50<!-- end -->", "line 2: a span may not begin a line"),
    ],
)
def test_spans_that_markdown_or_the_check_would_not_read(page, said, table: Path):
    assert said in " ".join(spans.differences(page, table))


@pytest.mark.parametrize(
    "text",
    [
        "1.68 times", "44 %", "44%", "2.65×", "+0.246 [+0.189, +0.304] bits per byte", "*±0.05* bits",
        "5 minutes", "8 to 10 times", "3.02 TB/s", "20,000 tokens/s", "0.11 J", "~3 GB", "a 5-minute run",
        "80GB of it",
    ],
)  # fmt: skip
def test_numbers_with_a_unit_are_found(text):
    assert spans.outside(f"It is {text}.\n"), text


@pytest.mark.parametrize(
    "text",
    [
        "with 95 % t intervals", "(95 % interval)", "one H100 80GB HBM3", "an A100-80G", "128 tokens",
        "500 questions",
        "table 5", "version 2.11.0", "3 seeds", "`--time 5 s`", "[a](results/5%20x)", "```\n5 s\n```",
        "<!-- given limit -->5 minutes<!-- end -->", "<!-- a note of 5 minutes -->", "at 16 trained contexts",
    ],
)  # fmt: skip
def test_other_numbers_are_left_alone(text):
    assert spans.outside(f"It is {text}.\n") == []
