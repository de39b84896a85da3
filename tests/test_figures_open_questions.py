"""Figures of the open questions: recall, the strength of the decay, LRPE's phases."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import figure_records
import pandas as pd
import pytest
import yaml

from tnbench.ablation.suite import find_suite
from tnbench.errors import RequestError
from tnbench.paper_figures import decay_strength, phases, recall
from tnbench.paper_figures.shared.outputs import texts
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.profiling import phase_error_report
from tnbench.report.recall_plot import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
MODULES = (recall, decay_strength, phases)
LOSSES = {"official": [2.0, 2.1, 2.05], "fixed-0.5": [2.5, 2.6, 2.54], "fixed-0.9": [1.9, 2.0, 1.95]}
WEAK = {"fixed-1": [2.2, 2.31, 2.24]}


def suite_file(name: str) -> Mapping:
    return yaml.safe_load((ROOT / "ablations" / f"{name}.yaml").read_text())


def positions(folder: Path, values: Mapping[str, list[float]], begin: int = 1024) -> None:
    """The table of losses by position that a report would leave."""
    rows = [
        {"kind": "seed", "variant": variant, "seed": seed, "trained_context": 128, "begin": at, "end": 2 * at,
         "value": value + shift}
        for variant, found in values.items()
        for seed, value in enumerate(found)
        for at, shift in ((64, 7.0), (begin, 1.0))
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "positions.csv", index=False)


def verdicts(built: Built) -> dict[str, str]:
    return {one.claim.name: str(one.verdict) for one in built.findings}


# Without records, and from the committed ones


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_measured_without_records(module, tmp_path: Path):
    built = module.build(Records(tmp_path))
    assert not built.rows
    assert {one.verdict for one in built.findings} == {Verdict.missing}
    assert all(one.command and one.command in module.ABOUT.measure.command for one in built.findings)
    shown = [text.get_text() for axes in built.figure.axes for text in axes.texts]
    assert "not measured yet" in shown


@pytest.mark.parametrize("module", MODULES)
def test_tables_are_the_same_from_the_same_records(module):
    first, second = (texts(module.ABOUT, module.build(Records(REFERENCE))) for _ in range(2))
    assert first == second
    assert first["tex"].isascii()


def test_commands_name_shipped_suites():
    for module in (recall, decay_strength):
        for command in module.ABOUT.measure.command.split("; "):
            assert find_suite(command.removeprefix("tnbench ablate ")).is_file()


# Recall


def test_variants_that_recall_speaks_of_are_those_of_the_suites():
    for task in recall.TASKS:
        names = list(suite_file(task.suite)["variants"])
        asked = [task.variant(family) for family in recall.COMPARED]
        assert set(asked) < set(names)
        assert names[0] == task.variant("transnormerllm")
        assert all(any(name.startswith(family) for family in recall.FAMILIES) for name in names)


def test_recall_of_the_committed_records():
    built = recall.build(Records(REFERENCE))
    found = verdicts(built)
    table = pd.read_csv(REFERENCE / "recall-needle" / "comparisons.csv").set_index("variant")["verdict"]
    assert found["recall-needle-transformer"] == table["transformer"] == "better"
    assert found["recall-needle-no-decay"] == table["no-decay"]
    means = pd.read_csv(REFERENCE / "recall-mqar" / "recall.csv")
    wanted = means[(means["kind"] == "mean") & (means["variant"] == "no-decay-16")].set_index("level")
    rows = [
        row for row in built.rows if row.subject == "MQAR, no decay, 16 heads" and row.measure == "accuracy"
    ]
    assert {row.at: row.value.mean for row in rows} == pytest.approx(dict(wanted["accuracy"]))
    assert {row.note for row in rows} == {"1,024 values of state"}
    assert all(math.isnan(row.relative.mean) for row in built.rows), (
        "a share over a share near 0 says nothing"
    )


def test_recall_without_its_table_of_levels_has_verdicts_alone(tmp_path: Path):
    shutil.copytree(REFERENCE / "recall-needle", tmp_path / "recall-needle")
    (tmp_path / "recall-needle" / "recall.csv").unlink()
    built = recall.build(Records(tmp_path))
    assert verdicts(built)["recall-needle-transformer"] == "better"
    assert {row.measure for row in built.rows} == {"wrong answers"}


def test_a_damaged_table_is_told(tmp_path: Path):
    shutil.copytree(REFERENCE / "recall-needle", tmp_path / "recall-needle")
    (tmp_path / "recall-needle" / "recall.csv").write_text(",".join(COLUMNS[:3]) + "\n")
    with pytest.raises(RequestError, match="recall-needle --report writes it again"):
        recall.build(Records(tmp_path))


# Strength of the decay


def test_both_suites_have_the_same_decays():
    text, answers = (suite_file(name)["variants"] for name in (decay_strength.TEXT, decay_strength.RECALL))
    assert text == answers
    assert text["official"] == {}
    for name, diff in list(text.items())[1:]:
        assert diff == {"model.decay": {"name": "fixed", "value": decay_strength.factor(name)}}
    base, other = suite_file(decay_strength.TEXT)["base"], suite_file(decay_strength.FALLBACK)["base"]
    assert base == other, "runs of one suite can be shown in the place of the other's"


def test_three_decays_of_the_committed_records():
    """From the suite of lengths, until the suite of this figure has run; its own table's verdicts."""
    built = decay_strength.build(Records(REFERENCE))
    if not (REFERENCE / decay_strength.TEXT).exists():
        losses = pd.read_csv(REFERENCE / "positions" / "length" / "comparisons.csv").set_index("variant")
        found = verdicts(built)
        assert found["loss-weak"] == losses["verdict"]["fixed-0.999"] == "worse"
        assert found["loss-strong"] == losses["verdict"]["fixed-0.9"]
        assert found["recall-weak"] == "not measured yet"
        bins = pd.read_csv(REFERENCE / "positions" / "length" / "positions.csv")
        mean = bins[(bins["kind"] == "mean") & (bins["variant"] == "fixed-0.99") & (bins["begin"] == 1024)]
        row = next(
            one for one in built.rows
            if one.subject == "λ = 0.99" and one.measure == decay_strength.PANELS["beyond"]
        )  # fmt: skip
        assert row.value.mean == pytest.approx(mean["value"].item())
        assert row.value.low == pytest.approx(mean["low"].item())


def test_losses_and_what_lies_beyond_the_trained_length(tmp_path: Path):
    folder = figure_records.suite(tmp_path, "decay-strength", LOSSES | WEAK)
    positions(
        folder, {"official": [1.0, 1.1, 1.05], "fixed-0.5": [1.0, 1.1, 1.05], "fixed-1": [2.0, 2.2, 2.1]}
    )
    built = decay_strength.build(Records(tmp_path))
    found = verdicts(built)
    assert found["loss-strong"] == "worse"
    assert found["loss-weak"] == "worse"
    assert found["beyond-strong"] == "equivalent"
    assert found["beyond-weak"] == "worse"
    assert found["recall-strong"] == "not measured yet"
    because = {one.claim.name: one.because for one in built.findings}
    assert because["loss-weak"].startswith("λ = 1: +")
    assert "lowest of 3 fixed decays: λ = 0.9, 1.95" in because["loss-weak"]
    beyond = [row for row in built.rows if row.measure == decay_strength.PANELS["beyond"]]
    assert {row.subject: round(row.value.mean, 3) for row in beyond} == {
        "official": 2.05, "λ = 0.5": 2.05, "λ = 1": 3.1,
    }  # fmt: skip


def test_a_suite_that_was_not_read_so_far_says_nothing_about_it(tmp_path: Path):
    folder = figure_records.suite(tmp_path, "decay-strength", LOSSES | WEAK)
    positions(folder, LOSSES, begin=512)
    found = verdicts(decay_strength.build(Records(tmp_path)))
    assert found["loss-weak"] == "worse"
    assert found["beyond-weak"] == found["beyond-strong"] == "not measured yet"


def test_a_decay_that_diverged_is_noted(tmp_path: Path):
    figure_records.suite(tmp_path, "decay-strength", LOSSES | {"fixed-1": [None, 2.3, 2.2]})
    built = decay_strength.build(Records(tmp_path))
    assert built.notes == ["decay-strength, fixed-1: 1 of 3 runs diverged"]


def test_a_decay_that_forgets_nothing_has_a_place_of_its_own():
    places = decay_strength.Memories([0.5, 0.9, 1.0]).places
    assert places[0.5] == 2
    assert places[0.9] == pytest.approx(10)
    assert places[1.0] > 2 * places[0.9]


# Phases


def test_phases_of_the_committed_records():
    built = phases.build(Records(REFERENCE))
    assert set(verdicts(built).values()) == {"worse"}
    because = {one.claim.name: one.because for one in built.findings}
    assert "up to 0.5 rad before 256, 7.9 rad before 2,048" in because["bf16"]
    assert "from position 256 on, at distance 1" in because["bf16-positions"]
    assert "not finite from position 65,520 on" in because["fp16"]
    lost = [row for row in built.rows if row.note == "not finite"]
    assert {row.at for row in lost} == {"131072 positions"}
    ours = [row for row in built.rows if row.subject.startswith("ours") and row.unit == "rad"]
    assert max(row.value.mean for row in ours) < 0.004


def test_phases_without_an_error_are_equivalent(tmp_path: Path):
    """Were the official code's scores as near as ours, the figure would say so."""
    record = phase_error_report.read(REFERENCE / phase_error_report.FOLDER)
    ours = next(one for one in record["series"] if (one["dtype"], one["form"]) == ("bf16", "ours"))
    for one in record["series"]:
        if one["dtype"] == "bf16":
            one |= {"phase": ours["phase"], "score": ours["score"]}
    phase_error_report.write(tmp_path / phase_error_report.FOLDER, record)
    found = verdicts(phases.build(Records(tmp_path)))
    assert found == {
        "bf16": "equivalent",
        "bf16-positions": "equivalent",
        "bf16-theta": "equivalent",
        "fp16": "worse",
    }
