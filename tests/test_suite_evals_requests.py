"""Suites that evaluate their runs: what they ask for, what is refused before any work, and what is asked
of models that were trained for it alone."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from evaluated_suite import outcomes, records, suite, weights, working_in, write_suite
from small_suite import SUITE, ablate, start, wait_for

from tnbench.ablation import eval_results, workers
from tnbench.ablation.eval_plan import POSITIONS, Subject
from tnbench.errors import RequestError
from tnbench.evaluation import study
from tnbench.evaluation.items import Item, summarise

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's index is that of the user's own tasks: reading the whole of it takes seconds."""
    import lm_eval.tasks

    plain = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path, **_: plain(None, include_path, include_defaults=False),
    )


# what is refused before any work


@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ({}, "expected tasks, by_position or both"),
        ({"tasks": []}, "expected tasks, by_position or both"),
        ({"tasks": ["cloze", 3]}, "expected names"),
        ({"tasks": "cloze,,piqa"}, "expected names"),
        ({"tasks": "cloze, cloze"}, "cloze is asked for twice"),
        ({"task": "cloze"}, "unknown key evals.task, did you mean tasks?"),
        ({"tasks": "cloze", "limit": 0}, "evals.limit = 0"),
        ({"tasks": "cloze", "num_fewshot": -1}, "evals.num_fewshot = -1"),
        ({"tasks": "cloze", "precision": "fp8"}, "evals.precision = 'fp8': known: fp32, bf16, fp16"),
        ({"by_position": "16y"}, "evals.by_position 16y: write 16x"),
        ({"by_position": "4x", "limit": 3}, "limit goes with tasks"),
        ({"tasks": "mine", "include_path": "nowhere"}, "evals.include_path"),
        ({"tasks": "cloze", "task_data": "tasks"}, "evals.task_data tasks holds no saved data set"),
    ],
)
def test_wrong_keys_are_told_in_a_line(evals: dict[str, Any], said: str, folder: Path) -> None:
    write_suite(folder, evals)
    with pytest.raises(RequestError) as error:
        ablate()
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "small.yaml, line" in str(error.value)
    assert not Path("results").exists()


@pytest.mark.parametrize("mode", ["run", "plan"])
@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ({"tasks": "clozee", "include_path": "tasks"}, "evals.tasks clozee: did you mean cloze?"),
        ({"by_position": "1000x"}, "less than one window of 32001"),
    ],
)
@pytest.mark.usefixtures("own_tasks")
def test_what_cannot_be_asked_is_told_before_training(
    evals: dict[str, Any], said: str, mode: str, folder: Path
) -> None:
    write_suite(folder, evals)
    with pytest.raises(RequestError) as error:
        ablate(mode=mode)
    assert said in str(error.value)
    assert str(error.value).startswith("small.yaml")
    assert not Path("results").exists()


def test_data_out_of_reach_are_told_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = (folder / "tasks" / "mine.yaml").read_text()
    far = text.replace("dataset_path: json", "dataset_path: nobody/nothing").replace(
        "dataset_kwargs", "metadata"
    )
    (folder / "tasks" / "mine.yaml").write_text(far)
    with pytest.raises(RequestError, match=r"task mine: its data cannot be had.*evals\.task_data"):
        ablate()
    assert not Path("results").exists()


# what is asked


def test_a_window_ends_where_learned_positions_do() -> None:
    plan = suite().evals
    assert plan
    assert [plan.length(Subject("run", 32, reach)) for reach in (None, 100, 32)] == [64, 64, 32]


def test_questions_of_a_group_count_alike(folder: Path) -> None:
    """Two members of 4 and 12 questions: the mean over all 16, and all bits over all bytes."""
    plan = suite().evals
    assert plan
    plan.store.items_of("a").parent.mkdir(parents=True)
    lines, items = [], []
    for key, right, size in (("a", [1, 1, 1, 0], 3), ("b", [1] * 3 + [0] * 9, 5)):
        asked = [
            Item(n, f"{key}{n}", {"acc": float(one), "acc_norm": 0.0}, 4, 2.0 + n, size)
            for n, one in enumerate(right)
        ]
        plan.store.items_of(key).write_text("".join(json.dumps(item.to_dict()) + "\n" for item in asked))
        acc = {"value": sum(right) / len(right), "stderr": 0.1, "higher_is_better": True}
        other = {"value": 0.0, "stderr": 0.0, "higher_is_better": True}
        about = {"key": key, "task": key, "items": len(right), "chance": 0.25, "gold_bits_per_byte": 1.0}
        lines.append({**about, "metrics": {"acc_norm": other, "acc": acc}})
        items += asked
    assert eval_results._metric("mmlu", [lines]) == "acc"
    assert eval_results._metric("hellaswag", [lines]) == "acc_norm"
    found = eval_results._items(plan, lines)
    score = eval_results._value(lines, found, "acc")
    assert score["value"] == score["answers"].mean() == 6 / 16
    assert (score["questions"], score["chance"]) == (16, 0.25)
    assert score["stderr"] == pytest.approx((0.4**2 + 1.2**2) ** 0.5 / 16)
    bits = eval_results._bits(lines, found)
    expected = sum(item.gold_nats or 0 for item in items) / sum(item.gold_bytes or 0 for item in items)
    assert bits["value"] == pytest.approx(expected / math.log(2))
    assert bits["stderr"] == pytest.approx(summarise(items).gold_bits_per_byte_stderr)


@pytest.mark.slow
def test_tuning_runs_are_not_asked(folder: Path) -> None:
    evals = {"tasks": "cloze", "limit": 2}
    text = SUITE.format(steps=2).replace("seeds: 2", "seeds: {report: [0], tune: [100]}")
    tune = {"tune": {"grid": {"training.learning_rate": [0.001, 0.002]}, "widen": 0}}
    (folder / "small.yaml").write_text(text + yaml.safe_dump({**tune, "evals": evals}))
    assert ablate() == 0
    assert len(records(Path("results"))) == 2
    reported = {run.folder.id for run in suite().runs() if run.phase == "report"}
    assert {line["identity"]["run"] for line in records(Path("results"))} == reported


def test_weights_that_are_not_kept_last_until_the_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = workers._do

    def do(task: Any, *rest: Any) -> Any:
        seen.append((type(task).__name__, len(weights())))
        return plain(task, *rest)

    monkeypatch.setattr(workers, "_do", do)
    write_suite(folder, {"tasks": "cloze", "limit": 2})
    path = folder / "small.yaml"
    path.write_text(path.read_text().replace("  no-gate: {model.gate: false}\n", ""))
    assert ablate(keep="none") == 0
    assert seen == [("Task", 0), ("Evaluation", 1)] * 2
    assert not weights()
    assert outcomes() == {"evaluated": 2}


@pytest.mark.slow
def test_learned_positions_are_read_as_far_as_they_reach(folder: Path) -> None:
    text = SUITE.format(steps=2) + "  learned: {model.position: ape}\n"
    head, tail = text.split("seeds: 2")
    (folder / "small.yaml").write_text(head + tail + "seeds: 1\nevals: {by_position: 4x}\n")
    assert ablate() == 0
    table: Any = pd.read_csv("results/small/positions.csv")
    ends = table.groupby("variant")["end"].max().to_dict()
    assert ends == {"gate": 129, "no-gate": 129, "learned": 33}
    assert [line["kind"] for line in records(Path("results"), "positions")] == ["positions"] * 3
    assert POSITIONS in suite().evals.names  # type: ignore[union-attr]


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on(folder: Path) -> None:
    """kill -9 of the whole group in the middle: answers that were given are not given again."""
    write_suite(folder, {"tasks": "cloze"})
    process = start()

    def answers() -> int:
        count = 0
        for path in Path("results/evals/unfinished").glob("*.db"):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as kept:
                try:
                    count = kept.execute("select count(*) from unnamed").fetchone()[0]
                except sqlite3.Error:
                    continue
        return count

    wait_for(lambda: answers() > 300, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    had = answers()
    assert 300 < had < 2000
    assert not records(Path("results"))
    asked = []
    plain = study.ask

    def ask(model: Any, *rest: Any) -> Any:
        scored = model._loglikelihood_tokens

        def counted(requests: Any, **options: Any) -> Any:
            asked.append(len(requests))
            return scored(requests, **options)

        model._loglikelihood_tokens = counted
        return plain(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "ask", ask)
        assert ablate() == 0
    assert asked[0] <= 2000 - had
    assert asked[1:] == [2000] * 3
    assert outcomes() == {"evaluated": 4}
