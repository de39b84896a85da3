"""`tnbench train --from`: a run comes out of its manifest bit for bit, or the first difference is named."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import manifest, same_run, tiny, values

from tnbench import cli, commands
from tnbench.ablation import leases, thinning
from tnbench.ablation.repeat import compared, read_original
from tnbench.config import RunConfig, digest, run_id
from tnbench.data import TokenData
from tnbench.records import RunFolder, source_hash, write_json
from tnbench.training.loop import run
from tnbench.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("settled_process")


def train(config: RunConfig, results: Path, data: TokenData, **options: Any) -> RunFolder:
    """A run where a suite would have put it."""
    folder = RunFolder(results / "mine" / "runs" / run_id(config, data.hash, source_hash()))
    run(config, folder, data, attributes={"suite": "mine", "variant": "base", "seed": 0}, **options)
    return folder


@pytest.fixture(scope="module")
def original(corpus: Path, data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny(corpus), tmp_path_factory.mktemp("original"), data)


@pytest.fixture
def copy(original: RunFolder, tmp_path: Path) -> RunFolder:
    """The original, to be tampered with."""
    return RunFolder(Path(shutil.copytree(original.path, tmp_path / "copy" / original.id)))


def again(source: Path, results: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--from", str(source), "--results", str(results), *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def repeated(results: Path) -> RunFolder:
    (path,) = (results / "train" / "runs").glob("*/manifest.json")
    return RunFolder(path.parent)


def change(folder: RunFolder, **entries: Any) -> None:
    write_json(folder.manifest, {**json.loads(folder.manifest.read_text()), **entries})


def change_value(folder: RunFolder, name: str, step: int, to: Callable[[float], float]) -> None:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    (line,) = [line for line in lines if line["name"] == name and line["step"] == step]
    line["value"] = to(line["value"])
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_repeats_bit_for_bit(
    original: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in original.path.rglob("*") if path.is_file()}
    assert again(original.manifest, tmp_path) == 0
    count = len(values(original))
    shown = capsys.readouterr().out
    assert f"identical to the original: all {count} recorded values, and the final weights" in shown
    assert "note:" not in shown
    folder = repeated(tmp_path)
    assert same_run(original, folder)
    record = manifest(folder)
    assert (record["repeat_of"], record["run_id"]) == (original.id, original.id)
    assert record["config"] == manifest(original)["config"]
    assert (record["seed"], record["suite"]) == (0, None)
    written = folder.manifest.read_bytes()
    assert again(original.path, tmp_path, "--keep", "none") == 0
    assert "nothing is run, the records are compared again" in capsys.readouterr().out
    assert folder.manifest.read_bytes() == written
    assert {path: path.read_bytes() for path in before} == before


def test_the_first_value_that_differs_is_named(original: RunFolder, copy: RunFolder) -> None:
    count = len(values(original))
    assert compared(read_original(copy.manifest), original)[0]
    change_value(copy, "step_seconds", 3, lambda seconds: 2 * seconds)
    assert compared(read_original(copy.manifest), original)[0]
    change_value(copy, "gradient_norm", 7, lambda norm: float(np.nextafter(norm, 9)))
    change_value(copy, "train_loss", 9, lambda loss: loss + 1)
    same, text = compared(read_original(copy.manifest), original)
    assert not same
    assert f"differs from the original in 2 of {count} recorded values" in text
    there, here = re.findall(r"first in gradient_norm \(train\) at step 7: (\S+) there, (\S+) here", text)[0]
    assert float(there) == np.nextafter(float(here), 9)


def test_the_exit_status_says_that_it_differs(
    copy: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_value(copy, "train_loss", 5, math.ceil)
    assert again(copy.manifest, tmp_path) == 1
    assert "train_loss (train) at step 5" in capsys.readouterr().out


def test_values_too_many_or_too_few_differ(original: RunFolder, copy: RunFolder) -> None:
    lines = copy.metrics.read_text().splitlines(keepends=True)
    copy.metrics.write_text("".join(line for line in lines if '"epochs"' not in line))
    same, text = compared(read_original(copy.manifest), original)
    assert not same
    assert "first in epochs (train) at step 12: no value there" in text
    same, text = compared(read_original(original.manifest), copy)
    assert not same
    assert "no value here" in text


def test_thinned_metrics_are_compared_as_far_as_they_go(original: RunFolder, tmp_path: Path) -> None:
    suite = original.path.parent.parent
    with pytest.raises(SystemExit) as ended:
        commands.run_alone(thinning.main, [str(suite), str(tmp_path)])
    assert ended.value.code == 0
    kept = RunFolder(tmp_path / "mine" / "runs" / original.id)
    assert kept.outcome() == "finished"
    assert not kept.weights.exists()
    few, all_of_them = values(kept), values(original)
    assert 0 < len(few) < len(all_of_them)
    assert set(few) <= set(all_of_them)
    assert [step for name, _, _, step, _, _ in few if name == "train_loss"] == [1, 11, 12]
    assert {value for value in all_of_them if value[-1] != "train"} <= set(few)
    same, text = compared(read_original(kept.manifest), original)
    assert same
    assert f"all {len(few)} recorded values that are kept" in text
    twice = RunFolder(tmp_path / "twice" / original.id)
    thinning.write(kept, twice)
    assert twice.metrics.read_bytes() == kept.metrics.read_bytes()
    change_value(kept, "train_loss", 11, lambda loss: loss + 1)
    assert not compared(read_original(kept.manifest), original)[0]


def test_only_ended_runs_are_thinned(copy: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    change(copy, outcome=None)
    suite = tmp_path / "a" / "some"
    shutil.copytree(copy.path, suite / "runs" / copy.id)
    for place, out, said in (
        (suite, tmp_path / "b", "did not end"),
        (suite, tmp_path / "a", "written over itself"),
        (tmp_path, tmp_path / "b", "has no runs"),
    ):
        with pytest.raises(SystemExit) as ended:
            commands.run_alone(thinning.main, [str(place), str(out)])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_final_weights_are_compared(original: RunFolder, copy: RunFolder) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy.weights)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    save_file(weights, copy.weights)
    same, text = compared(read_original(copy.manifest), original)
    assert not same
    assert "final weights" in text


def test_a_diverged_run_diverges_again(
    corpus: Path, data: TokenData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = train(tiny(corpus, learning_rate=1e4, warmup=0, gradient_clip=0), tmp_path / "wild", data)
    assert manifest(wild)["outcome"] == "diverged"
    assert again(wild.manifest, tmp_path / "out") == 0
    assert "identical to the original: all" in capsys.readouterr().out
    folder = repeated(tmp_path / "out")
    assert manifest(folder)["stopped_step"] == manifest(wild)["stopped_step"] < 12
    change(wild, stopped_step=1)
    same, text = compared(read_original(wild.manifest), folder)
    assert not same
    assert "which ended diverged at step 1" in text


def test_an_interrupted_run_is_compared_as_far_as_it_went(
    corpus: Path, data: TokenData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = iter(range(1000))
    cut = train(tiny(corpus), tmp_path / "cut", data, stop=lambda: next(asked) >= 5)
    assert manifest(cut)["outcome"] is None
    assert again(cut.manifest, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert f"as far as that went: all {len(values(cut))} recorded values, up to step" in shown
    assert manifest(repeated(tmp_path / "out"))["outcome"] == "finished"


def test_a_manifest_alone_is_enough(
    copy: RunFolder, original: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.json"
    alone.write_bytes(copy.manifest.read_bytes())
    assert again(alone, tmp_path) == 0
    assert "nothing to compare with" in capsys.readouterr().out
    assert same_run(repeated(tmp_path), original)


def test_other_code_and_torch_are_notes(
    copy: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance = manifest(copy)["provenance"]
    versions = {**provenance["versions"], "torch": "1.0"}
    change(
        copy, provenance={**provenance, "source_hash": "0" * 12, "versions": versions, "processor": "abacus"}
    )
    assert again(copy.manifest, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "note: another source code: 000000000000 then" in shown
    assert "note: another version of torch: 1.0 then" in shown
    assert "note: another processor: abacus then" in shown
    assert "identical" in shown


def test_the_original_is_never_the_target(
    original: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "train" / "runs" / original.id
    shutil.copytree(original.path, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    link = tmp_path / "link"
    link.symlink_to(place)
    for source in (place / "manifest.json", link):
        assert again(source, tmp_path) == 2
        assert "holds the original" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_repeat_that_another_process_is_at_is_left_to_it(
    original: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "train" / "runs" / original.id)
    lease = leases.acquire(folder)
    assert lease is not None
    with lease:
        assert again(original.manifest, tmp_path) == 2
        assert "wait for it" in capsys.readouterr().err
        assert not folder.manifest.exists()


def test_another_corpus_is_refused(
    corpus: Path, tmp_path: Path, data: TokenData, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    folder = train(tiny(text, steps=1, evaluations=0), tmp_path / "made", data)
    text.write_text(text.read_text().replace("a", "b", 1))
    assert again(folder.manifest, tmp_path / "out") == 2
    assert "has changed since the run: data.corpus_hash is" in capsys.readouterr().err
    text.unlink()
    assert again(folder.manifest, tmp_path / "out") == 2
    assert "text.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_short_of_memory_repeats_with_its_micro_batches(
    corpus: Path, data: TokenData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer._step

    def short(self: Trainer, batch: Any) -> Any:
        if self.micro_sequences > 2:
            raise MemoryError
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", short)
        original = train(tiny(corpus), tmp_path / "short", data)
    assert manifest(original)["micro_batches"] == [[0, 64]]
    assert again(original.manifest, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "note: micro-batches of 64 tokens" in shown
    assert "identical to the original: all" in shown
    record = manifest(repeated(tmp_path / "out"))
    assert record["config"]["training"]["micro_batch_tokens"] == 64
    assert record["run_id"] != record["repeat_of"] == original.id


def test_micro_batches_that_changed_or_are_wrong(
    copy: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy, micro_batches=[[0, 256]])
    assert read_original(copy.manifest).notes == []
    change(copy, micro_batches=[[0, 256], [5, 64]])
    found = read_original(copy.manifest)
    assert "the last bits may differ" in found.notes[0]
    assert found.config.training.micro_batch_tokens is None
    for wrong in ([[0, 100]], [[0]], [7], [[0, 0]]):
        change(copy, micro_batches=wrong)
        assert again(copy.manifest, tmp_path) == 2
        assert "micro_batch" in capsys.readouterr().err


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def remove(values: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            values = values[parent]
        del values[last]

    return remove


def config_with(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def put(values: dict[str, Any]) -> None:
        *parents, last = key.split(".")
        inner = values["config"]
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        values["config_hash"] = digest(values["config"])

    return put


BROKEN: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("its schema is 0", lambda values: values.update(schema=0)),
    ("its schema is None", without("schema")),
    ("it has no config", without("config")),
    ("it has no data.hash", without("data.hash")),
    ("it has no run_id", without("run_id")),
    ("it has no provenance.source_hash", without("provenance")),
    ("unknown key config.model.gat, did you mean gate?", config_with("model.gat", True)),
    ("did you mean official?", config_with("model.decay.name", "offical")),
    ("config.model.width = 'wide'", config_with("model.width", "wide")),
    ("config.model is missing", without("config.model")),
    ("it has been changed", config_with("training.learning_rate", 0.5)),
    ("it has been changed", lambda values: values["config"]["training"].update(checkpoint_every=1)),
    ("data.tokenizer.hash is", lambda values: values["data"]["tokenizer"].update(hash="0")),
]


@pytest.mark.parametrize(("says", "damage"), BROKEN, ids=[says for says, _ in BROKEN])
def test_broken_manifests_end_in_one_line(
    says: str,
    damage: Callable[[dict[str, Any]], None],
    copy: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = json.loads(copy.manifest.read_text())
    damage(content)
    write_json(copy.manifest, content)
    assert again(copy.manifest, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3"], ids=repr)
def test_what_is_no_manifest_ends_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    assert again(path, tmp_path / "out") == 2
    assert "manifest" in capsys.readouterr().err
    assert again(tmp_path / "absent.json", tmp_path / "out") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--set", "model.gate=no"], ["--seed", "0"], ["--device", "cpu"]], ids=str
)
def test_what_the_manifest_says_cannot_be_said_otherwise(
    option: list[str], original: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(original.manifest, tmp_path / "out", *option) == 2
    assert f"{option[0]} does not go with it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
