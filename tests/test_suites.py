"""Suites that tune, match and repeat: what they plan, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tnbench.ablation.suite import REPEAT_STRIDE, Suite, load_suite
from tnbench.data import TokenData
from tnbench.errors import RequestError
from tnbench.report.results import METRICS

BASE = {
    "model.width": 32,
    "model.layers": 2,
    "model.heads": 4,
    "model.channel_width": 64,
    "data.context": 32,
    "training.steps": 4,
    "training.batch_tokens": 128,
}
RATE = "training.learning_rate"
TUNE = {"grid": {RATE: [0.004, 0.001, 0.002]}, "widen": 1}


def suite(
    folder: Path, variants: dict[str, Any], options: dict[str, Any] | None = None, **more: Any
) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "variants": variants, **more}))
    return load_suite(str(path), folder / "results", quiet=True, **(options or {}))


def refused(folder: Path, **keys: Any) -> str:
    variants = keys.pop("variants", {"base": {}, "other": {"model.gate": False}})
    with pytest.raises(RequestError) as error:
        suite(folder, variants, **keys)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_repeat_shares_the_data_order_and_draws_its_own_weights(tmp_path):
    found = suite(tmp_path, {"a": {}, "b": {"repeat": True}, "c": {"repeat": True}}, seeds=[3])
    seeds = [(run.config.training.init_seed, run.config.training.data_seed) for run in found.runs()]
    assert seeds == [(3, 3), (3 + REPEAT_STRIDE, 3), (3 + 2 * REPEAT_STRIDE, 3)]
    assert found.base == "a"
    assert len({run.folder.id for run in found.runs()}) == 3


def test_a_repeat_of_another_variant_is_counted_by_its_configuration(tmp_path):
    no_gate = {"model.gate": False}
    found = suite(tmp_path, {"b": {"repeat": True}, "c": no_gate, "d": {**no_gate, "repeat": True}})
    assert found.base == "base"
    assert [(one.name, one.repeat) for one in found.variants] == [("base", 0), ("b", 1), ("c", 0), ("d", 1)]


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"a": {}, "b": {"model.gate": True}}, "same configuration as variant 'a'"),
        ({"a": {}, "b": {"repeat": False}}, "the only value is true"),
        ({"a": {}, "b": {"repeat": 3}}, "the only value is true"),
        ({"base": {"repeat": True}}, "variant named base is a repeat"),
    ],
)
def test_duplicates_are_refused_but_for_repeats(tmp_path, variants, words):
    assert words in refused(tmp_path, variants=variants)


def test_matching_gives_a_variant_what_it_lacks(tmp_path):
    found = suite(tmp_path, {"gate": {}, "no-gate": {"model.gate": False}}, match={"by": "parameters"})
    base, variant = found.variants
    assert base.matched is None
    assert variant.matched is not None
    ratio = variant.parameters["non_embedding"] / base.parameters["non_embedding"]
    assert ratio == pytest.approx(1 + variant.matched.residual)
    assert abs(ratio - 1) <= 0.005
    assert variant.config.model.channel_width > 64
    assert variant.diff == {"model.gate": False}


def test_what_cannot_be_matched_is_refused_with_its_line(tmp_path):
    text = refused(
        tmp_path,
        variants={
            "a": {},
            "b": {"model.gate": False, "model.channel_width": 64, "model.width": 32, "model.heads": 4},
        },
        match={"by": "parameters"},
    )
    assert "variants.b" in text


def test_tuning_comes_first_and_the_report_waits_for_it(tmp_path):
    found = suite(tmp_path, {"a": {}, "b": {"model.gate": False}}, tune=TUNE)
    runs = found.runs()
    assert {run.phase for run in runs} == {"tune"}
    assert len(runs) == 2 * 2 * 3  # variants, seeds, points
    assert [run.point[RATE] for run in runs[:6:2]] == [0.001, 0.002, 0.004]
    assert {run.config.training.learning_rate for run in runs} == {0.001, 0.002, 0.004}
    assert {run.seed for run in runs} == {100, 101}
    assert len({run.folder.id for run in runs}) == len(runs)


def test_a_uniform_prediction_is_the_ceiling_of_the_sensitivity(tmp_path):
    """Bytes and end of text, all equally likely: log2 257 bits per token, and one token per byte."""
    import math

    found = suite(tmp_path, {"a": {}, "b": {"model.gate": False}}, tune=TUNE)
    assert found._uniform(found.variants[0]) == pytest.approx(math.log2(257), rel=1e-3)
    nats = suite(tmp_path, {"a": {}, "b": {"repeat": True}}, tune=TUNE, analysis={"metric": "val_loss_nats"})
    assert nats._uniform(nats.variants[0]) == pytest.approx(math.log(257), rel=1e-3)


def test_seeds_of_tuning_and_report_stay_apart(tmp_path):
    assert "100 is both" in refused(tmp_path, tune=TUNE, seeds={"report": [99, 100]})
    assert "1 is both" in refused(tmp_path, tune=TUNE, seeds={"report": 3, "tune": [1]})
    assert "tuning seed" in refused(tmp_path, tune=TUNE, options={"seeds": 101})
    assert len(suite(tmp_path, {"a": {}}, seeds={"report": [99, 100]}).runs()) == 2  # nothing is tuned


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tune": {"grid": {RATE: [0.001]}}}, "2 to 50 different positive numbers"),
        ({"tune": {"grid": {RATE: [0.001, 0.001]}}}, "2 to 50 different positive numbers"),
        ({"tune": {"grid": {RATE: [0.0, 0.001]}}}, "2 to 50 different positive numbers"),
        ({"tune": {"grid": {RATE: [True, 0.001]}}}, "2 to 50 different positive numbers"),
        ({"tune": {"grid": {RATE: 0.001}}}, "2 to 50 different positive numbers"),
        ({"tune": {"grid": {"training.steps": [10, 20]}}}, "training.steps cannot be tuned"),
        ({"tune": {"grid": {"model.width": [32, 64]}}}, "model.width cannot be tuned"),
        ({"tune": {"grid": {}}}, "expected keys with their values"),
        ({"tune": {"grid": [1, 2]}}, "expected keys with their values"),
        ({"tune": {"widen": 1}}, "tune.grid is missing"),
        ({"tune": {**TUNE, "widen": -1}}, "tune.widen = -1"),
        ({"tune": {**TUNE, "trials": 3}}, "unknown key tune.trials"),
        ({"tune": TUNE, "analysis": {"metric": "train_loss_nats"}}, "tuning needs a metric of validation"),
        ({"tune": TUNE, "variants": {"a": {}, "b": {RATE: 0.003}}}, f"{RATE} is tuned"),
        ({"tune": TUNE, "options": {"settings": {RATE: 0.003}}}, f"{RATE} is tuned"),
        ({"tune": TUNE, "options": {"settings": {"training.evaluations": 0}}}, "training.evaluations = 0"),
        ({"match": {"by": "size"}}, "known: parameters, flops, state"),
        ({"match": {"by": "parameters", "tolerance": 0}}, "match.tolerance = 0"),
        ({"analysis": {"margin": 0}}, "analysis.margin = 0"),
        ({"analysis": {"margin": -0.1}}, "analysis.margin = -0.1"),
        ({"seeds": {"report": 10**9}}, "1 to 10000"),
        ({"seeds": [10**9]}, "seeds"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, keys, words):
    assert words in refused(tmp_path, **keys)


def test_the_hash_of_a_suite_covers_its_analysis(tmp_path):
    variants = {"a": {}, "b": {"model.gate": False}}
    plain = suite(tmp_path, variants).digest()
    assert suite(tmp_path, variants, analysis={"margin": 0.01}).digest() != plain
    assert suite(tmp_path, variants, tune=TUNE).digest() != plain


def test_every_metric_that_tuning_may_use_has_a_uniform_prediction(tmp_path):
    for name, metric in METRICS.items():
        if metric.split == "tune" and metric.curve in TokenData.METRICS:
            found = suite(tmp_path, {"a": {}, "b": {"repeat": True}}, tune=TUNE, analysis={"metric": name})
            assert found._uniform(found.variants[0]) > 0


def test_a_text_has_no_answers(tmp_path):
    variants = {"a": {}, "b": {"model.gate": False}}
    said = refused(tmp_path, variants=variants, analysis={"metric": "val_answer_error"})
    assert "no such value; known for it: val_bits_per_byte, val_loss_nats, val_loss_bits" in said


@pytest.mark.parametrize("name", ["evals", "kernels", "models"])
def test_folders_of_other_records_are_no_suites(name, tmp_path):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "variants": {"a": {}}}))
    with pytest.raises(RequestError, match="holds other records; give the suite another name"):
        load_suite(str(path), tmp_path / "results", quiet=True)
