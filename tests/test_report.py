"""Reports of made-up suites: what the page holds, which files are written, and that they can be repeated."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from made_up import FACTS, LOST, RATES, suite

from tnbench import report
from tnbench.report import html, plots, tables, tuning_plot, write_reports
from tnbench.report.results import Matching

NASTY = r"a_b & <b>50%</b> | $x^2$ \ {c} ~ #1 `q` *"
FILES = ["runs.csv", "summary.csv", "comparisons.csv", "table.md", "table.tex", "curves.png", "curves.pdf"]
TUNING_FILES = ["tuning.csv", "tuning.png", "tuning.pdf"]


class Page(HTMLParser):
    """Texts by tag, table rows, and anything that would need a network."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.outside: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        links = [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.outside += [link for link in links if not link.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def unsaved(monkeypatch):
    """Leaves figures out of the files; the page draws them all the same."""
    monkeypatch.setattr(report, "save", lambda figure, format: b"")


def page_of(results):
    tuning = tuning_plot.tuning(results)[0] if results.tuned else None
    return Page(html.page(results, plots.curves(results)[0], tuning))


def readings(results):
    return {one.variant: html.reading(results, one) for one in results.summaries}


@pytest.mark.usefixtures("unsaved")
def test_special_characters_survive_every_format(tmp_path):
    results = suite(
        {"base": {}, NASTY: {"model.x": "<script>alert(1)</script>"}},
        title="Loss & <i>costs</i> of 100 %",
        notes=["<img src=x>"],
        tune=RATES[:2],
    )
    write_reports(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert NASTY in [row[0] for row in page.rows]
    assert page.texts["title"] == ["Loss & <i>costs</i> of 100 %"]
    assert "<img src=x>" in "".join(page.texts["li"])
    assert len(page.texts["script"]) == 1
    for name in ("summary.csv", "comparisons.csv", "tuning.csv"):
        assert NASTY in pd.read_csv(tmp_path / name)["variant"].tolist()
    escaped = (
        r"a\_b \& \textless{}b\textgreater{}50\%\textless{}/b\textgreater{} \textbar{} "
        r"\$x\textasciicircum{}2\$ \textbackslash{} \{c\} \textasciitilde{} \#1 `q` {*}"
    )
    assert (tmp_path / "table.tex").read_text().count(f"{escaped} & ") == 2
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line[:1] == "|"]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {15}


def test_the_page_stands_alone_and_says_what_the_tables_say():
    results = suite(lost=LOST, notes=["runs/0001abcd/metrics.jsonl: line 7 is broken and was ignored"])
    page = page_of(results)
    assert page.outside == page.open == []
    for grid in (tables.table(results), tables.comparisons(results)):
        assert all([cell.text for cell in row] in page.rows for row in grid.rows)
    assert sum(row[2].endswith("abcd") for row in page.rows if len(row) == 10) == 14
    said = "".join(page.texts["li"])
    assert "Worse: +0.0340 bits per byte, 95 % interval [+0.0313, +0.0367], 3 pairs of seeds" in said
    assert "Of 3 runs: 1 diverged." in said
    assert "line 7 is broken" in said
    assert FACTS["command"] in page.texts["code"]
    assert any("diverged at step 120: loss is not finite" in row for row in page.rows)
    assert "docs/method.md" in page.texts["code"]
    assert {"How the verdicts were reached", "Comparisons in full"} <= set(page.texts["h2"])
    assert "Tuning" not in page.texts["h2"]


def test_the_page_of_a_tuned_suite_shows_its_search():
    matching = {"no-gate": Matching({"model.channel.width": 344}, 0.0031)}
    results = suite(tune=RATES, matched_by="parameters", matching=matching)
    page = page_of(results)
    assert page.outside == page.open == []
    assert {"Tuning", "All tuning runs"} <= set(page.texts["h2"])
    for grid in (tables.quality(results), tables.costs(results), tables.choices(results)):
        assert all([cell.text for cell in row] in page.rows for row in grid.rows)
    runs = [row for row in page.rows if len(row) == 6 and row[1] in ("100", "101")]
    assert len(runs) == len(results.tuning)
    assert ["no-gate", "100", "041000400", "diverged at step 120: loss is not finite", "0.004", "–"] in runs
    changes = "".join(page.texts["dd"])
    assert "matched by parameters with model.channel.width = 344: residual +0.31 %" in changes
    assert "training.learning_rate at its largest, 0.004" in [cell for row in page.rows for cell in row]


def test_readings_follow_the_verdict():
    noise = np.array([-0.0010, 0.0006, 0.0004, -0.0002, 0.0002])
    shifts = {
        "worse": 0.02 + noise,
        "near": 0.002 + noise,
        "same": noise,
        "unclear": 12 * noise,
        "flat": 0.01,
    }
    diffs = {"base": {}, **{name: {"model.width": index} for index, name in enumerate(shifts)}}
    results = suite(diffs, seeds=range(5), margin=0.005)
    base = results.values("base").to_numpy()
    for name, shift in shifts.items():
        results.runs.loc[results.runs["variant"] == name, "val_bits_per_byte"] = base + shift
    said = readings(results)
    assert re.match(
        r"Worse: \+0\.0200\d* bits per byte, 95 % interval \[\+0.0\d+, .*p < 0.001", said["worse"]
    )
    assert said["near"].startswith("Worse, but within ±0.005 bits per byte: +0.0020")
    assert re.search(r"^Equivalent within ±0.005 bits per byte: .* \(equivalence\)\.$", said["same"])
    assert re.search(
        r"^Undecided: .* About \d+ seeds would decide; 5 find a difference of 0\.\d+ bits per byte",
        said["unclear"],
    )
    assert "All differences are equal, so there is no noise to test against." in said["flat"]


def test_an_a_a_row_that_differs_is_called_a_false_alarm():
    results = suite({"base": {}, "again": {}}, repeats=frozenset({"again"}))
    base = results.values("base").to_numpy()
    results.runs.loc[results.runs["variant"] == "again", "val_bits_per_byte"] = (
        base + np.array([20, 21, 22]) / 1000
    )
    assert readings(results)["again"].endswith("differs, so this is a false alarm.")
    assert "false alarm" not in readings(suite({"base": {}, "again": {}}))["again"]


TWO = {"base": {}, "no-gate": {"model.gate": False}}
CASES = {
    "nothing finished": suite(TWO, lost={(v, s): "out_of_memory" for v in TWO for s in range(3)}),
    "one seed": suite(seeds=(0,)),
    "a variant diverged": suite(TWO, lost={("no-gate", s): "diverged" for s in range(3)}),
    "the base diverged": suite(TWO, lost={("base", s): "diverged" for s in range(3)}),
    "one variant": suite({"base": {}}),
    "twelve variants": suite({"base": {}, **{f"variant-number-{i}": {"a": i} for i in range(11)}}),
    "long name": suite({"base": {}, "a-very-long-name-" * 4: {"model.mixer": ["gla", None]}}),
    "tuned": suite(TWO, seeds=range(8), tune=RATES, margin=0.005),
    "tuning has not ended": suite(
        TWO, lost={(v, s): "missing" for v in TWO for s in range(3)}, tuning=suite(TWO, tune=RATES).tuning
    ),
    "one value tuned": suite({"base": {}}, tune=(0.001,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("unsaved")
def test_every_suite_gets_its_reports(case, tmp_path):
    paths = {path.name: path for path in write_reports(CASES[case], tmp_path)}
    tuned = TUNING_FILES if CASES[case].tuned else []
    assert list(paths) == [*FILES, *tuned, "report.html"]
    assert {path.name for path in tmp_path.iterdir()} == set(paths)
    page = Page(paths["report.html"].read_text())
    printed = paths["table.md"].read_text() + "".join(page.texts["li"] + page.texts["td"])
    assert not re.search(r"\b(nan|inf|None|<NA>)\b", printed)


@pytest.mark.usefixtures("unsaved")
def test_files_of_an_earlier_tuning_do_not_stay(tmp_path):
    write_reports(suite({"base": {}}, tune=RATES), tmp_path)
    assert (tmp_path / "tuning.csv").exists()
    paths = write_reports(suite({"base": {}}), tmp_path)
    assert (
        {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} == {*FILES, "report.html"}
    )


def test_without_intervals_it_is_said():
    results = CASES["one seed"]
    row = [cell.text for cell in tables.table(results).rows[1]]
    assert row[2:6] == [
        "1/1",
        "1.855 (n = 1: no interval)",
        "+0.034 (1 pair: no interval)",
        "undecided (one pair)",
    ]
    assert "no interval, so it cannot be told from the noise" in "".join(page_of(results).texts["li"])
    failed = page_of(CASES["the base diverged"]).texts["li"]
    assert "No finished run, so no number. Of 3 runs: 3 diverged." in "".join(failed)
    assert "No seed has finished both here and in the base" in "".join(failed)


def test_the_same_results_give_the_same_bytes(tmp_path):
    fields = {"lost": LOST, "tune": RATES, "seeds": range(8), "margin": 0.005}
    first = write_reports(suite(TWO, **fields), tmp_path / "first")
    second = write_reports(suite(TWO, **fields), tmp_path / "second")
    for one, other in zip(first, second, strict=True):
        start = {".png": b"\x89PNG", ".pdf": b"%PDF"}.get(one.suffix, b"")
        assert one.read_bytes() == other.read_bytes(), one.name
        assert one.read_bytes().startswith(start)
