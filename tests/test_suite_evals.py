"""Suites that evaluate their runs: what is asked, recorded, refused, taken up again, and reported."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from small_suite import SUITE, LocalWorker, ablate, metrics, prepare_folder, start, stop_all, wait_for

from tnbench import cli, report
from tnbench.ablation import eval_results, eval_worker, workers
from tnbench.ablation.eval_plan import POSITIONS, Subject
from tnbench.ablation.eval_queue import FOR_EVALUATION
from tnbench.ablation.execute import Ledger, execute
from tnbench.ablation.suite import Suite, load_suite
from tnbench.errors import RequestError
from tnbench.evaluation import study
from tnbench.evaluation.items import Item, summarise
from tnbench.evaluation.study import Store
from tnbench.report import html
from tnbench.statistics import compare, compare_items

pytestmark = pytest.mark.usefixtures("settled_process")

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
EVALS: dict[str, Any] = {
    "tasks": ["cloze", "mine"],
    "limit": 12,
    "include_path": "tasks",
    "by_position": "2x",
}
FILES = {"evals.csv", "eval_summary.csv", "positions.csv", "positions.png", "positions.pdf"}


def write_suite(folder: Path, evals: dict[str, Any] | None) -> None:
    """small.yaml with these evaluations, whatever they are."""
    text = SUITE.format(steps=8)
    (folder / "small.yaml").write_text(text + (yaml.safe_dump({"evals": evals}) if evals is not None else ""))


def prepare(folder: Path) -> None:
    """A corpus, a suite that evaluates, and a task of its own."""
    prepare_folder(folder)
    write_suite(folder, EVALS)
    place = folder / "tasks"
    place.mkdir()
    documents = [
        {"q": f"{n} is the square of", "choices": [f" {n * n}", f" {n}", " it"], "label": n % 3}
        for n in range(9)
    ]
    (place / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (place / "mine.yaml").write_text(TASK.format(data=place / "data.jsonl"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
    monkeypatch.setattr(report, "save", lambda figure, format: b"")  # drawing takes longer than all else
    monkeypatch.setattr(html, "inline_svg", lambda figure: "<svg></svg>")
    prepare(tmp_path)
    yield tmp_path
    stop_all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the suite, run once; tests work on copies."""
    there = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        plain = report.save
        patch.setattr(report, "save", lambda figure, form: plain(figure, form) if form == "png" else b"")
        patch.setattr(html, "inline_svg", lambda figure: "<svg></svg>")
        prepare(there)
        assert ablate() == 0
    return there / "results"


@pytest.fixture
def trained(finished: Path) -> Path:
    """A copy of the results without the evaluations."""
    shutil.copytree(finished, "results")
    shutil.rmtree("results/evals")
    return Path("results")


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


def suite(seeds: int | None = None) -> Suite:
    settings = {"training.device": "cpu"}
    return load_suite("small.yaml", Path("results"), settings=settings, seeds=seeds, quiet=True)


def records(results: Path, kind: str = "task") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    Store(results / study.FOLDER).each(lambda line: found.append(line) if line["kind"] == kind else None)
    return found


def weights() -> list[Path]:
    return sorted(Path("results").glob("small/runs/*/checkpoint/model.safetensors"))


def outcomes() -> dict[str, int]:
    frame: Any = pd.read_csv("results/small/evals.csv")
    return (
        frame[(frame["measure"] == "score") & (frame["task"] == "cloze")]["outcome"].value_counts().to_dict()
    )


# what is asked and recorded


def test_runs_are_evaluated_once_and_joined_into_the_reports(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, "results")
    there = Path("results/small")
    assert {path.name for path in there.iterdir()} >= FILES
    assert (there / "positions.png").read_bytes()[:4] == b"\x89PNG"
    lines = records(Path("results"))
    runs = sorted(path.name for path in (there / "runs").iterdir())
    assert sorted((line["identity"]["run"], line["task"]) for line in lines) == [
        (run, task) for run in runs for task in ("cloze", "mine")
    ]
    assert [line["items"] for line in lines if line["task"] == "cloze"] == [12] * 4
    assert len(records(Path("results"), "positions")) == 4
    assert not list(Path("results/evals").glob("unfinished/*"))
    said = {(line["identity"]["run"], line["task"]): line for line in lines}
    table: Any = pd.read_csv(there / "runs.csv")
    for row in table.to_dict("records"):
        for task in ("cloze", "mine"):
            line = said[row["run_id"], task]
            assert row[f"{task} acc"] == line["metrics"]["acc"]["value"]
            assert row[f"{task} gold_bits_per_byte"] == pytest.approx(line["gold_bits_per_byte"], rel=1e-12)
    assert (Path("results/evals") / "table.md").exists()

    before = {path.name: path.read_bytes() for path in there.glob("*.csv")}
    monkeypatch.setattr(eval_worker, "evaluate", lambda *_: pytest.fail("it is recorded"))
    assert ablate() == 0
    assert {path.name: path.read_bytes() for path in there.glob("*.csv")} == before


def test_tnbench_eval_gives_the_same_numbers_and_takes_them_over(
    finished: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [run.folder.id for run in suite(seeds=1).runs()]
    command += ["--tasks", "cloze,mine", "--limit", "12", "--include-path", "tasks", "--device", "cpu"]
    for results in ("results", str(finished)):
        with pytest.raises(SystemExit) as left:
            cli.main(["eval", *command, "--results", results])
        assert left.value.code == 0
        assert ("cloze: gate" in capsys.readouterr().out) == (results == "results")
    theirs = {line["key"]: line for line in records(finished)}
    ours = {line["key"]: line for line in records(trained)}
    assert len(ours) == 4
    for key, line in ours.items():
        for name in ("identity", "asked", "metrics", "items", "chance"):
            assert theirs[key][name] == line[name]
        assert theirs[key]["gold_bits_per_byte"] == pytest.approx(line["gold_bits_per_byte"], rel=1e-6)

    assert ablate(seeds=1) == 0  # by position alone: the tasks are recorded
    assert len(records(trained)) == len(ours)
    assert len(records(trained, "positions")) == 2


def test_the_summary_is_the_method_of_the_suite(finished: Path) -> None:
    """Paired by seed, Holm over variants and tasks; as items in clusters of one seed each."""
    said = {(line["identity"]["run"], line["task"]): line for line in records(finished)}
    runs: Any = pd.read_csv(finished / "small" / "runs.csv").set_index(["variant", "seed"])["run_id"]
    summary: Any = pd.read_csv(finished / "small" / "eval_summary.csv")
    store = Store(finished / study.FOLDER)
    pairs, clustered = [], []
    for task in ("cloze", "mine"):
        lines = {v: [said[runs[v, seed], task] for seed in (0, 1)] for v in ("gate", "no-gate")}
        pairs.append(tuple([line["gold_bits_per_byte"] for line in lines[v]] for v in ("no-gate", "gate")))
        items = {v: [study.read_items(store, line) for line in lines[v]] for v in lines}
        bits = {
            v: [
                (item.gold_nats or 0)
                / 0.6931471805599453
                / sum(one.gold_bytes or 0 for one in seed)
                * len(seed)
                for seed in items[v]
                for item in seed
            ]
            for v in items
        }
        seeds = [n for n, seed in enumerate(items["gate"]) for _ in seed]
        clustered.append(compare_items(bits["no-gate"], bits["gate"], alpha=0.05, clusters=seeds))
    for task, found, items in zip(("cloze", "mine"), compare(pairs, alpha=0.05), clustered, strict=True):
        row = summary[(summary["task"] == task) & (summary["measure"] == "bits")].set_index("variant")
        mine = row.loc["no-gate"]
        assert mine["difference"] == pytest.approx(found.difference.mean)
        assert (mine["low"], mine["high"]) == pytest.approx((found.difference.low, found.difference.high))
        assert mine["p_holm"] == pytest.approx(found.p_holm)
        assert mine["comparisons"] == 2
        assert (mine["low"], mine["high"], mine["p"]) == pytest.approx(
            (items.low, items.high, items.p), rel=1e-6
        )
        values = row.loc["gate"]
        assert values["stderr"] == pytest.approx(pd.Series(pairs[("cloze", "mine").index(task)][1]).sem())


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


def test_training_goes_on_as_if_nothing_had_been_asked(finished: Path, folder: Path) -> None:
    """The worker that has evaluated a run trains the next one, bit for bit as without."""
    write_suite(folder, None)
    assert ablate(results="plain") == 0
    assert metrics("plain") == metrics(str(finished))


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
        ({"tasks": "cloze", "precision": "fp16"}, "evals.precision = 'fp16': known: fp32, bf16"),
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


# what fails


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [(MemoryError("full"), "out_of_memory", 0), (RuntimeError("a wrong turn"), "failed", 1)],
)
def test_an_evaluation_that_fails_is_a_mark(
    error: Exception, outcome: str, status: int, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, unlucky = study.ask, []

    def ask(model: Any, loaded: Any, task: Any, *rest: Any) -> Any:
        if task.name == "cloze" and not unlucky:
            unlucky.append(model)
            raise error
        return plain(model, loaded, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(study, "ask", ask)
        assert ablate(seeds=1) == status
    assert outcomes() == {"evaluated": 1, outcome: 1}
    frame: Any = pd.read_csv("results/small/evals.csv")
    (reason,) = frame[frame["outcome"] == outcome]["reason"].unique()
    assert ("a wrong turn" if status else "more memory than there is") in reason
    assert "--" not in reason
    assert len(records(trained)) == 3, "the other task of the run was asked"
    assert set(pd.read_csv("results/small/runs.csv")["outcome"]) == {"finished"}
    assert reason in Path("results/small/report.html").read_text()

    assert ablate(seeds=1) == 0
    assert outcomes() == {"evaluated": 2}
    assert len(records(trained)) == 4


def test_a_worker_that_dies_costs_one_evaluation(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doomed(LocalWorker):
        """Dies over the first task that it is asked."""

        died = False

        def start(self, task: Any) -> None:
            if Doomed.died:
                return super().start(task)
            Doomed.died = True
            self.task, self.silent = task, True
            self.process = SimpleNamespace(join=lambda: None, exitcode=-signal.SIGKILL)  # type: ignore[assignment]
            return None

        def is_gone(self) -> bool:
            return self.silent

    monkeypatch.setattr("tnbench.ablation.execute.Worker", Doomed)
    ledger = execute(suite(seeds=1), workers=1)
    failed = {run: lost for run, lost in ledger.evaluated.items() if lost}
    assert list(failed.values()) == [
        {"cloze": ("failed", "its process was killed by SIGKILL, perhaps for want of memory")}
    ]
    assert len(records(trained)) == 3
    assert [line["task"] for line in records(trained, "failed")] == ["cloze"]


# weights


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


def test_weights_stay_where_the_evaluation_failed_and_go_when_nothing_is_asked(
    trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in trained.glob("small/runs/*/manifest.json"):  # as --keep none has it
        path.write_text(json.dumps({**json.loads(path.read_text()), "weights": FOR_EVALUATION}))
    write_suite(folder, {"tasks": "cloze", "limit": 2})
    with monkeypatch.context() as patch:
        patch.setattr(study, "ask", lambda *_: (_ for _ in ()).throw(RuntimeError("a wrong turn")))
        assert ablate(keep="none", seeds=1) == 1
    assert len(weights()) == 4
    write_suite(folder, None)
    assert ablate(keep="weights", seeds=1) == 0
    assert len(weights()) == 4
    assert ablate(keep="none", seeds=1) == 0
    assert len(weights()) == 2, "those of the other seed, which is not asked for now"
    assert not FILES & {path.name for path in Path("results/small").iterdir()}


def test_weights_that_were_kept_stay(trained: Path, folder: Path) -> None:
    write_suite(folder, {"tasks": "cloze", "limit": 2})
    assert ablate(keep="none", seeds=1) == 0
    assert len(weights()) == 4


def test_runs_without_weights_cannot_be_asked(trained: Path, folder: Path) -> None:
    for path in weights():
        path.unlink()
    write_suite(folder, {"tasks": "cloze", "limit": 2})
    assert ablate(seeds=1) == 1
    assert outcomes() == {"no_weights": 2}
    assert "its weights were not kept" in Path("results/small/report.html").read_text()


# others, and ends


def test_an_evaluation_that_another_process_makes_is_left_to_it(trained: Path) -> None:
    found = suite(seeds=1)
    assert found.evals
    run = found.runs()[0]
    key = found.evals.requests(run.subject)["cloze"]
    held = found.evals.store.alone(key)
    held.__enter__()
    seen = []

    def watch(ledger: Ledger) -> None:
        others = len(ledger.evaluated) == 1
        if others and not seen:
            seen.append(dict(ledger.evaluated))
            held.__exit__(None, None, None)

    ledger = execute(found, workers=1, watch=watch)
    assert seen
    assert run.folder.id not in seen[0]
    assert ledger.evaluated == {one.folder.id: {} for one in found.runs()}
    assert len(records(trained)) == 4


def test_lost_answers_are_asked_again(finished: Path) -> None:
    shutil.copytree(finished, "results")
    path = next(iter(sorted(Path("results/evals/items").iterdir())))
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert ablate() == 0
    assert len(records(Path("results"))) == 9
    again = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    assert again == [pytest.approx(json.loads(line)["answer"], abs=1e-5) for line in text.splitlines()]


def test_what_the_suite_does_not_list_is_told(finished: Path, folder: Path) -> None:
    shutil.copytree(finished, "results")
    write_suite(folder, {"tasks": "cloze", "limit": 12})
    assert ablate(mode="report") == 0
    page = Path("results/small/report.html").read_text()
    assert "also holds evaluations of these runs that the suite does not ask for: mine (4)" in page
    assert not {"positions.csv", "positions.png"} & {path.name for path in Path("results/small").iterdir()}


def test_the_status_counts_evaluations(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for mode, said in (
        ("--status", "0/3"),
        ("--plan", "4 of 4 runs still to be evaluated, 84 questions in all: about"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(["ablate", "small.yaml", mode, "--device", "cpu"])
        assert left.value.code == 0
        assert said in capsys.readouterr().out


def test_a_window_ends_where_learned_positions_do() -> None:
    plan = suite().evals
    assert plan
    assert [plan.length(Subject("run", 32, reach)) for reach in (None, 100, 32)] == [64, 64, 32]


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
def test_an_evaluation_that_was_killed_goes_on(finished: Path, folder: Path) -> None:
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
