"""`tnbench eval`: a trained run, tasks, records, items, pairs, what is refused and what goes on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnbench import cli
from tnbench.evaluation import cloze, evaluating, items, outcomes, scoring, study, tasks
from tnbench.evaluation.loading import load_run
from tnbench.evaluation.study import Store
from tnbench.interop import export
from tnbench.records import RunFolder
from tnbench.statistics.items import compare_items

pytestmark = pytest.mark.usefixtures("settled_process")

LOCAL = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
{rest}
metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]
"""


@pytest.fixture
def results(whole: RunFolder, tmp_path: Path) -> Path:
    """A results folder with a tiny run, and a copy of it under another id."""
    runs = tmp_path / "results" / "tiny" / "runs"
    shutil.copytree(whole.path, runs / whole.id)
    shutil.copytree(whole.path, runs / "other")
    manifest = runs / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{whole.id}"', '"other"'))
    return tmp_path / "results"


def tnbench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", *map(str, arguments), "--device", "cpu"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def records(results: Path) -> list[dict[str, Any]]:
    return Store(results / study.FOLDER).read()[0]


def local_task(
    folder: Path, name: str, kind: str, metric: str, rest: str = "", aggregation: str = "mean"
) -> None:
    """A task file on three documents of its own."""
    folder.mkdir(exist_ok=True)
    documents = [{"q": "one two", "a": "x"}, {"q": "three", "a": "yy"}, {"q": "four", "a": "é"}]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in documents))
    text = LOCAL.format(name=name, file=data, kind=kind, metric=metric, rest=rest, aggregation=aggregation)
    (folder / f"{name}.yaml").write_text(text)


def test_the_shipped_task_is_the_default(
    results: Path, whole: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Two runs of one model: the same answers, paired; asked once."""
    monkeypatch.setenv("COLUMNS", "160")
    command = (whole.id, "other", "--results", results, "--limit", 12)
    assert tnbench(*command) == 0
    said = capsys.readouterr().out
    assert "gold_bits_per_byte" in said
    assert "+0.000 [+0.000, +0.000] undecided" in said
    first, second = records(results)
    assert first["items"] == 12
    assert first["chance"] == 0.25
    assert first["metrics"]["acc"] == second["metrics"]["acc"]
    store = Store(results / study.FOLDER)
    asked = study.read_items(store, first)
    assert [item.id for item in asked] == list(range(12))
    assert first["metrics"]["acc"]["value"] == pytest.approx(np.mean([item.scores["acc"] for item in asked]))
    documents = map(json.loads, cloze.PATH.read_text().splitlines())
    right = [item.answer[document["label"]] for item, document in zip(asked, documents, strict=False)]
    assert [-item.gold_nats for item in asked if item.gold_nats] == pytest.approx(right)
    assert not (store.folder / "unfinished").exists()
    with open(store.folder / "results.csv") as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"acc", "gold_bits_per_byte"}

    monkeypatch.setattr(study, "evaluate", lambda *a, **k: pytest.fail("it is recorded"))
    assert tnbench(*command) == 0


def test_tasks_of_every_kind(results: Path, whole: RunFolder, tmp_path: Path):
    folder = tmp_path / "my"
    stops = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 4}'
    local_task(folder, "makes", "generate_until", "exact_match", stops)
    local_task(folder, "continues", "loglikelihood", "acc")
    local_task(folder, "reads", "loglikelihood_rolling", "bits_per_byte", aggregation="bits_per_byte")
    (folder / "broken.yaml").write_text(
        (folder / "makes.yaml").read_text().replace("makes", "broken") + "\n["
    )
    (folder / "broken.yaml").unlink()
    names = "makes,continues,reads"
    assert tnbench(whole.id, "--results", results, "--tasks", names, "--include-path", folder) == 0
    found = {line["task"]: line for line in records(results)}
    assert set(found) == set(names.split(","))
    assert set(found["makes"]["metrics"]) == {"exact_match"}
    assert found["continues"]["gold_bits_per_byte"] > 0
    # lm-eval's own bits per byte of whole texts is what the items say.
    assert found["reads"]["gold_bits_per_byte"] == pytest.approx(
        found["reads"]["metrics"]["bits_per_byte"]["value"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "has no run"),
        (["RUN", "RUN"], "is given twice"),
        (["RUN", "--tasks", "cloze,cloze"], "cloze is asked for twice"),
        (["RUN", "--tasks", ","], "names with commas"),
        (["RUN", "--include-path", "/nowhere"], "no such folder"),
        (["RUN", "--limit", "0"], "--limit"),
        (["RUN", "--max-length", "1"], "--max-length"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], said: str, results: Path, whole: RunFolder, capsys: pytest.CaptureFixture[str]
):
    given = [whole.id if word == "RUN" else word for word in arguments]
    assert tnbench(*given, "--results", results) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (results / study.FOLDER / "records.jsonl").exists()


def test_only_official_checkpoints_are_faithful(
    results: Path, whole: RunFolder, capsys: pytest.CaptureFixture
):
    assert tnbench(whole.id, "--faithful", "--results", results) == 2
    assert "--faithful is for official checkpoints" in capsys.readouterr().err


def test_data_out_of_reach(
    results: Path, whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    local_task(tmp_path / "my", "gone", "loglikelihood", "acc")
    (tmp_path / "my" / "data.jsonl").unlink()
    assert tnbench(whole.id, "--results", results, "--tasks", "gone", "--include-path", tmp_path / "my") == 2
    assert "task gone: its data cannot be had" in capsys.readouterr().err


def test_what_was_answered_is_not_asked_again(
    results: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Interrupted in the middle, it goes on; the outcome is that of one go."""
    plain = scoring.Scorer.scores
    asked: list[int] = []

    def stopped(self: Any, requests: Any) -> Any:
        asked.append(len(requests))
        for number, one in enumerate(plain(self, requests)):
            if len(asked) == 1 and number == 20:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(scoring.Scorer, "scores", stopped)
    command = (whole.id, "--results", results, "--limit", 12)
    assert tnbench(*command) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not records(results)
    assert tnbench(*command) == 0
    assert asked == [48, 28]
    (again,) = records(results)
    assert tnbench("other", "--results", results, "--limit", 12) == 0
    assert records(results)[1]["metrics"] == again["metrics"]


@pytest.mark.slow
def test_lm_evals_own_command_line(
    results: Path,
    whole: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from tnbench.evaluation import lm_eval_command

    local_task(tmp_path / "my", "continues", "loglikelihood", "acc")
    model = f"run={whole.id},results={results}"
    arguments = ["--model", "tnbench", "--model_args", model, "--tasks", "continues", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["lm_eval", *arguments, "--include_path", str(tmp_path / "my")])
    lm_eval_command.main()
    assert "|continues|" in capsys.readouterr().out.replace(" ", "")
    arguments[3] = f"run=gone,results={results}"
    monkeypatch.setattr("sys.argv", ["lm_eval", *arguments, "--include_path", str(tmp_path / "my")])
    with pytest.raises(SystemExit, match="2"):
        lm_eval_command.main()
    assert "tnbench: " in capsys.readouterr().err


def test_a_full_disk_and_a_broken_model(
    results: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = (whole.id, "--results", results, "--limit", 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(study, "write_atomic", full)
        assert tnbench(*command) == 1
    assert "no space left on device; what was recorded before is kept" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        plain = scoring.F.cross_entropy
        patch.setattr(scoring.F, "cross_entropy", lambda *a, **k: plain(*a, **k) * float("nan"))
        assert tnbench("other", "--results", results, "--limit", 2) == 2
    assert "logits are not finite: its training has diverged" in capsys.readouterr().err
    assert not records(results)
    assert tnbench(*command) == 0


def test_an_export_answers_as_its_run(
    results: Path, whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = load_run(whole.id, results)
    export(found.model, found.tokenizer, tmp_path / "exported", found.manifest)
    assert tnbench(whole.id, tmp_path / "exported", "--results", results, "--limit", 4) == 0
    first, second = records(results)
    assert first["metrics"] == second["metrics"]
    assert first[outcomes.BITS] == pytest.approx(second[outcomes.BITS])
    config = tmp_path / "exported" / "config.json"
    weights = tmp_path / "exported" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert tnbench(tmp_path / "exported", "--results", results, "--limit", 4) == 2
    assert "exported is damaged" in capsys.readouterr().err
    config.write_text(config.read_text().replace('"model_type": "tnbench"', '"model_type": "none-such"'))
    assert tnbench(tmp_path / "exported", "--results", results) == 2
    assert "a model of type none-such; known are runs, exports" in capsys.readouterr().err


def test_bits_per_byte_of_right_answers():
    """A worked example, and the standard error by resampling."""
    two = [
        items.Item(0, "a", {"acc": 1.0}, choices=4, gold_nats=2 * np.log(2), gold_bytes=4),
        items.Item(1, "b", {"acc": 0.0}, choices=2, gold_nats=6 * np.log(2), gold_bytes=4),
    ]
    found = items.summarise(two)
    assert found.gold_bits_per_byte == pytest.approx(8 / 8)
    assert found.chance == pytest.approx((1 / 4 + 1 / 2) / 2)
    draw = np.random.default_rng(0)
    sizes = draw.integers(3, 12, 400)
    nats = sizes * draw.gamma(4, 0.3, 400)
    many = [
        items.Item(n, str(n), {}, gold_nats=a, gold_bytes=int(b))
        for n, (a, b) in enumerate(zip(nats, sizes, strict=True))
    ]
    picks = draw.integers(0, 400, (2000, 400))
    spread = np.std(nats[picks].sum(1) / sizes[picks].sum(1) / np.log(2))
    assert items.summarise(many).gold_bits_per_byte_stderr == pytest.approx(spread, rel=0.1)


def test_pairs_are_compared_item_by_item(tmp_path: Path):
    store = Store(tmp_path)
    draw = np.random.default_rng(1)
    lines = []
    scores = {}
    for name, shift in (("one", 0.0), ("two", 0.5)):
        nats = 2 + draw.normal(size=60) * 0.1 - shift
        right = (draw.random(60) < 0.5 + shift / 2).astype(float)
        scores[name] = right
        path = store.items_of(name)
        path.parent.mkdir(exist_ok=True)
        asked = [
            items.Item(n, f"h{n}", {"acc": right[n]}, choices=2, gold_nats=nats[n], gold_bytes=2)
            for n in range(60)
        ]
        path.write_text("".join(json.dumps(item.to_dict()) + "\n" for item in asked))
        summary = items.summarise(asked)
        metric = {"value": float(right.mean()), "stderr": 0.06, "higher_is_better": True}
        lines.append(
            {
                "key": name, "task": "t", "model": name, "fewshot": 0, "limit": None,
                "asked": {"task": "t", "model": name}, "identity": {"run": name},
                "metrics": {"acc": metric}, **summary.__dict__,
            }
        )  # fmt: skip
    frame = outcomes.comparisons(store, lines)
    assert list(frame["verdict"]) == ["better", "better"]
    expected = compare_items(scores["two"], scores["one"], alpha=0.05)
    assert frame.iloc[0]["difference"] == pytest.approx(expected.mean)
    assert (frame.iloc[0]["low"], frame.iloc[0]["high"]) == pytest.approx((expected.low, expected.high))
    assert frame.iloc[1]["difference"] == pytest.approx(-0.5 / np.log(2) / 2, rel=0.1)
    texts = outcomes.cells(outcomes.rows(lines), frame)
    assert [line[-1].split()[-1] for line in texts] == ["–", "–", "better", "better"]
    assert outcomes.rows(lines)["at_chance"].tolist()[::2] == [True, False]


def test_groups_and_the_shipped_file(monkeypatch: pytest.MonkeyPatch):
    names = [one.name for one in tasks.asked("paper", None)]
    assert names[:3] == ["boolq", "piqa", "hellaswag"]
    assert [one.fewshot for one in tasks.asked("paper", None)][-3:] == [5, 5, 5]
    assert {one.fewshot for one in tasks.asked("small", 3)} == {3}
    documents = list(cloze.build())
    monkeypatch.setattr(cloze, "build", lambda: iter(documents))
    assert cloze.PATH.read_text() == cloze.text()
    assert len(documents) == cloze.ITEMS
    for document in documents:
        choices: Any = document["choices"]
        assert len({len(choice) for choice in choices}) == 1
        assert len(set(choices)) == 4


def test_damaged_records_items_and_answers(
    results: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What is lost is asked again; what belongs to others is told and left out."""
    command = (whole.id, "--results", results, "--limit", 4)
    assert tnbench(*command) == 0
    assert tnbench("other", *command[1:]) == 0
    store = Store(results / study.FOLDER)
    first, second = records(results)
    items_of = store.items_of(first["key"])
    kept = items_of.read_text()
    for damage in (kept[:100], kept.rsplit("\n", 2)[0] + "\n"):
        items_of.write_text(damage)
        capsys.readouterr()
        assert tnbench("other", *command[1:]) == 0
        assert "it is compared with nothing" in capsys.readouterr().out
        assert tnbench(*command) == 0
        assert items_of.read_text() == kept
    broken = {**second, "metrics": {"acc": {"value": "x"}}}
    with open(store.path, "a") as file:
        file.write('{"kind": "task"}\n[1]\nnull\n' + json.dumps(broken) + "\n")
    assert tnbench("other", *command[1:]) == 0
    assert capsys.readouterr().out.count("is broken and was ignored") == 4

    key = study.digest(
        study.key_of(evaluating_model(whole), tasks.wanted(None, None, include=None, data=None).tasks[0], 5)
    )
    store.answers_of(key).parent.mkdir()
    store.answers_of(f"{key}_rank0.db").write_text("no data base")
    assert tnbench(whole.id, "--results", results, "--limit", 5) == 0
    assert {line["limit"] for line in records(results)} == {4, 5}


def evaluating_model(run: RunFolder) -> study.Model:
    options = {"device": "cpu", "precision": "fp32", "max_length": None}
    return evaluating.run_model(run, "base", options)


def test_items_may_hold_any_character(tmp_path: Path):
    """A model may write what Python takes for the end of a line."""
    store = Store(tmp_path)
    texts = ["a\u2028b", "\x85", "\x0b\x1c\n"]
    asked = [items.Item(n, f"h{n}", {"exact_match": 0.0}, answer=text) for n, text in enumerate(texts)]
    store.items_of("k").parent.mkdir()
    lines = [json.dumps(item.to_dict(), ensure_ascii=False) + "\n" for item in asked]
    store.items_of("k").write_text("".join(lines), "utf-8")
    assert study.read_items(store, {"key": "k", "items": 3}) == asked


def test_truncated_weights_are_told_before_anything_is_asked(
    results: Path, whole: RunFolder, capsys: pytest.CaptureFixture[str]
):
    weights = results / "tiny" / "runs" / "other" / "checkpoint" / "model.safetensors"
    for size in (weights.stat().st_size // 2, 10, 0):
        with open(weights, "r+b") as file:
            file.truncate(size)
        assert tnbench(whole.id, "other", "--results", results) == 2
        said = capsys.readouterr()
        assert "run other is damaged: model.safetensors cannot be read" in said.err
        assert not said.out


def test_a_model_that_fails_stops_no_other(
    results: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plain = scoring.Scorer.scores
    asked: list[int] = []

    def failing(self: Any, requests: Any) -> Any:
        asked.append(len(requests))
        if len(asked) == 1:
            raise RuntimeError("CUDA error: an illegal memory access")
        return plain(self, requests)

    monkeypatch.setattr(scoring.Scorer, "scores", failing)
    assert tnbench(whole.id, "other", "--results", results, "--limit", 4) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "failed: task cloze, base run: RuntimeError: CUDA error" in said
    assert [line["identity"]["run"] for line in records(results)] == ["other"]
