"""The committed reference records: what the method says where nothing differs, and where much does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tnbench import cli
from tnbench.records import RunFolder, read_metrics

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"


def compared(capsys: pytest.CaptureFixture[str], variant: str) -> dict:
    """`tnbench compare` of a variant with the base of the A/A suite, from the runs' own records."""
    names = [f"noise-floor/{variant}", "noise-floor/transnormerllm"]
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", *names, "--results", str(REFERENCE), "--margin", "0.05", "--json"])
    assert left.value.code == 0
    return json.loads(capsys.readouterr().out)["comparisons"][0]


@pytest.mark.parametrize("variant", ["again", "once-more"])
def test_the_base_against_itself_is_never_better_or_worse(variant, capsys):
    found = compared(capsys, variant)
    assert found["n"] == 8
    assert found["verdict"] in ("equivalent", "undecided")


def test_a_model_that_sees_no_order_is_worse(capsys):
    found = compared(capsys, "no-position")
    assert found["verdict"] == "worse"
    assert found["difference"] > 0.3


@pytest.mark.parametrize("suite", ["noise-floor", "quickstart", "architecture"])
def test_reports_hold_what_the_records_say(suite):
    """Every final value in runs.csv is the one in the run's own metrics."""
    runs: Any = pd.read_csv(REFERENCE / suite / "runs.csv")
    assert len(runs)
    for row in runs[runs["outcome"] == "finished"].itertuples():
        values, problems = read_metrics(RunFolder(REFERENCE / suite / "runs" / str(row.run_id)).metrics)
        assert not problems
        final = [v["value"] for v in values if (v["name"], v["split"]) == ("val_bits_per_byte", "report")]
        assert final == [row.val_bits_per_byte]


def test_verdicts_of_the_a_a_suite_are_those_in_its_table():
    verdicts: Any = pd.read_csv(REFERENCE / "noise-floor" / "comparisons.csv").set_index("variant")["verdict"]
    assert verdicts["no-position"] == "worse"
    assert set(verdicts.drop("no-position")) <= {"equivalent", "undecided"}
