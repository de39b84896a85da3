"""`tnbench compare`: what its names stand for, which runs are paired, and that the numbers are scipy's."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tnbench import cli
from tnbench.config import run_id
from tnbench.records import RunFolder, write_json
from tnbench.resolution import resolve

BASE = {"model.size": "0.1m", "training.steps": 10, "training.batch_tokens": 256, "data.context": 32}
BYTES = {"name": "bytes", "hash": "b" * 12, "vocab_size": 257, "end_of_text": 256}
SPLITS = {name: {"documents": 5, "tokens": 900, "bytes": 890} for name in ("train", "tune", "report")}
DATA = {"corpus": "text", "hash": "d" * 12, "corpus_hash": "c" * 12, "tokenizer": BYTES, "splits": SPLITS}
SUBWORDS = {**DATA, "hash": "e" * 12, "tokenizer": {**BYTES, "name": "bpe-300", "hash": "f" * 12}}
NONE = {"model.position": "none", "model.decay": "none"}
A = {0: 2.02, 1: 2.31, 2: 2.17, 3: 2.26}
B = {0: 2.00, 1: 2.27, 2: 2.16, 3: 2.21}
WELCH = stats.ttest_ind(list(A.values()), list(B.values()), equal_var=False)[1]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which names are looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "results").mkdir()
    return Path("results")


def record(
    variant: str | None,
    seed: int,
    value: float,
    *,
    suite: str = "s",
    changes: dict[str, Any] | None = None,
    outcome: str = "finished",
    data: dict[str, Any] = DATA,
    source: str = "a" * 12,
    text_bytes: int = 890,
    **entries: Any,
) -> RunFolder:
    """A run as training would have recorded it."""
    seeds = {"training.init_seed": seed, "training.data_seed": seed}
    config = resolve(BASE, {**seeds, **(changes or {})})
    folder = RunFolder(Path("results") / suite / "runs" / run_id(config, data["hash"], source))
    manifest = {
        "run_id": folder.id,
        "suite": suite,
        "variant": variant,
        "seed": seed,
        "phase": "report",
        "outcome": outcome,
        "steps": config.training.total_steps,
        "config": config.model_dump(mode="json"),
        "data": data,
        "provenance": {"source_hash": source, "versions": {"torch": "2.13.0"}},
        "evaluation": {"report": {"text_bytes": text_bytes}} if outcome == "finished" else {},
        **entries,
    }
    write_json(folder.manifest, manifest)
    names = {"val_bits_per_byte": value, "val_loss": value * np.log(2), "val_loss_bits": value}
    lines = [
        {"name": name, "value": number + (split == "tune"), "unit": "", "step": 10, "split": split}
        for split in ("tune", "report")
        for name, number in names.items()
    ]
    lines.append({"name": "train_loss", "value": value - 0.5, "unit": "nats", "step": 10, "split": "train"})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines if outcome == "finished"))
    return folder


def variant(name: str, values: dict[int, float], **options: Any) -> list[RunFolder]:
    return [record(name, seed, value, **options) for seed, value in values.items()]


def compare(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def numbers(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON of a comparison that is allowed."""
    capsys.readouterr()
    status = compare(*arguments, "--json")
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert compare(*arguments) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert compare(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_two_variants_are_paired_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    variant("none", dict(reversed(A.items())), changes=NONE)
    variant("base", B)
    (found,) = numbers(capsys, "s/none", "s/base")["comparisons"]
    a, b = list(A.values()), list(B.values())
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    assert found["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert found["p"] == found["p_holm"] == pytest.approx(test.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["verdict"] == "worse"
    assert found["seeds"] == [0, 1, 2, 3]
    assert found["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert {run["seed"]: run["value"] for run in found["a"]["runs"]} == A
    assert found["configuration"]["model.position"]["b"]["name"] == "lrpe"
    (turned,) = numbers(capsys, "s/base", "s/none")["comparisons"]
    assert turned["verdict"] == "better"
    assert turned["difference"] == pytest.approx(-found["difference"])
    shown = text(capsys, "s/none", "s/base")
    assert "worse" in shown
    assert "Paired by data seed: 0, 1, 2, 3; correlation 0.9" in shown
    assert "Smallest detectable difference" in shown
    assert "  model.position: none -> lrpe (form = cosine, layers = first)" in shown
    assert "  model.decay: none -> official (temperature = true)" in shown
    assert "seed" not in shown.split("Configuration")[1]


def test_every_kind_of_name(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = variant("none", A, changes=NONE)[1]
    other = variant("base", B)[1]
    variant("a/b", A, suite="t", changes={"model.gate": False})
    for name in (one.id, str(one.path), f"{one.path}/", str(one.manifest)):
        (found,) = numbers(capsys, name, other.id)["comparisons"]
        assert found["difference"] == pytest.approx(A[1] - B[1]), name
    for name in ("s/none", "results/s/none", str(results.resolve() / "s" / "none"), "t/a/b"):
        (found,) = numbers(capsys, name, "s/base")["comparisons"]
        assert found["n"] == 4, name
    shutil.copytree(results / "s", results / "copy")
    for name in ("s", "results/s", "results/s/"):
        rows = numbers(capsys, name, "copy")["comparisons"]
        assert sorted(row["variant"] for row in rows) == ["base", "none"], name
    moved = results.rename("elsewhere")
    (found,) = numbers(capsys, "s/none", "s/base", "--results", str(moved))["comparisons"]
    assert found["n"] == 4


def test_unknown_names_are_answered_with_near_ones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = variant("none", A, changes=NONE)[0]
    variant("base", B)
    wrong = f"{run.id[:-1]}{'0' if run.id[-1] != '0' else '1'}"
    assert f"did you mean {run.id}" in refused(capsys, wrong, "s/base")
    assert "results/s has no variant 'non', did you mean none?" in refused(capsys, "s/non", "s/base")
    assert "has no variant 'zzz', known: base, none" in refused(capsys, "s/base", "results/s/zzz")
    assert "did you mean s/none" in refused(capsys, "q/none", "s/base")
    assert "known: s" in refused(capsys, "zzzzzz", "s/base")
    assert "neither the folder of a run" in refused(capsys, ".", "s/base")
    assert "an empty name" in refused(capsys, "", "s/base")
    assert "a results folder and s/base is not" in refused(capsys, "s", "s/base")
    shutil.copytree(results / "s", results / "u")
    assert f"run {run.id} is in results/s" in refused(capsys, run.id, "s/base")
    run.manifest.write_text("{")
    assert "holds no record that counts" in refused(capsys, str(run.path), "s/base")
    assert "none is known" in refused(capsys, "s", "t", "--results", "absent")


def test_the_same_record_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = variant("none", A, changes=NONE)[0]
    assert "one and the same record" in refused(capsys, run.id, str(run.path))
    assert "one and the same record" in refused(capsys, "s/none", "results/s/none")
    assert "one and the same record" in refused(capsys, "s", "results/s")
    assert f"share {run.id}" in text(capsys, "s/none", run.id)


def test_folders_are_compared_variant_by_variant(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    tables: dict[str, list[list[float]]] = {"s": [], "t": []}
    for number, name in enumerate(("base", "none", "gate")):
        changes = [{}, NONE, {"model.gate": False}][number]
        for suite, steps in (("s", 0.0005), ("t", 0.0006)):
            values = 2 + number * 0.02 * (suite == "s") + 0.01 * draw.normal(size=4)
            rate = {"training.learning_rate": steps}
            variant(name, dict(enumerate(values)), suite=suite, changes={**changes, **rate})
            tables[suite].append(list(values))
    variant("alone", A, suite="t", changes={"model.tie_embeddings": False})
    found = numbers(capsys, "s", "t")
    p = [float(stats.ttest_rel(a, b).pvalue) for a, b in zip(tables["s"], tables["t"], strict=True)]
    rows = {row["variant"]: row for row in found["comparisons"]}
    assert rows.keys() == {"base", "none", "gate"}
    assert [rows[name]["p"] for name in ("base", "none", "gate")] == pytest.approx(p)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.minimum(np.array(p)[order] * [3, 2, 1], 1))
    holm = dict(zip(np.array(["base", "none", "gate"])[order], stepped, strict=True))
    assert {name: row["p_holm"] for name, row in rows.items()} == pytest.approx(holm)
    assert "only t has alone" in found["notes"]
    shown = text(capsys, "s", "t")
    assert "p (Holm)" in shown
    assert shown.count("training.learning_rate: 0.0005 -> 0.0006") == 1
    variant("x", A, suite="u")
    assert "no variant in common" in refused(capsys, "s", "u")


def test_a_report_says_which_runs_count(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none, base = variant("none", A, changes=NONE), variant("base", B)
    tuned = record("base", 100, 1.0, phase="tune")
    (found,) = numbers(capsys, "s/none", "s/base")["comparisons"]
    assert tuned.id not in [run["run_id"] for run in found["b"]["runs"]]
    longer = variant("none", A, changes={**NONE, "training.steps": 20})
    message = refused(capsys, "s/none", "s/base")
    assert "differ in training.steps" in message
    assert sum(run.id in message for run in [*none, *longer]) == 2
    with open(results / "s" / "runs.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(["variant", "seed", "run_id", "outcome"])
        for name, runs in (("none", none), ("base", base)):
            table.writerows([name, seed, run.id, "finished"] for seed, run in enumerate(runs))
        table.writerow(["base", 4, "0" * 12, "missing"])
        table.writerow(["base", 5, "", "missing"])
    (found,) = numbers(capsys, "s/none", "s/base")["comparisons"]
    assert found["n"] == 4
    assert [run["outcome"] for run in found["b"]["runs"]] == ["finished"] * 4 + ["missing"] * 2
    assert tuned.id not in [run["run_id"] for run in found["b"]["runs"]]
    assert "s/base, finished 4/6, 2 missing" in text(capsys, "s/none", "s/base")
    (results / "s" / "runs.csv").write_text("variant,seed\nbase,0\n")
    assert "--report writes it again" in refused(capsys, "s/none", "s/base")


def test_source_code_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    variant("none", A, changes=NONE)
    variant("base", B, source="9" * 12)
    assert f"differ in the source code: {'a' * 12} and {'9' * 12}" in text(capsys, "s/none", "s/base")
    record("base", 7, 2.0)
    assert "differ in the source hash" in refused(capsys, "s/none", "s/base")
    variant("twice", {0: 2.0}, changes={"model.gate": False})
    variant("twice", {1: 2.0}, changes={"model.gate": False, "training.data_seed": 0})
    assert "two runs with data seed 0" in refused(capsys, "s/twice", "s/none")


def test_other_texts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    variant("corpus", A, data={**DATA, "hash": "1" * 12, "corpus_hash": "2" * 12, "corpus": "other"})
    assert f"different texts: other ({'2' * 12}) and text" in refused(capsys, "s/corpus", "s/base")
    splits = {**DATA["splits"], "report": {"documents": 4, "tokens": 800, "bytes": 790}}
    variant("split", A, data={**DATA, "hash": "3" * 12, "splits": splits})
    assert "divide the corpus text differently" in refused(capsys, "s/split", "s/base")
    variant("bytes", A, text_bytes=880, changes=NONE)
    assert "not evaluated on the same text: 880, 890 bytes" in refused(capsys, "s/bytes", "s/base")


def test_other_tokens_leave_bits_per_byte(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    variant("bpe", A, data=SUBWORDS)
    for metric in ("val_loss_nats", "val_loss_bits", "train_loss_nats"):
        assert "use --metric val_bits_per_byte" in refused(capsys, "s/bpe", "s/base", "--metric", metric)
    (found,) = numbers(capsys, "s/bpe", "s/base")["comparisons"]
    assert found["p"] == pytest.approx(WELCH)


@pytest.mark.parametrize(
    "changes",
    [{"training.steps": 20}, {"training.batch_tokens": 512}, {"data.context": 64}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_order_of_the_data_is_not_paired(
    changes: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    variant("base", B)
    variant("other", A, changes=changes)
    found = numbers(capsys, "s/other", "s/base")
    assert not found["paired"]
    assert found["comparisons"][0]["p"] == pytest.approx(WELCH)
    shown = text(capsys, "s/other", "s/base")
    assert "Not paired (Welch's t-test): the order of the data differs with" in shown
    assert next(iter(changes)).split(".")[1] in shown


def test_seeds_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    variant("apart", {seed + 10: value for seed, value in A.items()}, changes=NONE)
    variant("one", {seed + 3: value for seed, value in A.items()}, changes={"model.gate": False})
    variant("two", {seed + 2: value for seed, value in A.items()}, changes={"model.tie_embeddings": False})
    assert "no data seed is common" in text(capsys, "s/apart", "s/base")
    assert "data seed 3 alone is common" in text(capsys, "s/one", "s/base")
    (found,) = numbers(capsys, "s/two", "s/base")["comparisons"]
    assert found["seeds"] == [2, 3]
    assert found["difference"] == pytest.approx(np.mean([A[0] - B[2], A[1] - B[3]]))
    assert "s/two: seeds without a partner are left out: 4, 5" in text(capsys, "s/two", "s/base")


def test_single_runs_have_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    one, base = record("none", 0, 2.5, changes=NONE), record("base", 0, 2.0)
    far = record("none", 1, 2.5, changes=NONE)
    (found,) = numbers(capsys, one.id, base.id)["comparisons"]
    assert found["difference"] == pytest.approx(0.5)
    assert found["verdict"] == "undecided"
    assert [found[key] for key in ("low", "p", "p_holm", "seeds_needed", "detectable_difference")] == [
        None
    ] * 5
    assert "undecided (one pair)" in text(capsys, one.id, base.id)
    assert "undecided (too few runs)" in text(capsys, far.id, base.id)


def test_runs_that_did_not_finish_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    variant("wild", {0: 2.1, 1: 2.2}, changes=NONE)
    record("wild", 2, 9.9, changes=NONE, outcome="diverged")
    lost = record("wild", 3, 2.0, changes=NONE)
    lost.metrics.write_text("")
    (found,) = numbers(capsys, "s/wild", "s/base")["comparisons"]
    assert found["n"] == 2
    outcomes = {run["seed"]: run["outcome"] for run in found["a"]["runs"]}
    assert outcomes == {0: "finished", 1: "finished", 2: "diverged", 3: "unmeasured"}
    assert "s/wild, finished 2/4, 1 diverged, 1 without a value" in text(capsys, "s/wild", "s/base")
    record("dead", 0, 9.9, changes={"model.gate": False}, outcome="diverged")
    (found,) = numbers(capsys, "s/dead", "s/base")["comparisons"]
    assert (found["n"], found["difference"], found["verdict"]) == (0, None, "undecided")
    assert "undecided (no pair)" in text(capsys, "s/dead", "s/base")


def test_one_variant_without_runs_does_not_cost_a_table_its_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    for suite, values in (("s", A), ("t", B)):
        rate = {"training.learning_rate": 0.0005 if suite == "s" else 0.0006}
        variant("base", values, suite=suite, changes=rate)
        record("none", int(suite == "t"), 2.0, suite=suite, changes={**NONE, **rate})
    found = numbers(capsys, "s", "t")
    assert found["paired"]
    assert {row["variant"]: row["n"] for row in found["comparisons"]} == {"base": 4, "none": 0}


def test_margin_metric_and_alpha(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    variant("near", {s: v + 0.001 * (-1) ** s for s, v in B.items()}, changes=NONE)
    shown = text(capsys, "s/near", "s/base", "--margin", "0.01")
    assert "equivalent within ±0.01" in shown
    assert "Equivalence is not tested" not in shown
    assert "Equivalence is not tested without --margin" in text(capsys, "s/near", "s/base")
    (bits,) = numbers(capsys, "s/near", "s/base")["comparisons"]
    (nats,) = numbers(capsys, "s/near", "s/base", "--metric", "val_loss_nats")["comparisons"]
    assert nats["a"]["mean"] == pytest.approx(bits["a"]["mean"] * np.log(2))
    (train,) = numbers(capsys, "s/near", "s/base", "--metric", "train_loss_nats")["comparisons"]
    assert train["a"]["mean"] == pytest.approx(bits["a"]["mean"] - 0.5)
    (wide,) = numbers(capsys, "s/near", "s/base", "--alpha", "0.01")["comparisons"]
    assert wide["high"] - wide["low"] > 1.5 * (bits["high"] - bits["low"])
    assert "did you mean val_loss_nats?" in refused(capsys, "s/near", "s/base", "--metric", "val_loss_nat")
    assert "--margin -1" in refused(capsys, "s/near", "s/base", "--margin", "-1")
    assert "--margin nan" in refused(capsys, "s/near", "s/base", "--margin", "nan")
    assert "alpha = 1.0" in refused(capsys, "s/near", "s/base", "--alpha", "1")


def test_what_stands_beside_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(1)
    values = dict(enumerate(2 + 0.01 * draw.normal(size=9)))
    variant("base", values)
    variant("none", {s: v + 0.002 * draw.normal() for s, v in values.items()}, changes=NONE)
    variant("again", dict(list(values.items())[:5]), changes={"model.gate": False})
    shown = text(capsys, "s/none", "s/base")
    assert "exact sign-flip p = " in shown
    assert "BCa bootstrap interval [" in shown
    assert "simulated coverage" in shown
    assert "Seeds needed in all to decide on the difference found, with 80 % power:" in shown
    assert "simulated coverage" not in text(capsys, "s/none", "s/base", "--alpha", "0.1")
    assert "BCa" not in text(capsys, "s/again", "s/base")


def test_a_repeat_with_other_weights_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    for seed, value in A.items():
        changes = {"training.init_seed": seed + 10**9}
        record("again", seed, value, changes=changes)
    shown = text(capsys, "s/again", "s/base")
    assert "Paired by data seed: 0, 1, 2, 3" in shown
    assert "the same but for the seeds of the initial weights" in shown


def test_foreign_manifests_are_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant("base", B)
    folder = results / "kernels" / "runs" / "x"
    write_json(folder / "manifest.json", {"run_id": "x", "outcome": "finished"})
    assert "no manifest of a training run" in refused(capsys, str(folder), "s/base")
    parts = {"config": {"model": 1, "data": 2, "training": 3}, "provenance": {"source_hash": "a"}}
    write_json(folder / "manifest.json", {"run_id": "x", **parts})
    assert "config is not that of a training run" in refused(capsys, str(folder), "s/base")
