"""The committed records of recall and other domains: tables follow from the runs, and the docs from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tnbench.records import RunFolder, read_metrics
from tnbench.report import words
from tnbench.report.results import METRICS
from tnbench.statistics import compare

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
RECALL = ("recall-mqar", "recall-needle")
DOMAINS = {"digits": ("val_pixel_bits", "val_class_error"), "series": ("val_sample_bits", "val_class_error")}


def runs_of(suite: str) -> Any:
    return pd.read_csv(REFERENCE / suite / "runs.csv")


def spread(values: Any, places: int = 3) -> str:
    """The mean of the seeds, with the lowest and the highest."""
    return f"{values.mean():.{places}f} ({values.min():.{places}f} to {values.max():.{places}f})"


def verdict(suite: str, variant: str, metric: str) -> str:
    """Difference to the base and the verdict on it, judged anew from the runs."""
    runs, summary = runs_of(suite), pd.read_csv(REFERENCE / suite / "summary.csv")
    names: list[str] = summary["variant"].tolist()
    if variant == names[0]:
        return "base"
    margin = float(pd.read_csv(REFERENCE / suite / "comparisons.csv")["margin"].iloc[0])
    of = {name: runs[runs["variant"] == name].set_index("seed")[metric].astype(float) for name in names}
    pairs = [(of[name].to_numpy(), of[names[0]].to_numpy()) for name in names[1:]]
    found = compare(pairs, alpha=0.05, margin=margin if metric == summary["metric"].iloc[0] else None)
    one = found[names.index(variant) - 1]
    return f"{words.difference(one.difference)}: {words.verdict(one)}"


def recall_table(suite: str) -> list[str]:
    """The table of a suite of recall, in Markdown."""
    runs = runs_of(suite)
    levels = [name for name in runs if str(name).startswith("val_answer_error@")]
    heads = ["variant", "state", *(f"accuracy, {name.partition('@')[2]}" for name in levels), "wrong answers"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|" + "---|" * (len(levels) + 1)]
    for variant in runs_in_order(suite):
        mine = runs[runs["variant"] == variant]
        cells = [
            variant,
            f"{int(mine['state_size'].iloc[0]):,}",
            *(spread(1 - mine[name]) for name in levels),
        ]
        lines.append(f"| {' | '.join([*cells, verdict(suite, variant, 'val_answer_error')])} |")
    return lines


def domain_table(suite: str) -> list[str]:
    """The table of a suite of another domain, in Markdown."""
    bits, wrong = DOMAINS[suite]
    runs = runs_of(suite)
    heads = ["variant", METRICS[bits].unit, "against the base", "class accuracy", "wrong classes"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for variant in runs_in_order(suite):
        mine = runs[runs["variant"] == variant]
        cells = [variant, spread(mine[bits]), verdict(suite, variant, bits), spread(1 - mine[wrong])]
        lines.append(f"| {' | '.join([*cells, verdict(suite, variant, wrong)])} |")
    return lines


def runs_in_order(suite: str) -> list[str]:
    return pd.read_csv(REFERENCE / suite / "summary.csv")["variant"].tolist()


@pytest.mark.parametrize("suite", [*RECALL, *DOMAINS])
def test_tables_hold_what_the_runs_recorded(suite):
    runs = runs_of(suite)
    assert (runs["outcome"] == "finished").all()
    assert set(runs["seed"]) == {0, 1, 2}
    for row in runs.to_dict("records"):
        folder = RunFolder(REFERENCE / suite / "runs" / row["run_id"])
        assert folder.outcome() == "finished"
        values, problems = read_metrics(folder.metrics)
        assert not problems
        final = {value["name"]: value["value"] for value in values if value["split"] == "report"}
        assert {name: row[name] for name in final if name in row} == {
            n: v for n, v in final.items() if n in row
        }
        assert any(name.startswith("val_") and name in row for name in final)
    tuning: Any = pd.read_csv(REFERENCE / suite / "tuning.csv")
    rates = tuning.groupby("variant")["training.learning_rate"].apply(lambda column: tuple(sorted(column)))
    assert rates.nunique() == 1, "not every variant had the same grid"
    assert set(tuning["seed"]).isdisjoint(runs["seed"])


@pytest.mark.parametrize("suite", [*RECALL, *DOMAINS])
def test_verdicts_follow_from_the_runs(suite):
    comparisons: Any = pd.read_csv(REFERENCE / suite / "comparisons.csv")
    for row in comparisons.to_dict("records"):
        assert row["verdict"] in verdict(suite, row["variant"], row["metric"])


@pytest.mark.parametrize("suite", RECALL)
def test_docs_of_recall_say_what_the_records_say(suite):
    assert "\n".join(recall_table(suite)) in (ROOT / "docs" / "recall.md").read_text()


@pytest.mark.parametrize("suite", DOMAINS)
def test_docs_of_domains_say_what_the_records_say(suite):
    assert "\n".join(domain_table(suite)) in (ROOT / "docs" / "domains.md").read_text()


@pytest.mark.parametrize("suite", [*RECALL, *DOMAINS])
def test_records_are_small_and_of_one_code(suite):
    folders = list((REFERENCE / suite / "runs").iterdir())
    manifests = [json.loads((path / "manifest.json").read_text()) for path in folders]
    assert len({manifest["provenance"]["source_hash"] for manifest in manifests}) == 1
    assert len({manifest["data"]["content_hash"] for manifest in manifests}) == 1
    assert all((path / "metrics.jsonl").stat().st_size < 30_000 for path in folders)
