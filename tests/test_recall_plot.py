"""The figure of accuracy against state: families, levels, and that it shows what its table says."""

import doctest
from typing import Any

import numpy as np
import pytest
from made_up import suite

from tnbench import report
from tnbench.report import recall_plot, write_reports
from tnbench.report.results import SuiteResults
from tnbench.statistics import mean_interval

DIFFS = {
    "linear-32": {"model.width": 32, "model.heads": 2},
    "linear-64": {},
    "softmax-32": {"model.preset": "transformer", "model.width": 32},
    "softmax-64": {"model.preset": "transformer"},
    "no-decay": {"model.decay": "none"},
}
STATES = {"linear-32": 1024, "linear-64": 2048, "softmax-32": 8192, "softmax-64": 16384, "no-decay": 2048}


def results(**fields: Any) -> SuiteResults:
    made = suite(DIFFS, base="linear-64", metric="val_bits_per_byte", **fields)
    runs = made.runs.copy()
    runs["state_size"] = [STATES[name] for name in runs["variant"]]
    finished = runs["outcome"] == "finished"
    for level, error in (("pairs=4", 0.1), ("pairs=8", 0.4)):
        values = error + 0.01 * runs["seed"].astype(float) + 1000 / runs["state_size"]
        runs[f"{recall_plot.ERROR}@{level}"] = np.where(finished, values, np.nan)
    runs[recall_plot.ERROR] = runs[[f"{recall_plot.ERROR}@pairs={n}" for n in (4, 8)]].mean(axis=1)
    object.__setattr__(made, "runs", runs)
    return made


def test_variants_that_differ_in_size_alone_are_a_family():
    found = recall_plot.families(results())
    assert found == {
        "linear-64": "linear",
        "linear-32": "linear",
        "softmax-32": "softmax",
        "softmax-64": "softmax",
        "no-decay": "no-decay",
    }
    assert not doctest.testmod(recall_plot).failed


def test_the_figure_shows_what_its_table_says():
    made = results(lost={("softmax-32", 1): "diverged", ("no-decay", 0): "missing"})
    figure, table = recall_plot.recall(made)
    assert table.columns.tolist() == list(recall_plot.COLUMNS)
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["pairs=4", "pairs=8"]
    for axes, level in zip(panels, ("pairs=4", "pairs=8"), strict=True):
        mine = table[table["level"] == level]
        dots = [line for line in axes.lines if line.get_marker() == "."]
        assert sum(len(np.asarray(line.get_xdata())) for line in dots) == 5 * 3 - 2
        means = [line for line in axes.lines if line.get_marker() == "o"]
        drawn = sorted(pair for line in means for pair in line.get_xydata().tolist())  # type: ignore[union-attr]
        told = mine[mine["kind"] == "mean"][["state_size", "accuracy"]].itertuples(index=False)
        assert np.array(drawn) == pytest.approx(np.array(sorted(tuple(row) for row in told)))
    errors = made.runs[(made.runs["variant"] == "linear-64")][f"{recall_plot.ERROR}@pairs=8"]
    interval = mean_interval(1 - errors.to_numpy(), 0.05)
    row = table[(table["variant"] == "linear-64") & (table["kind"] == "mean") & (table["level"] == "pairs=8")]
    assert row[["accuracy", "low", "high", "n"]].to_numpy()[0].tolist() == pytest.approx(
        [interval.mean, interval.low, interval.high, 3]
    )


def test_one_level_is_one_panel():
    made = results()
    plain = made.runs.drop(columns=[name for name in made.runs if "@" in name])
    object.__setattr__(made, "runs", plain)
    figure, table = recall_plot.recall(made)
    assert len(figure.axes) == 1
    assert set(table["level"]) == {"all answers"}


def test_reports_have_the_figure_where_answers_were_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save", lambda figure, format: b"")  # drawing for print takes seconds
    names = {path.name for path in write_reports(results(), tmp_path)}
    assert {"recall.csv", "recall.png", "recall.pdf"} <= names
    assert 'id="recall"' in (tmp_path / "report.html").read_text()
    write_reports(suite(), tmp_path)
    assert not (tmp_path / "recall.csv").exists()
    assert 'id="recall"' not in (tmp_path / "report.html").read_text()
