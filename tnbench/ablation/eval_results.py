"""From the records of evaluations to what the reports of a suite are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tnbench.ablation.eval_plan import POSITIONS, EvalPlan, Recorded, in_keys
from tnbench.ablation.eval_queue import NO_WEIGHTS
from tnbench.ablation.suite import PlannedRun, Suite
from tnbench.errors import RequestError
from tnbench.evaluation import study, tasks
from tnbench.evaluation.evaluating import reservations
from tnbench.evaluation.groups import ACCURACIES, pooled, weighted
from tnbench.evaluation.items import NATS_PER_BIT, Item
from tnbench.profiling.lines import Line
from tnbench.report.evaluations import (
    BITS,
    BITS_METRIC,
    EVAL_COLUMNS,
    POSITION_COLUMNS,
    SCORE,
    Evaluated,
    Place,
)

Items = list[tuple[str, Item]]
"""Questions with the member of the group that asks them."""


def evaluated(suite: Suite, planned: Sequence[PlannedRun]) -> tuple[Evaluated | None, list[str]]:
    """What the records say of the reported runs, and what was wrong with them.

    Args:
        planned: the reported runs; of a suite whose tuning has not ended, none is known yet.
    """
    plan = suite.evals
    if plan is None:
        return None, []
    recorded = Recorded.read(plan)
    notes = [f"evaluations: {problem}" for problem in recorded.problems]
    rows: list[dict[str, Any]] = []
    answers: dict[Place, Any] = {}
    lines = {
        (run.folder.id, task.name): recorded.tasks.get(plan.requests(run.subject)[task.name], [])
        for run in planned
        for task in plan.tasks
    }
    for task in plan.tasks:
        every = [found for run in planned if (found := lines[run.folder.id, task.name])]
        measures = (SCORE, BITS) if any(_has_bits(found) for found in every) else (SCORE,)
        metric = _metric(task.name, every)
        for run in planned:
            found = lines[run.folder.id, task.name]
            made: list[dict[str, Any]] = [{} for _ in measures]
            if found:
                try:
                    asked = _items(plan, found)
                except RequestError as error:
                    asked = []
                    notes.append(f"run {run.folder.id}: its answers are lost: {error}")
                made = [_value(found, asked, metric) if m == SCORE else _bits(found, asked) for m in measures]
                for measure, one in zip(measures, made, strict=True):
                    share = one.pop("answers")
                    if share is not None and math.isfinite(one["value"]):
                        answers[run.variant.name, run.seed, task.name, measure] = share
            outcome = _outcome(plan, recorded, run, task.name, bool(found))
            rows += [
                {**_about(run, task.name, measure), **one, **outcome}
                for measure, one in zip(measures, made, strict=True)
            ]
        if not planned:  # which runs are reported depends on the tuning
            rows += [
                {**dict.fromkeys(EVAL_COLUMNS), "variant": variant.name, "seed": seed, "task": task.name,
                 "run_id": "", "measure": SCORE, "outcome": "not_finished", "reason": ""}
                for variant in suite.variants
                for seed in suite.seeds
            ]  # fmt: skip
    positions = [row for run in planned for row in _positions(plan, recorded, run)]
    every = [line for found in lines.values() for line in found]
    notes += dict.fromkeys(f"evaluation, {in_keys(text)}" for text in reservations(every))
    notes += _failures(plan, recorded, planned)
    notes += _strangers(plan, recorded, planned)
    return Evaluated(
        tasks={task.name: _label(task, plan.limit) for task in plan.tasks},
        values=pd.DataFrame(rows, columns=pd.Index(EVAL_COLUMNS)),
        answers=answers,
        positions=pd.DataFrame(positions, columns=pd.Index(POSITION_COLUMNS)),
        asked=_asked(plan),
    ), notes


def scores_said(suite: Suite, run: PlannedRun) -> list[str]:
    """`cloze acc 0.231, 2.92 bits per byte`: what the records say of a run, task by task."""
    assert suite.evals
    recorded, said = Recorded.read(suite.evals), []
    for name, key in suite.evals.requests(run.subject).items():
        lines = recorded.tasks.get(key, [])
        if lines and (metric := _metric(name, [lines])):
            bits = _bits(lines, [])["value"]
            said.append(f"{name} {metric} {_value(lines, [], metric)['value']:.3f}")
            said[-1] += f", {bits:.3f} bits per byte" if math.isfinite(bits) else ""
    return said


def _about(run: PlannedRun, task: str, measure: str) -> dict[str, Any]:
    known = {"variant": run.variant.name, "seed": run.seed, "run_id": run.folder.id}
    return {**dict.fromkeys(EVAL_COLUMNS), **known, "task": task, "measure": measure}


def _outcome(plan: EvalPlan, recorded: Recorded, run: PlannedRun, name: str, found: bool) -> dict[str, str]:
    """What became of an evaluation, and why."""
    if found:
        return {"outcome": "evaluated", "reason": ""}
    if run.folder.outcome() != "finished":
        return {"outcome": "not_finished", "reason": ""}
    failure = recorded.failures.get(plan.requests(run.subject)[name])
    if failure is not None:
        return {"outcome": str(failure["outcome"]), "reason": str(failure["reason"])}
    if not run.folder.weights.exists():
        return {"outcome": "no_weights", "reason": NO_WEIGHTS}
    return {"outcome": "missing", "reason": ""}


def _metric(task: str, every: Sequence[Sequence[Line]]) -> str:
    """The metric that stands for a task: the paper's, an accuracy, or the first that all its records have."""
    if not every:
        return ""
    common = [
        name for name in every[0][0]["metrics"] if all(name in one["metrics"] for f in every for one in f)
    ]
    wanted = (*(("acc_norm",) if task in tasks.NORMALISED else ()), *ACCURACIES)
    return next((name for name in (*wanted, *common) if name in common), "")


def _value(lines: Sequence[Line], asked: Items, metric: str) -> dict[str, Any]:
    """A run's score on a task; that of a group is the mean over all questions of its members."""
    sizes = [int(line["items"]) for line in lines]
    found = [line["metrics"].get(metric, {}) for line in lines]
    value = weighted((one.get("value") for one in found), sizes)
    errors = [one.get("stderr") for one in found]
    share = None
    if asked and all(metric in item.scores for _, item in asked):
        each = pd.Series([item.scores[metric] for _, item in asked], index=_questions(asked))
        # A metric that is no mean, such as a perplexity, has no share of single questions.
        share = each if math.isclose(float(each.mean()), value, rel_tol=1e-6, abs_tol=1e-9) else None
    better = next((one["higher_is_better"] for one in found if one.get("higher_is_better") is not None), True)
    return {
        "metric": metric,
        "higher_is_better": bool(better),
        "value": value,
        "stderr": pooled(errors, sizes),
        "questions": sum(sizes),
        "chance": weighted((line["chance"] for line in lines), sizes) if metric in ACCURACIES else math.nan,
        "answers": share,
    }


def _bits(lines: Sequence[Line], asked: Items) -> dict[str, Any]:
    """Bits per byte of the right answers: all bits over all bytes."""
    known = {
        "metric": BITS_METRIC,
        "higher_is_better": False,
        "questions": sum(line["items"] for line in lines),
    }
    pairs = [(item.gold_nats, item.gold_bytes) for _, item in asked]
    if asked and all(nats is not None and size for nats, size in pairs):
        bits, sizes = np.array(pairs, dtype=float).T
        share = pd.Series(bits / NATS_PER_BIT / sizes.mean(), index=_questions(asked))
        value = float(share.mean())
        spread = share - value * sizes / sizes.mean()  # of a ratio of means (delta method)
        error = float(spread.std(ddof=1) / math.sqrt(len(spread))) if len(spread) > 1 else math.nan
        return {**known, "value": value, "stderr": error, "answers": share}
    if len(lines) == 1 and _has_bits(lines):  # the answers are lost, what was made of them is not
        line = lines[0]
        error = float(line[f"{BITS_METRIC}_stderr"])
        return {**known, "value": float(line[BITS_METRIC]), "stderr": error, "answers": None}
    return {**known, "value": math.nan, "stderr": math.nan, "answers": None}


def _has_bits(lines: Sequence[Line]) -> bool:
    return bool(lines) and all(line[BITS_METRIC] is not None for line in lines)


def _items(plan: EvalPlan, lines: Sequence[Line]) -> Items:
    return [(str(line["task"]), item) for line in lines for item in study.read_items(plan.store, line)]


def _questions(asked: Items) -> list[str]:
    """What tells questions apart, and is the same in every evaluation."""
    return [f"{member} {item.id} {item.hash}" for member, item in asked]


def _positions(plan: EvalPlan, recorded: Recorded, run: PlannedRun) -> list[dict[str, Any]]:
    line = recorded.positions.get(plan.requests(run.subject).get(POSITIONS, ""))
    if line is None:
        return []
    known = {"variant": run.variant.name, "seed": run.seed, "run_id": run.folder.id}
    known |= {name: line[name] for name in ("trained_context", "bytes_per_token", "windows")}
    bins = zip(line["edges"], line["edges"][1:], line["bits"], line["stderr"], strict=False)
    return [
        {**known, "begin": low, "end": high, "bits_per_token": bits, "stderr": float(error)}
        for low, high, bits, error in bins
    ]


def _failures(plan: EvalPlan, recorded: Recorded, planned: Sequence[PlannedRun]) -> list[str]:
    """Every evaluation of a finished run that has come to nothing."""
    notes = []
    for run in planned:
        for name, key in plan.requests(run.subject).items():
            if recorded.has(key):
                continue
            found = _outcome(plan, recorded, run, name, found=False)
            if found["outcome"] in ("failed", "out_of_memory", "no_weights"):
                what = "out of memory: " if found["outcome"] == "out_of_memory" else ""
                notes.append(
                    f"{run.variant.name}, seed {run.seed} was not asked {name}: {what}{found['reason']}"
                    if name != POSITIONS
                    else f"{run.variant.name}, seed {run.seed} has no {POSITIONS}: {what}{found['reason']}"
                )
    return notes


def _strangers(plan: EvalPlan, recorded: Recorded, planned: Sequence[PlannedRun]) -> list[str]:
    """Evaluations of these runs that the suite does not list: a table may not be chosen from a larger one."""
    ids = {run.folder.id for run in planned}
    asked = {key for run in planned for key in plan.requests(run.subject).values()}
    others: dict[str, int] = {}
    for key, lines in recorded.tasks.items():
        line = lines[0]
        if key not in asked and line["identity"].get("run") in ids:
            name = line["group"] or line["task"]
            others[name] = others.get(name, 0) + 1
    if not others:
        return []
    names = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
    return [f"{plan.folder} also holds evaluations of these runs that the suite does not ask for: {names}"]


def _label(task: tasks.Asked, limit: int | None) -> str:
    shots = f", {task.fewshot}-shot" if task.fewshot else ""
    return f"{task.name}{shots}{f', first {limit}' if limit else ''}"


def _asked(plan: EvalPlan) -> str:
    options: Mapping[str, Any] = plan.options
    length = f"{options['max_length']} tokens" if options["max_length"] else "the trained context"
    return f"Models were asked in {options['precision']} on {options['device']}, {length} at a time"
