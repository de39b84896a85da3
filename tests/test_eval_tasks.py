"""Task files of a user's own: what is wrong with them is told before a model is loaded, and their records
hold as long as they do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from texts import write_task

from tnbench import cli
from tnbench.evaluation import evaluating, items, study, task_files, tasks
from tnbench.evaluation.study import Store
from tnbench.evaluation.task_loading import load
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")

DOCUMENTS = [
    {"q": "one", "choices": ["a", "b"], "label": 0},
    {"q": "two", "choices": ["a", "c"], "label": 1},
    {"q": "three", "choices": ["d", "c"], "label": 1},
]

Evaluate = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task file and its data."""
    place = tmp_path / "tasks"
    write_task(place, DOCUMENTS)
    return place


@pytest.fixture
def results(whole: RunFolder, tmp_path: Path) -> Path:
    shutil.copytree(whole.path, tmp_path / "results" / "tiny" / "runs" / whole.id)
    return tmp_path / "results"


@pytest.fixture
def evaluate(results: Path, whole: RunFolder, folder: Path) -> Evaluate:
    def run(*arguments: object, tasks: str = "mine") -> int:
        common = [whole.id, "--results", results, "--include-path", folder, "--tasks", tasks]
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", *map(str, [*common, *arguments]), "--device", "cpu"])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{metric: acc,", "{metric: accc,", "metric accc, did you mean acc"),
        ("aggregation: mean", "aggregation: meen", "no known aggregation (known: bits_per_byte"),
        ("{{q}}", "{{q", "cannot be read: TemplateSyntaxError"),
        ("{{q}}", "{{nope}}", "'nope' is undefined"),
        ("test_split: test", "test_split: tset", "there is no tset in its data"),
        ("doc_to_target: label", "doc_to_target: lable", "is none of the choices: 'lable'"),
        ("doc_to_choice: choices", "", "its file lacks one of doc_to_text, doc_to_target and doc_to_choice"),
        ("dataset_path: json", "", "its file names no data"),
        ("data.jsonl", "gone.jsonl", "its data cannot be had: FileNotFoundError"),
        ("output_type: multiple_choice", "output_type: choice", "invalid output_type 'choice'"),
        ("task: mine", "task: mine\nfrobnicate: 1", "unexpected keyword argument 'frobnicate'"),
        ("task: mine", "task: mine\nunsafe_code: true", "runs code that a model has written"),
        (
            "test_split: test",
            "test_split: test\nnum_fewshot: 9",
            "9 examples before a question are asked for",
        ),
    ],
)
def test_a_broken_file_is_told_before_a_model_is_loaded(
    old: str,
    new: str,
    said: str,
    evaluate: Evaluate,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(study, "evaluate", lambda *a, **k: pytest.fail("nothing is to be asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    change(folder / "mine.yaml", old, new)
    assert evaluate() == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_changed_file_is_asked_again(evaluate: Evaluate, results: Path, folder: Path):
    """Its text, its data, a function that it calls: each is part of what a record answers."""
    (folder / "own.py").write_text("def text(doc):\n    return doc['q']\n")
    change(folder / "mine.yaml", '"{{q}}"', "!function own.text")
    changes = [
        lambda: change(folder / "mine.yaml", "doc_to_target: label", 'doc_to_target: "{{label}}"'),
        lambda: change(folder / "data.jsonl", "three", "four"),
        lambda: change(folder / "own.py", "doc['q']", "doc['q'] + '?'"),
    ]
    assert evaluate() == 0
    store = Store(results / study.FOLDER)
    seen = []
    for changed in changes:
        (record,) = store.read()[0]
        seen.append(record["request"])
        changed()
        assert evaluate() == 0
    (record,) = store.read()[0]
    assert len({*seen, record["request"]}) == len(changes) + 1


def test_a_record_holds_for_the_same_files_elsewhere(folder: Path, tmp_path: Path):
    def content(place: Path) -> str | None:
        return tasks.wanted("mine", None, include=place, data=None).tasks[0].content

    (folder / "own.py").write_text("def text(doc):\n    return doc['q']\n")
    change(folder / "mine.yaml", '"{{q}}"', "!function own.text")
    before = content(folder)
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy" / "mine.yaml", str(folder), str(tmp_path / "copy"))
    assert content(tmp_path / "copy") == before
    (folder / "other.yaml").write_text("task: other\n")
    assert content(folder) == before


def test_names_are_clear(evaluate: Evaluate, folder: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(folder / "mine.yaml", folder / "again.yaml")
    assert evaluate() == 2
    assert "task mine is defined in" in capsys.readouterr().err
    change(folder / "again.yaml", "task: mine", "task: cloze")
    assert evaluate(tasks="cloze") == 2
    assert "again.yaml defines cloze, a name of ours" in capsys.readouterr().err


@pytest.mark.slow  # lm-eval's own index takes seconds
def test_members_are_known(evaluate: Evaluate, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "group.yaml").write_text("group: both\ntask: [mine, minne]\n")
    (folder / "broken.yaml").write_text("task: [\n")
    assert evaluate(tasks="both") == 2
    err = capsys.readouterr().err
    assert "task both: its member minne: did you mean mine?" in err
    assert "broken.yaml cannot be read" in err


@pytest.mark.slow  # lm-eval's own index takes seconds
def test_a_group_of_ones_own_may_hold_tasks_of_lm_eval(folder: Path):
    (folder / "group.yaml").write_text("group: both\ntask: [mine, arc_easy]\n")
    found = tasks.wanted("both", None, include=folder, data=None)
    assert set(task_files.closure("both", found.manager.task_index)) == {"both", "mine", "arc_easy"}
    assert None not in task_files.closure("both", found.manager.task_index).values()


def test_a_question_is_never_among_its_own_examples(folder: Path):
    """lm-eval draws them from the questions themselves where a task has no other split."""
    wanted = tasks.wanted("mine,cloze", 2, include=folder, data=None)
    for asked in wanted.tasks:
        (task,) = load(asked, wanted.manager)
        task.set_fewshot_seed(1)
        task.build_all_requests(limit=60)
        for one in task.instances:
            question = str(one.doc.get("q", one.doc.get("context")))
            assert one.args[0].count(question) == 1


def test_examples_that_a_task_refuses(evaluate: Evaluate, folder: Path, capsys: pytest.CaptureFixture[str]):
    change(folder / "mine.yaml", "test_split: test", "test_split: test\nnum_fewshot: 0")
    assert evaluate("--num-fewshot", 2) == 2
    assert "--num-fewshot 2: task mine takes no examples" in capsys.readouterr().err


def test_questions_without_a_right_answer_are_counted(
    evaluate: Evaluate, results: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    change(folder / "data.jsonl", '["a", "c"], "label": 1', '["a", "c"], "label": 7')
    assert evaluate() == 0
    assert "1 of 3 questions have no right answer among their choices" in capsys.readouterr().out
    (record,) = Store(results / study.FOLDER).read()[0]
    assert record["without_answer"] == 1
    assert record["gold_bits_per_byte"] is None


class Choices:
    """lm-eval's task, as far as items ask it."""

    multiple_input = 0

    def __init__(self, target: Any, *, text: Any = "") -> None:
        self.target, self.text = target, text
        self.multiple_input = isinstance(text, int)

    def doc_to_text(self, doc: Any) -> Any:
        return self.text

    def doc_to_target(self, doc: Any) -> Any:
        return self.target

    def doc_to_choice(self, doc: Any) -> list[str]:
        return ["2", "1", "0"]


@pytest.mark.parametrize(
    ("task", "gold", "choices"),
    [
        (Choices(1), -11.0, 3),
        (Choices("0"), -12.0, 3),  # a choice that is a digit is a text, no index
        (Choices("3"), None, 3),
        (Choices(3), None, 3),
        (Choices([0, 1]), None, None),
        (Choices("same for all", text=2), -12.0, 3),
    ],
)
def test_the_right_answer_is_lm_evals(task: Choices, gold: float | None, choices: int | None):
    texts = ["2", "1", "0", "2", "1", "0"]  # each once more without its context, for mutual information
    sample = {
        "doc": {}, "doc_id": 0, "doc_hash": "x", "target": task.target, "filter": "none", "metrics": ["acc"],
        "arguments": [("q", f" {text}") for text in texts], "acc": 1.0,
        "resps": [[(-10.0 - n, False)] for n in range(6)],
    }  # fmt: skip
    (item,) = items.of_samples([sample], "multiple_choice", task)
    assert item.choices == choices
    assert item.gold_nats == (None if gold is None else -gold)
    assert len(item.answer) == 3


def test_several_filters_are_one_item():
    samples = [
        {
            "doc": {}, "doc_id": n, "doc_hash": f"h{n}", "target": "x", "filter": name,
            "metrics": ["exact_match"], "arguments": [("q", {})], "resps": [["x y"]], "exact_match": score,
        }
        for name, score in (("strict", 0.0), ("flexible", 1.0))
        for n in range(2)
    ]  # fmt: skip
    found = items.of_samples(samples, "generate_until")
    assert [item.id for item in found] == [0, 1]
    assert found[0].scores == {"exact_match (strict)": 0.0, "exact_match (flexible)": 1.0}


def test_the_model_is_opened_once(
    evaluate: Evaluate, folder: Path, monkeypatch: pytest.MonkeyPatch, results: Path
):
    """Two tasks, read once each."""
    shutil.copy(folder / "mine.yaml", folder / "again.yaml")
    change(folder / "again.yaml", "task: mine", "task: again")
    read: list[str] = []
    monkeypatch.setattr(
        evaluating, "load", lambda task, manager: read.append(task.name) or load(task, manager)
    )
    assert evaluate(tasks="mine,again") == 0
    assert read == ["mine", "again"]
    assert len(Store(results / study.FOLDER).read()[0]) == 2


def test_questions_that_are_cut_are_counted(
    evaluate: Evaluate, results: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    """The tiny run reads 32 bytes at a time."""
    change(folder / "data.jsonl", '"one"', json.dumps("long " * 7))
    assert evaluate() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 questions, with their examples, are longer than the 32 tokens that are read" in said
    assert evaluate("--max-length", 64) == 0
    assert [line["cut"] for line in Store(results / study.FOLDER).read()[0]] == [1, 0]


def test_a_text_leaves_room_for_its_question(
    evaluate: Evaluate, folder: Path, capsys: pytest.CaptureFixture[str]
):
    change(folder / "mine.yaml", "doc_to_choice: choices", "generation_kwargs: {max_gen_toks: 40}")
    change(folder / "mine.yaml", "output_type: multiple_choice", "output_type: generate_until")
    change(folder / "mine.yaml", "metric: acc", "metric: exact_match")
    assert evaluate() == 2
    assert "texts of up to 40 tokens are asked for, and 32 are read at a time" in capsys.readouterr().err
    assert evaluate("--max-length", 48) == 0


def test_one_model_under_two_options_has_two_names(evaluate: Evaluate, results: Path):
    assert evaluate() == 0
    assert evaluate("--precision", "bf16") == 0
    table = (results / study.FOLDER / "table.md").read_text()
    first, second = [line for line in table.splitlines() if "| acc |" in line]
    assert ", fp32 |" in first
    assert first.rstrip(" |").endswith("–")
    assert ", bf16 |" in second
    assert "undecided" in second
