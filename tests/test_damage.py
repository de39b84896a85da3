"""Records that were damaged, lost or mixed up since they were written: noticed, named, made good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import manifest, same_run, tiny

from tnbench import records
from tnbench.data import TokenData
from tnbench.records import RunFolder, read_metrics
from tnbench.training.loop import run

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture
def finished(whole: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of a finished run."""
    return RunFolder(shutil.copytree(whole.path, tmp_path / "run"))


@pytest.fixture
def unfinished(corpus: Path, data: TokenData, tmp_path: Path) -> RunFolder:
    """A run that was stopped after step 5."""
    folder, steps = RunFolder(tmp_path / "run"), []

    def stop() -> bool:
        return steps[-1:] == [5]

    assert (
        run(tiny(corpus), folder, data, progress=lambda p: steps.append(p.step), stop=stop) == "interrupted"
    )
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# lines of metrics


def lose(path: Path) -> None:
    path.unlink()


def truncate_the_last_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def garble_a_line_in_the_middle(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4][:20] + b"\0\0\0" + lines[4][23:]
    path.write_bytes(b"\n".join(lines))


def change_a_digit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"train_loss", "value": 5.', b'"train_loss", "value": 6.', 1))


@pytest.mark.parametrize(
    "damage", [lose, truncate_the_last_line, garble_a_line_in_the_middle, change_a_digit]
)
def test_damaged_metrics_of_an_unfinished_run_are_restored(
    damage: Callable[[Path], None], unfinished: RunFolder, whole: RunFolder, corpus: Path, data: TokenData
) -> None:
    before, steps = unfinished.metrics.read_bytes(), []
    damage(unfinished.metrics)
    assert not unfinished.metrics.exists() or unfinished.metrics.read_bytes() != before
    assert run(tiny(corpus), unfinished, data, progress=lambda p: steps.append(p.step)) == "finished"
    assert steps[0] == 6, "the checkpoint was not used"
    assert same_run(unfinished, whole)
    assert manifest(unfinished)["notes"] == [
        "metrics.jsonl was damaged and has been restored from the checkpoint"
    ]


def truncate_the_final_values(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[: text.index(b'"split": "report"')])


def garble_a_final_value(path: Path) -> None:
    """Of the last evaluation on the report split, which follows those on the tune split."""
    head, name, tail = path.read_bytes().rpartition(b'"val_bits_per_byte", "value": ')
    path.write_bytes(head + name + b"1" + tail)


@pytest.mark.parametrize("damage", [lose, truncate_the_final_values, garble_a_final_value])
def test_a_finished_run_whose_result_is_damaged_is_run_again(
    damage: Callable[[Path], None], finished: RunFolder, whole: RunFolder, corpus: Path, data: TokenData
) -> None:
    damage(finished.metrics)
    assert finished.outcome() is None
    assert finished.problem() == records.LOST
    assert run(tiny(corpus), finished, data) == "finished"
    assert same_run(finished, whole)
    assert manifest(finished)["notes"] == [f"attempt 2 replaces a record that did not count: {records.LOST}"]


def test_a_broken_line_of_a_finished_run_is_named_and_the_rest_counts(
    finished: RunFolder, whole: RunFolder
) -> None:
    garble_a_line_in_the_middle(finished.metrics)
    assert finished.outcome() == "finished"
    assert finished.problem() is None
    found, problems = read_metrics(finished.metrics)
    assert problems == [f"{finished.metrics}: line 5 is broken and was ignored"]
    assert len(found) == len(read_metrics(whole.metrics)[0]) - 1


# manifests


@pytest.mark.parametrize("text", ["", "{", "[]", '{"outcome": 5}', "\0\0\0"])
def test_a_garbled_manifest_does_not_lose_the_checkpoint(
    text: str, unfinished: RunFolder, whole: RunFolder, corpus: Path, data: TokenData
) -> None:
    unfinished.manifest.write_text(text)
    assert unfinished.problem() == records.UNREADABLE
    steps = []
    assert run(tiny(corpus), unfinished, data, progress=lambda p: steps.append(p.step)) == "finished"
    assert steps[0] == 6
    assert same_run(unfinished, whole)
    assert manifest(unfinished)["notes"] == [
        f"attempt 1 replaces a record that did not count: {records.UNREADABLE}"
    ]


def rename_the_folder(folder: RunFolder) -> RunFolder:
    return RunFolder(folder.path.rename(folder.path.with_name("other")))


def change_the_configuration(folder: RunFolder) -> RunFolder:
    record = manifest(folder)
    record["config"]["training"]["learning_rate"] *= 2
    folder.manifest.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("change", "told"), [(rename_the_folder, records.FOREIGN), (change_the_configuration, records.CHANGED)]
)
@pytest.mark.parametrize("which", ["finished", "unfinished"])
def test_a_record_of_something_else_is_kept_aside(
    change: Callable[[RunFolder], RunFolder],
    told: str,
    which: str,
    whole: RunFolder,
    corpus: Path,
    data: TokenData,
    request: pytest.FixtureRequest,
) -> None:
    folder = change(request.getfixturevalue(which))
    before = files(folder.path)
    assert folder.read_manifest() is folder.outcome() is None
    assert folder.problem() == told
    assert run(tiny(corpus), folder, data) == "finished"
    assert same_run(folder, whole)
    assert manifest(folder)["attempts"] == 1
    assert manifest(folder)["notes"] == [
        f"attempt 1 replaces a record that did not count: {told}; what was there is in set-aside-1"
    ]
    assert files(folder.path / "set-aside-1") == before
