"""Benchmarks from a folder of saved data sets: where they are found, which documents are asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.evaluation import study, task_data
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")


def rows(count: int) -> Any:
    return datasets.Dataset.from_list(
        [{"q": f"q{n}", "a": str(n), "answer": n % 2 == 0} for n in range(count)]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    rows(10).save_to_disk(found / "plain" / "none" / "validation")
    rows(10).save_to_disk(found / "two" / "big" / "validation")
    rows(4).save_to_disk(found / "two" / "big" / "train")
    rows(3).save_to_disk(found / "two" / "small" / "validation")
    rows(5).save_to_disk(found / "only" / "main" / "validation")
    datasets.DatasetDict({"test": rows(6), "train": rows(2)}).save_to_disk(found / "whole")
    rows(4).save_to_disk(found / "boolq" / "none" / "validation")
    return found


def sizes(folder: Path, path: str, name: str | None = None, examples: bool = False) -> dict[str, int]:
    with task_data.local(folder, examples):
        found = datasets.load_dataset(path, name)
    return {str(split): len(found[split]) for split in sorted(found)}


def test_where_data_are_found(folder: Path):
    assert sizes(folder, "somebody/plain") == {"test": 10, "train": 10, "validation": 10}
    assert sizes(folder, "two", "big") == {"test": 10, "train": 4, "validation": 10}
    assert sizes(folder, "two", "small") == {"test": 3, "train": 3, "validation": 3}
    assert sizes(folder, "somebody/only") == {"test": 5, "train": 5, "validation": 5}
    assert sizes(folder, "whole") == {"test": 6, "train": 2, "validation": 6}
    for path, name in (("two", None), ("two", "other"), ("none-such", None)):
        assert task_data.find(folder, path, name) is None
    before = datasets.load_dataset
    with task_data.local(folder, False):
        assert datasets.load_dataset is not before
    assert datasets.load_dataset is before


def test_examples_are_not_asked(folder: Path):
    assert sizes(folder, "plain", examples=True) == {"test": 5, "train": 5, "validation": 5}
    with task_data.local(folder, True):
        found = datasets.load_dataset("plain")
    assert not set(found["train"]["q"]) & set(found["validation"]["q"])
    assert sizes(folder, "two", "big", examples=True) == {"test": 10, "train": 4, "validation": 10}


def test_columns_get_the_names_that_tasks_know(folder: Path):
    with task_data.local(folder, False):
        found = datasets.load_dataset("aps/super_glue", "boolq")
    assert found["validation"]["label"][:4] == [1, 0, 1, 0]


def test_what_holds_no_data_is_refused(tmp_path: Path, folder: Path):
    with pytest.raises(RequestError, match="no such folder"):
        task_data.require(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no saved data set"):
        task_data.require(tmp_path / "empty")
    before = task_data.fingerprint(folder)
    assert before == task_data.fingerprint(folder)
    rows(11).save_to_disk(folder / "plain" / "none" / "test")
    assert before != task_data.fingerprint(folder)


def test_a_task_of_lm_eval_on_local_data(
    whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its own file names a data set of the hub; the numbers say which documents were asked."""
    results, data = tmp_path / "results", tmp_path / "data"
    shutil.copytree(whole.path, results / "tiny" / "runs" / whole.id)
    rows(12).save_to_disk(data / "hubbed" / "none" / "validation")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "hubbed.yaml").write_text(
        "task: hubbed\ndataset_path: somebody/hubbed\noutput_type: loglikelihood\n"
        "training_split: train\nvalidation_split: validation\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )

    def evaluated(*options: str) -> int:
        arguments = ["eval", whole.id, "--results", str(results), "--device", "cpu", "--tasks", "hubbed"]
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--include-path", str(tasks), *options])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert evaluated("--task-data", str(data)) == 0
    assert evaluated("--task-data", str(data), "--num-fewshot", "2") == 0
    found = study.Store(results / study.FOLDER).read()[0]
    assert [(line["items"], line["fewshot"]) for line in found] == [(12, 0), (6, 2)]
    assert evaluated("--task-data", str(tmp_path / "nothing")) == 2
    assert "no such folder" in capsys.readouterr().err
