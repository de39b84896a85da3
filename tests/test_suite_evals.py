"""Suites that evaluate their runs: what is recorded, joined, reported, taken up again and kept."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from evaluated_suite import outcomes, records, suite, weights, working_in, write_suite
from small_suite import LocalWorker, ablate, metrics

from tnbench import cli
from tnbench.ablation import eval_worker
from tnbench.ablation.eval_queue import FOR_EVALUATION
from tnbench.ablation.execute import Ledger, execute
from tnbench.evaluation import study
from tnbench.evaluation.study import Store
from tnbench.statistics import compare, compare_items

pytestmark = pytest.mark.usefixtures("settled_process")

FILES = {"evals.csv", "eval_summary.csv", "positions.csv", "positions.png", "positions.pdf"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the suite, run once; tests work on copies."""
    there = tmp_path_factory.mktemp("finished")
    with working_in(there, drawn="png"):
        assert ablate() == 0
    return there / "results"


@pytest.fixture
def trained(finished: Path) -> Path:
    """A copy of the results without the evaluations."""
    shutil.copytree(finished, "results")
    shutil.rmtree("results/evals")
    return Path("results")


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


def test_training_goes_on_as_if_nothing_had_been_asked(finished: Path, folder: Path) -> None:
    """The worker that has evaluated a run trains the next one, bit for bit as without."""
    write_suite(folder, None)
    assert ablate(results="plain") == 0
    assert metrics("plain") == metrics(str(finished))


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
