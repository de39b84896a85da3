"""From the records of a suite's runs to the tables that reports are made of."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from tnbench.ablation.eval_results import evaluated
from tnbench.ablation.suite import PlannedRun, Suite, Variant
from tnbench.ablation.suite_file import shipped_suites
from tnbench.config import NO_TOKENIZER
from tnbench.records import ENDED, read_metrics
from tnbench.report.evaluations import Evaluated
from tnbench.report.results import CURVE_COLUMNS, RUN_COLUMNS, TUNING_COLUMNS, Matching, SuiteResults

FINAL = {
    "val_bits_per_byte": "val_bits_per_byte",
    "val_loss_nats": "val_loss",
    "val_loss_bits": "val_loss_bits",
}
"""Column of `runs` and the recorded value on the report split behind it; others go by their own names."""
COPIED = ("reason", "stopped_step", "tokens_per_second", "peak_memory_bytes", "started", "ended", "attempts")


def collect(suite: Suite) -> SuiteResults:
    """Read the records of every planned run; runs of other configurations or code are counted, not shown."""
    rows, tuning, curves, notes = [], [], [], []
    manifests: list[dict[str, Any]] = []
    planned, found = suite.runs(), suite.search()
    grid = suite.file.tune.grid if suite.file.tune else {}
    for run in planned:
        problem = run.folder.problem()
        own = None if problem else run.folder.read_manifest()
        if problem:
            notes.append(f"run {run.folder.id} counts as missing: {problem} ({run.folder.path})")
        manifests += [own] if own else []
        values, problems = read_metrics(run.folder.metrics) if own else ([], [])
        notes += problems
        notes += [f"run {run.folder.id}: {note}" for note in (own or {}).get("notes", [])]
        row = _row(run, own or {}, values)
        if run.phase == "tune":
            tuning.append(_tuning_row(suite, run, row))
            continue
        rows.append(row)
        curves += [_curve_row(run, value) for value in values if value.get("split") != "report"]
    if found and not found.choices:  # which runs will be reported depends on it
        rows += [_unchosen(variant, seed) for seed in suite.seeds for variant in suite.variants]
        notes.append(_untuned(suite, tuning))
    evals, problems = evaluated(suite, [run for run in planned if run.phase == "report"])
    notes += problems
    notes += _plan_changes(suite, manifests)
    notes += _strangers(suite, {run.folder.id for run in planned})
    return SuiteResults(
        name=suite.name,
        title=suite.file.title or suite.name,
        base=suite.base,
        diffs={variant.name: variant.diff for variant in suite.variants},
        runs=_with_scores(
            pd.DataFrame([{suite.file.analysis.metric: math.nan, **row} for row in rows]), evals
        ),
        curves=pd.DataFrame(curves, columns=list(CURVE_COLUMNS)),
        metric=suite.file.analysis.metric,
        alpha=suite.file.analysis.alpha,
        margin=suite.file.analysis.margin,
        fixed=suite.file.fixed,
        facts=_facts(suite, manifests),
        notes=list(dict.fromkeys(notes)),
        matched_by=suite.file.match.by if suite.file.match else "",
        matching={
            variant.name: Matching(variant.matched.changed, variant.matched.residual)
            for variant in suite.variants
            if variant.matched
        },
        tuning=pd.DataFrame(tuning, columns=[*TUNING_COLUMNS, *grid]),
        choices=found.choices if found else {},
        repeats=frozenset(variant.name for variant in suite.variants if variant.repeat),
        evals=evals,
    )


def _with_scores(runs: Any, evals: Evaluated | None) -> Any:
    """The runs with a column for each task and metric: `arc_easy acc`, `arc_easy gold_bits_per_byte`."""
    if evals is None:
        return runs
    for task in evals.tasks:
        found = evals.values[(evals.values["task"] == task) & evals.values["metric"].astype(bool)]
        for metric, values in found.dropna(subset="metric").groupby("metric", sort=False):
            by_run = values.set_index("run_id")["value"].astype(float)
            runs = runs.assign(**{f"{task} {metric}": runs["run_id"].map(by_run)})
    return runs


def _unchosen(variant: Variant, seed: int) -> dict[str, Any]:
    """A reported run whose hyperparameters are not known yet."""
    training = variant.config.training
    return {
        **dict.fromkeys(RUN_COLUMNS, math.nan),
        "variant": variant.name,
        "seed": seed,
        "run_id": "",
        "outcome": "missing",
        "reason": "",
        "host": "",
        "parameters": variant.parameters["total"],
        "non_embedding_parameters": variant.parameters["non_embedding"],
        "flops_per_token": variant.flops_per_token,
        "state_size": variant.state_size,
        "steps": training.total_steps,
        "tokens": training.total_steps * training.batch_tokens,
    }


def _row(run: PlannedRun, manifest: dict[str, Any], values: list[dict[str, Any]]) -> dict[str, Any]:
    row = _unchosen(run.variant, run.seed)
    outcome = manifest.get("outcome") or ("interrupted" if manifest else "missing")
    last = {value["name"]: value for value in values if value.get("split") == "train"}
    row.update(
        run_id=run.folder.id,
        outcome=outcome,
        host=manifest.get("provenance", {}).get("host", ""),
        train_seconds=manifest.get("training_seconds", math.nan),
        train_loss_nats=last.get("train_loss", {}).get("value", math.nan),
        epochs=last.get("epochs", {}).get("value", math.nan),
    )
    row.update({name: manifest[name] for name in COPIED if manifest.get(name) is not None})
    if outcome in ENDED:
        final = {value["name"]: value["value"] for value in values if value.get("split") == "report"}
        row.update({column: final.get(name, math.nan) for column, name in FINAL.items()})
        row.update({name: value for name, value in final.items() if name not in FINAL.values()})
    return row


def _tuning_row(suite: Suite, run: PlannedRun, row: dict[str, Any]) -> dict[str, Any]:
    value = suite.tuned_value(run)
    value = math.nan if value is None or math.isinf(value) else value
    return {**{name: row.get(name) for name in TUNING_COLUMNS}, "value": value, **run.point}


def _untuned(suite: Suite, tuning: list[dict[str, Any]]) -> str:
    left = [row for row in tuning if row["outcome"] not in ENDED]
    lost = [row["run_id"] for row in tuning if row["outcome"] == "finished" and math.isnan(row["value"])]
    if lost and not left:
        return (
            f"tuning cannot choose: the value of {lost[0]} on the tune split is lost; delete "
            f"{suite.folder / 'runs' / lost[0]} and run the suite again"
        )
    return (
        f"tuning has not ended: {len(left)} of its {len(tuning)} runs are missing, so nothing is reported yet"
    )


def _curve_row(run: PlannedRun, value: dict[str, Any]) -> dict[str, Any]:
    known = {"variant": run.variant.name, "seed": run.seed, "run_id": run.folder.id}
    return {column: known.get(column, value.get(column)) for column in CURVE_COLUMNS}


def _plan_changes(suite: Suite, manifests: list[dict[str, Any]]) -> list[str]:
    """Whether the analysis and the seeds are those that were planned when the runs began."""
    notes = []
    others = [manifest for manifest in manifests if manifest.get("suite_hash") != suite.digest()]
    if others:
        notes.append(
            f"{len(others)} of {len(manifests)} runs began before the suite file said what it says now: its "
            f"analysis may have been chosen with results in sight"
        )
    planned = [set(manifest.get("planned_seeds", suite.seeds)) for manifest in manifests]
    if any(seeds < set(suite.seeds) for seeds in planned):
        notes.append(
            f"some runs began when {min(map(len, planned))} of these {len(suite.seeds)} seeds were planned: "
            f"if the table was read in between, its error is above alpha (docs/method.md)"
        )
    return notes


def _strangers(suite: Suite, planned: set[str]) -> list[str]:
    folder = suite.folder / "runs"
    others = (
        sum(1 for path in folder.iterdir() if path.is_dir() and path.name not in planned)
        if folder.is_dir()
        else 0
    )
    if not others:
        return []
    runs = "1 run" if others == 1 else f"{others} runs"
    return [
        f"{folder} also holds {runs} of other settings, seeds, data or code, which no number here includes"
    ]


def _facts(suite: Suite, manifests: list[dict[str, Any]]) -> dict[str, str]:
    base = next(variant for variant in suite.variants if variant.name == suite.base)
    training, data = base.config.training, suite.data_of(base)
    provenances = [manifest.get("provenance", {}) for manifest in manifests]
    tokens = training.total_steps * training.batch_tokens
    epochs = data.epochs(
        training.total_steps, training.batch_tokens // base.config.data.context, base.config.data.context
    )
    device = _all(manifest.get("device", "") for manifest in manifests) or "not run yet"
    if training.device == "cpu":
        device += f", {training.threads} thread{'s' if training.threads > 1 else ''} per run"
    facts = {
        "corpus": str(base.config.data.corpus),
        "tokenizer": "" if base.config.data.tokenizer == NO_TOKENIZER else base.config.data.tokenizer,
        "context": f"{base.config.data.context} tokens",
        "tokens per run": f"{tokens:,} ({epochs:.2g} epochs)",
        "device": device,
        "precision": training.precision,
        "learning rate": _learning_rate(suite, training.learning_rate),
        "versions": _all(_versions(provenance) for provenance in provenances),
        "commit": _all(_commit(provenance) for provenance in provenances),
        "source hash": _all(provenance.get("source_hash", "") for provenance in provenances),
        "suite": f"{suite.path.name} ({suite.digest()})",
        "command": command_again(suite),
    }
    if suite.file.paper.table:
        facts["paper"] = suite.file.paper.table
    return {key: value for key, value in facts.items() if value}


def _learning_rate(suite: Suite, rate: float) -> str:
    tune = suite.file.tune
    if tune is None or "training.learning_rate" not in tune.grid:
        return f"{rate:g}, not tuned per variant"
    grid = ", ".join(f"{value:g}" for value in tune.grid["training.learning_rate"])
    seeds = ", ".join(map(str, suite.file.seeds.tune))
    return f"tuned per variant on {grid}, widened at most {tune.widen} times at each end, with seeds {seeds}"


def _all(values: Iterable[str]) -> str:
    """What the runs have in common, or all that they have, each once."""
    return "; ".join(dict.fromkeys(value for value in values if value))


def _versions(provenance: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())


def _commit(provenance: dict[str, Any]) -> str:
    commit, diff = provenance.get("commit"), provenance.get("diff_hash")
    return f"{commit[:12]}{f' with uncommitted changes ({diff})' if diff else ''}" if commit else ""


def command_again(suite: Suite) -> str:
    """The command that makes these results again."""
    name = suite.name if shipped_suites().get(suite.name) == suite.path else str(suite.path)
    words = ["tnbench", "ablate", name]
    for key, value in suite.settings.items():
        if key != "training.device":
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    if suite.seeds != list(suite.file.seeds.report):
        words += ["--seeds", str(len(suite.seeds))]
    if suite.folder.parent != Path("results"):
        words += ["--results", str(suite.folder.parent)]
    return shlex.join(words)
