"""Figures of what breaks a model: depth without nonlinearity, learning rates up to divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import figure_records
import pytest
from matplotlib.figure import Figure

from tnbench.paper_figures import loss_units, nonlinearity, norm_scope, stability
from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.verdicts import Verdict

BASE = [1.000, 1.012, 0.991, 1.006, 0.997]
NOISE = [0.0004, -0.0006, 0.0002, -0.0001, 0.0003]


def shifted(by: float) -> list[float]:
    return [base + by + one for base, one in zip(BASE, NOISE, strict=True)]


def depths(folder: Path, shallow: float, deep: float) -> None:
    values = {
        "shallow-sglu": BASE,
        "shallow-swiglu": shifted(shallow),
        "deep-sglu": [base - 0.2 for base in BASE],
        "deep-swiglu": [value - 0.2 - noise / 2 for value, noise in zip(shifted(deep), NOISE, strict=True)],
    }
    suite = figure_records.suite(folder, "nonlinearity", values)
    for path in (suite / "runs").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["config"]["model"]["layers"] = 8 if path.parent.name[:2] in ("02", "03") else 2
        path.write_text(json.dumps(manifest))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "forest", lambda *_: Figure())


@pytest.mark.usefixtures("undrawn")
def test_each_depth_against_its_own_and_both_together(tmp_path: Path):
    depths(tmp_path, -0.01, -0.04)
    built = nonlinearity.build(Records(tmp_path))
    assert [finding.verdict for finding in built.findings] == ["better"] * 3
    found = {row.subject: row for row in built.rows}
    noise = sum(NOISE) / 5
    for name, difference, layers in (
        ("SwiGLU, shallow", -0.01 + noise, "2 layers"),
        ("SwiGLU, deep", -0.04 + noise / 2, "8 layers"),
        ("deep less shallow", -0.03 - noise / 2, "2 and 8 layers"),
    ):
        row = found[name]
        assert row.difference.mean == pytest.approx(difference)
        assert (row.difference.n, row.at) == (5, layers)
        assert len(row.runs) == (20 if "both" in row.claim or name.startswith("deep less") else 10)
    assert found["SwiGLU, deep"].relative.mean == pytest.approx((-0.04 + noise / 2) / 0.8012, rel=0.01)
    assert math.isnan(found["deep less shallow"].relative.mean)


@pytest.mark.usefixtures("undrawn")
def test_the_same_gain_at_both_depths_is_no_interaction(tmp_path: Path):
    depths(tmp_path, -0.02, -0.02)
    verdicts = [finding.verdict for finding in nonlinearity.build(Records(tmp_path)).findings]
    assert verdicts == ["better", "better", "equivalent"]


@pytest.mark.parametrize("module", [nonlinearity, norm_scope, stability])
def test_without_records_nothing_is_measured(module, tmp_path: Path):
    built = module.build(Records(tmp_path))
    assert {finding.verdict for finding in built.findings} == {Verdict.missing}
    assert {finding.command for finding in built.findings} == {f"tnbench ablate {module.ABOUT.name}"}


def test_the_printed_losses_are_in_bits(tmp_path: Path):
    """2^2.248 = 4.75 stands beside 4.770; one row fits nothing (2^2.061 = 4.17, not 4.765)."""
    built = loss_units.build(Records(tmp_path))
    (finding,) = built.findings
    assert finding.verdict == "bits"
    assert "30 of 32 perplexities fit 2^loss" in finding.because
    assert "not Transformer, 1B (v1), Transformer, 1B (v2); 0 fit the losses read as nats" in finding.because
    paper = [row for row in built.rows if not row.ours]
    assert {row.note for row in paper} == {"bits", "fits neither"}


RATES = (0.002, 0.008, 0.032)


def searched(folder: Path, losses: dict[str, list[list[float | None]]]) -> Records:
    """A suite of stability: variant → at each of `RATES`, the losses of two seeds; None: diverged."""
    suite = figure_records.suite(folder, "stability", dict.fromkeys(losses, BASE))
    lines = ["variant,seed,run_id,outcome,reason,stopped_step,value,training.learning_rate"]
    for variant, points in losses.items():
        for rate, point in zip(RATES, points, strict=True):
            for seed, loss in enumerate(point):
                outcome = "finished" if loss is not None else "diverged"
                run = f"{variant}-{rate}-{seed}"
                lines.append(f"{variant},{seed},{run},{outcome},,,{'' if loss is None else loss},{rate}")
                counts = {"spikes": 2 if loss is None else 0, "largest": 3.5 + rate}
                manifest = {
                    "outcome": outcome,
                    "stability": {
                        "loss": {**counts, "not_finite": 0},
                        "gradient_norm": {**counts, "not_finite": int(loss is None)},
                    },
                }
                (suite / "runs" / run).mkdir()
                (suite / "runs" / run / "manifest.json").write_text(json.dumps(manifest))
    excess = [f"{variant},{0.1 * (n + 1):.1f}" for n, variant in enumerate(losses)]
    (suite / "summary.csv").write_text("\n".join(["variant,sensitivity", *excess]) + "\n")
    (suite / "tuning.csv").write_text("\n".join(lines) + "\n")
    return Records(folder)


GOOD: list[list[float | None]] = [[2.6, 2.6], [2.4, 2.5], [2.5, 2.6]]
WORN: list[list[float | None]] = [[2.6, 2.6], [2.4, 2.5], [2.5, None]]
HIGH: list[list[float | None]] = [[2.6, 2.6], [2.4, 2.5], [2.5, 3.0]]


@pytest.mark.parametrize(
    ("own", "others", "verdict"),
    [
        (GOOD, GOOD, "as far as the others"),
        (GOOD, WORN, "further than the others"),
        (WORN, GOOD, "less far than the others"),
        (HIGH, GOOD, "less far than the others"),
    ],
)
def test_how_far_a_norm_goes(own, others, verdict: str, tmp_path: Path):
    losses = {"srmsnorm-bf16": own, "rmsnorm-bf16": others, "layernorm-bf16": others}
    built = stability.build(searched(tmp_path, losses))
    bf16, fp16 = built.findings
    assert (bf16.verdict, fp16.verdict) == (verdict, Verdict.missing)
    lost = own is WORN
    rate, spikes = 0.032 if own is GOOD else 0.008, f"{4 * lost} spikes, {lost:d} step"
    text = f"SRMSNorm up to {rate:g} (sensitivity 0.10 bits per byte, {spikes}"
    assert text in bf16.because
    rows = [row for row in built.rows if row.subject == "SRMSNorm" and "0.032" in row.at]
    assert [row.measure for row in rows] == [
        "validation loss",
        "largest gradient norm",
        "spikes",
        "not finite",
    ]
    assert [row.value.mean for row in rows[1:]] == [3.532, 4 * lost, lost]
    assert rows[0].note == ("1 of 2 diverged" if lost else "")


def test_a_norm_that_fails_in_between_does_not_go_further():
    from pandas import DataFrame

    lines = [("srmsnorm", "bf16", rate, loss) for rate, loss in ((1, 9.0), (2, 2.0), (4, 2.5), (8, 2.1))]
    frame = DataFrame(lines, columns=["norm", "precision", "rate", "loss"])
    assert stability.largest(frame, "srmsnorm", "bf16") == 2
    assert math.isnan(stability.largest(frame, "srmsnorm", "fp16"))
