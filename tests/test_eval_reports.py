"""Evaluations in the reports of made-up suites: families, directions, marks, tables, figures."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import DIFFS, suite
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from rich.console import Console
from test_report import Page

from tnbench import report
from tnbench.evaluation import outcomes
from tnbench.evaluation.items import Item
from tnbench.evaluation.study import Store
from tnbench.report import (
    eval_captions,
    eval_frames,
    eval_tables,
    formats,
    html,
    plots,
    positions_plot,
    write_reports,
)
from tnbench.report.evaluations import BITS, EVAL_COLUMNS, POSITION_COLUMNS, SCORE, Evaluated
from tnbench.report.results import SuiteResults
from tnbench.statistics import holm, paired_difference

QUESTIONS = 400
TASKS = {"easy": "easy, 5-shot", "hard": "hard, first 400", "text": "text"}
RIGHT = {"easy": 0.6, "hard": 0.24}
BETTER = {"softmax": 0.15, "no-gate": -0.1}


def evaluated(seeds=(0, 1, 2), lost=(), tasks=("easy", "hard", "text"), positions=False) -> Evaluated:
    """Answers to tasks with four choices, of which nobody knows `hard`; `text` has a perplexity alone.

    Args:
        lost: (variant, seed, task) of evaluations that ran out of memory.
    """
    rows, answers = [], {}
    for index, variant in enumerate(DIFFS):
        for seed in seeds:
            for number, task in enumerate(tasks):
                draw = np.random.default_rng([index, seed, number])
                about = {"variant": variant, "seed": seed, "run_id": f"{index}{seed}", "task": task}
                common = {"questions": QUESTIONS, "outcome": "evaluated", "reason": "", "chance": math.nan}
                gone = (variant, seed, task) in lost
                if gone:
                    common |= {"outcome": "out_of_memory", "reason": "no memory left"}
                if task == "text":
                    value = {
                        "metric": "word_perplexity",
                        "higher_is_better": False,
                        "value": 30 + 2 * index + seed,
                    }
                    rows.append(
                        {**about, **common, "measure": SCORE, "stderr": math.nan, **({} if gone else value)}
                    )
                    continue
                right = draw.random(QUESTIONS) < RIGHT[task] + (
                    BETTER.get(variant, 0) if task == "easy" else 0
                )
                score = pd.Series(right.astype(float), index=[f"q{n}" for n in range(QUESTIONS)])
                bits = pd.Series(
                    3 - 2 * BETTER.get(variant, 0) + 0.1 * draw.normal(size=QUESTIONS), index=score.index
                )
                for measure, metric, each in ((SCORE, "acc", score), (BITS, "gold_bits_per_byte", bits)):
                    known = {"metric": metric, "higher_is_better": measure == SCORE, "value": each.mean()}
                    known |= {"stderr": each.sem(), "chance": 0.25 if measure == SCORE else math.nan}
                    rows.append({**about, **common, "measure": measure, **({} if gone else known)})
                    if not gone:
                        answers[variant, seed, task, measure] = each
    read = [
        (
            variant,
            seed,
            f"{index}{seed}",
            64,
            low,
            2 * low,
            3 - 0.2 * math.log2(low) + 0.1 * index,
            2.0,
            0.01,
            64,
        )
        for index, variant in enumerate(DIFFS)
        for seed in seeds
        for low in (1, 2, 4, 8, 16, 32, 64)
        if variant != "softmax" or low < 64
    ]
    return Evaluated(
        tasks={task: TASKS[task] for task in tasks},
        values=pd.DataFrame(rows, columns=pd.Index(EVAL_COLUMNS)),
        answers=answers,
        positions=pd.DataFrame(read if positions else [], columns=pd.Index(POSITION_COLUMNS)),
        asked="Models were asked in fp32 on cpu, the trained context at a time",
    )


def row(results: SuiteResults, task: str, variant: str, measure: str = SCORE) -> Any:
    return next(
        one
        for one in results.task_summaries
        if (one.task, one.variant, one.measure) == (task, variant, measure)
    )


def test_a_measure_is_one_family_over_variants_and_tasks():
    results = suite(evals=evaluated())
    frame: Any = eval_frames.summary(results)
    for measure, size in ((SCORE, 12), (BITS, 8)):
        mine = frame[(frame["measure"] == measure) & (frame["variant"] != results.base)]
        assert list(mine["comparisons"]) == [size] * size
        assert list(mine["p_holm"]) == pytest.approx(list(holm(mine["p"].astype(float))), nan_ok=True)
    said = " ".join(eval_captions.caption(results))
    assert (
        "Holm's correction over 4 variants × 3 tasks for the scores and over 4 variants × 2 tasks for" in said
    )


def test_a_difference_is_paired_by_seed():
    found = evaluated(seeds=range(6))
    results, frame = suite(seeds=range(6), evals=found), found.values
    easy = frame[(frame["task"] == "easy") & (frame["measure"] == SCORE)].set_index(["variant", "seed"])[
        "value"
    ]
    expected = paired_difference(easy["softmax"].astype(float), easy[results.base].astype(float), 0.05)
    found = row(results, "easy", "softmax")
    assert found.comparison.difference.mean == pytest.approx(expected.mean)
    assert (found.comparison.difference.low, found.comparison.difference.high) == pytest.approx(
        (expected.low, expected.high)
    )
    assert found.mean == pytest.approx(easy["softmax"].mean())
    assert found.stderr == pytest.approx(easy["softmax"].astype(float).sem())
    assert found.comparison.verdict == "better"
    assert row(results, "easy", "no-gate").comparison.verdict == "worse"
    assert row(results, "easy", "softmax", BITS).comparison.verdict == "better"
    assert row(results, "easy", "no-gate", BITS).comparison.verdict == "worse"
    assert found.over_questions.low < expected.mean < found.over_questions.high


def test_lower_is_better_where_the_task_says_so():
    results = suite(evals=evaluated())
    found = row(results, "text", "softmax")
    assert found.comparison.difference.mean == pytest.approx(4)
    assert found.comparison.verdict == "undecided", "all differences are equal: no noise to test against"
    values = evaluated().values
    mine = (values["task"] == "text") & (values["variant"] == "softmax")
    values.loc[mine, "value"] = values.loc[mine, "value"].astype(float) + values.loc[mine, "seed"] * 0.1
    found = row(suite(evals=Evaluated(tasks=TASKS, values=values)), "text", "softmax")
    assert found.comparison.difference.mean == pytest.approx(4.1)
    assert found.comparison.verdict == "worse"


def test_scores_at_chance_are_marked_and_not_told_apart():
    results = suite(evals=evaluated())
    for variant in results.variants:
        assert row(results, "hard", variant).below_resolution
        assert not row(results, "easy", variant).below_resolution
        assert not row(results, "hard", variant, BITS).below_resolution
    found = [row(results, "hard", variant) for variant in results.variants[1:]]
    assert all(one.unresolved and one.comparison.verdict == "undecided" for one in found)
    said = " ".join(eval_captions.caption(results))
    assert "No variant is above guessing on hard, first 400." in said
    cells = [cell.text for line in eval_tables.scores(results).rows for cell in line]
    assert "0.250; below resolution at this size" in cells
    assert "undecided (below resolution)" in cells


def test_without_answers_the_recorded_error_tells_chance():
    values = evaluated().values
    results = suite(evals=Evaluated(tasks=TASKS, values=values))
    assert row(results, "hard", "softmax").below_resolution
    assert not row(results, "easy", "softmax").below_resolution
    assert row(results, "easy", "softmax").over_questions is None


def test_what_was_lost_is_counted_and_no_pair():
    results = suite(evals=evaluated(lost={("softmax", 1, "easy"), ("no-gate", 0, "hard")}))
    found = row(results, "easy", "softmax")
    assert (found.n, found.planned, found.comparison.difference.n) == (2, 3, 2)
    grid = eval_tables.scores(results)
    assert "2/3, 1 out of memory" in [line[2].text for line in grid.rows]
    assert len(grid.rows) == 3 * len(DIFFS)
    frame: Any = eval_frames.values(results)
    assert frame["outcome"].value_counts()["out_of_memory"] == 4
    assert "no memory left" in set(frame["reason"])


def test_one_seed_has_no_error_and_no_verdict():
    results = suite(seeds=(0,), evals=evaluated(seeds=(0,)))
    assert eval_tables.mean(row(results, "easy", "softmax")).endswith("(n = 1)")
    assert row(results, "easy", "softmax").comparison.verdict == "undecided"
    assert row(results, "easy", "softmax").over_questions.exists


@pytest.mark.parametrize("tasks", [("easy",), ("easy", "hard", "text")])
def test_every_format_has_the_evaluations(
    tasks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report, "save", lambda figure, format: b"")
    results = suite(evals=evaluated(tasks=tasks, positions=True))
    write_reports(results, tmp_path)
    text = (tmp_path / "table.md").read_text()
    first = text.splitlines()[0]
    assert ("easy, 5-shot ↑ (acc, chance 0.250)" in first) == (len(tasks) <= eval_tables.JOINED)
    tables = [block.splitlines() for block in text.split("\n\n") if block[:1] == "|"]
    assert len(tables) == 3
    assert all(len({line.count(" | ") for line in table}) == 1 for table in tables)
    source = (tmp_path / "table.tex").read_text()
    assert source.count(r"\begin{tabular}") == source.count(r"\end{tabular}") == 4
    assert source.isascii() or not set("↑±−×") & set(source)
    page = Page((tmp_path / "report.html").read_text())
    assert page.outside == page.open == []
    assert {"Evaluations", "Evaluations in full", "Loss by position"} <= set(page.texts["h2"])
    for grid in (*eval_tables.evaluations(results), eval_tables.full(results)):
        assert all([cell.text for cell in line] in page.rows for line in grid.rows)
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in report.terminal_evaluations(results):
        console.print(table)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert eval_tables.mean(row(results, "easy", "softmax")).split(" ± ")[0] in shown

    write_reports(suite(), tmp_path)
    assert not {*report.OF_TASKS, *report.OF_POSITIONS} & {path.name for path in tmp_path.iterdir()}
    assert "Evaluations" not in (tmp_path / "report.html").read_text()


def test_latex_columns_fit_the_line():
    """Widths in Computer Modern at 8 points; a page of two columns is 504 points wide."""
    font = FontProperties(family="cmr10", size=8)

    def points(text: str) -> float:
        shown = re.sub("[−±×↓↑–]", "+", text)  # not in the font, and as wide
        return text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0]

    results = suite(evals=evaluated(lost={("softmax", 1, "easy")}))
    layouts = re.findall(r"\\begin\{tabular\}\{(.*)\}", formats.latex(results))
    for layout, grid in zip(layouts[1:-1], eval_tables.evaluations(results), strict=True):
        total = 0.0
        for place, column in enumerate(re.findall(r"[lr]|p\{[^}]*\}", layout)):
            share = re.search(r"0\.\d+", column)
            texts = [grid.columns[place].head, *(row[place].text for row in grid.rows)]
            total += 6 + (504 * float(share[0]) if share else max(map(points, texts)))
        assert total < 504


def test_many_tasks_do_not_fill_the_terminal():
    values = pd.concat(
        [evaluated(tasks=("easy",)).values.assign(task=f"task {n}") for n in range(9)], ignore_index=True
    )
    results = suite(evals=Evaluated(tasks={f"task {n}": f"task {n}" for n in range(9)}, values=values))
    assert report.terminal_evaluations(results) == [
        "Evaluations on 9 tasks: eval_summary.csv, table.md, and the report."
    ]


def test_the_figure_of_positions_shows_what_its_table_says():
    results = suite(evals=evaluated(positions=True))
    figure, table = positions_plot.figure(results)
    mean = table[(table["kind"] == "mean") & (table["variant"] == "no-decay")]
    assert list(mean["n"]) == [3] * 7
    assert list(mean["value"]) == pytest.approx([(3.1 - 0.2 * n) / 2 for n in range(7)])
    assert (table[table["kind"] == "mean"]["variant"] == "softmax").sum() == 6
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} >= set(DIFFS)
    assert axes.get_xscale() == "log"
    svg = html.page(results, plots.curves(results)[0], positions=figure)
    assert "Loss by position" in svg


def test_eval_corrects_the_tasks_of_two_models_together(tmp_path: Path):
    """`tnbench eval` of two models on several tasks: Holm over the scores, and over the right answers."""
    store = Store(tmp_path)
    draw = np.random.default_rng(2)
    lines = []
    for task, shift in (("one", 0.2), ("two", 0.05), ("three", 0.0)):
        for model, more in (("a", 0.0), ("b", shift)):
            path = store.items_of(f"{task}{model}")
            path.parent.mkdir(exist_ok=True)
            asked = [
                Item(n, f"h{n}", {"acc": float(draw.random() < 0.5 + more)}, 2, 2 + draw.normal(), 2)
                for n in range(200)
            ]
            path.write_text("".join(f"{_json(item)}\n" for item in asked))
            metric = {"value": 0.5, "stderr": 0.03, "higher_is_better": True}
            about = {"task": task, "model": model, "fewshot": 0, "limit": None, "items": 200, "chance": 0.5}
            keys = {"key": f"{task}{model}", "request": f"{task}{model}", "identity": {"run": model}}
            numbers = {
                "metrics": {"acc": metric},
                "gold_bits_per_byte": 1.0,
                "gold_bits_per_byte_stderr": 0.1,
            }
            lines.append({**about, **keys, **numbers, "asked": {"task": task, "model": model}})
    frame: Any = outcomes.comparisons(store, lines)
    for bits in (False, True):
        mine = frame[(frame["metric"] == outcomes.ITEM_BITS) == bits]
        assert list(mine["comparisons"]) == [3, 3, 3]
        assert list(mine["p_holm"]) == pytest.approx(list(holm(mine["p"])))
        assert [verdict != "undecided" for verdict in mine["verdict"]] == [p <= 0.05 for p in mine["p_holm"]]
    scores = frame[frame["metric"] == "acc"]
    assert ((scores["p"] <= 0.05) & (scores["p_holm"] > 0.05)).any(), "the correction decides about one"
    assert "3 scores, 3 gold_bits_per_byte" in outcomes.family(frame)
    assert outcomes.family(frame[frame["task"] == "nothing"]) == ""


def _json(item: Item) -> str:
    import json

    return json.dumps(item.to_dict())
