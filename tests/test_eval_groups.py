"""A group of tasks in the tables of `tnbench eval`: one number for all of its questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnbench.evaluation import outcomes
from tnbench.evaluation.items import Item, summarise
from tnbench.evaluation.study import Store
from tnbench.profiling.lines import Line
from tnbench.statistics import compare_items

SIZES = {"easy": 40, "hard": 120}
CHOICES = {"easy": 2, "hard": 4}


def asked(store: Store, model: str, task: str, right: np.ndarray) -> Line:
    """The record and the items of a task that is part of the group `both`."""
    items = [
        Item(n, f"{task}{n}", {"acc": float(one)}, CHOICES[task], 2.0 + n % 3, 3)
        for n, one in enumerate(right)
    ]
    path = store.items_of(f"{model}-{task}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item.to_dict()) + "\n" for item in items))
    error = float(np.std(right, ddof=1) / np.sqrt(len(right)))
    return {
        "key": f"{model}-{task}", "request": model, "group": "both", "task": task, "model": model,
        "fewshot": 5, "limit": None, "asked": {"task": "both", "model": model}, "identity": {"run": model},
        "metrics": {"acc": {"value": float(right.mean()), "stderr": error, "higher_is_better": True}},
        **summarise(items).__dict__,
    }  # fmt: skip


@pytest.fixture
def answers() -> dict[str, dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    shares = {"one": {"easy": 0.5, "hard": 0.2}, "two": {"easy": 0.6, "hard": 0.5}}
    return {
        model: {task: draw.random(SIZES[task]) < share for task, share in of.items()}
        for model, of in shares.items()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def lines(store: Store, answers: dict[str, dict[str, np.ndarray]]) -> list[Line]:
    return [asked(store, model, task, right) for model, of in answers.items() for task, right in of.items()]


def test_all_questions_count_alike(lines: list[Line], answers: dict[str, dict[str, np.ndarray]]):
    frame: Any = outcomes.rows(lines)
    rows = frame[frame["task"] == "both"].set_index("model")
    assert list(rows["members"]) == [2, 2]
    assert list(frame[frame["task"] != "both"]["members"].isna()) == [True] * 8
    for model, of in answers.items():
        row, every = rows.loc[model], np.concatenate(list(of.values()))
        assert row["items"] == len(every) == 160
        assert row["value"] == pytest.approx(every.mean())
        strata = [(len(right) / 160) ** 2 * right.var(ddof=1) / len(right) for right in of.values()]
        assert row["stderr"] == pytest.approx(np.sqrt(sum(strata)))
        assert row["chance"] == pytest.approx((40 / 2 + 120 / 4) / 160)
    assert list(rows["at_chance"]) == [True, False]


def test_models_are_compared_on_all_questions(
    store: Store, lines: list[Line], answers: dict[str, dict[str, np.ndarray]]
):
    frame: Any = outcomes.comparisons(store, lines)
    assert list(frame["task"].unique()) == ["easy", "hard", "both"]
    assert set(frame["comparisons"]) == {3}
    row = frame[(frame["task"] == "both") & (frame["metric"] == "acc")].iloc[0]
    mine, theirs = (np.concatenate(list(answers[model].values())).astype(float) for model in ("two", "one"))
    expected = compare_items(mine, theirs, alpha=0.05)
    assert (row["difference"], row["p"], row["items"]) == (pytest.approx(expected.mean), expected.p, 160)
    (text,) = [line for line in outcomes.cells(outcomes.rows(lines), frame) if line[-1].startswith("+0.2")
               and line[0].startswith("both")]  # fmt: skip
    assert text[0] == "both (2 tasks), 5-shot"
    assert text[-1].endswith("better")


def test_a_group_whose_items_are_lost_is_compared_with_nothing(store: Store, lines: list[Line]):
    store.items_of("two-hard").unlink()
    problems: list[str] = []
    frame: Any = outcomes.comparisons(store, lines, problems)
    assert list(frame["task"].unique()) == ["easy"]
    (problem,) = problems
    assert "two-hard" in problem


def test_a_group_has_no_score_that_one_of_its_tasks_lacks(lines: list[Line]):
    lines[1]["metrics"] = {"f1": lines[1]["metrics"]["acc"]}
    frame: Any = outcomes.rows(lines)
    assert list(frame[frame["task"] == "both"]["model"]) == ["two"]
