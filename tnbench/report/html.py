"""The report of a suite as one page that opens without a network."""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from tnbench.report import captions, eval_captions, eval_tables, frames, tables, words
from tnbench.report.drawing import inline_svg
from tnbench.report.results import OUTCOMES, SuiteResults, VariantSummary
from tnbench.report.tables import Cell, Column, Grid
from tnbench.statistics import Comparison

WIDEST = 10
"""Columns that a page shows without being scrolled sideways."""


def page(
    results: SuiteResults,
    curves: Figure,
    tuning: Figure | None = None,
    recall: Figure | None = None,
    positions: Figure | None = None,
) -> str:
    """The page, with everything in it: text, figures, tables, style and script.

    Args:
        results: the records of the suite.
        curves: what `plots.curves` made of them.
        tuning: what `tuning_plot.tuning` made of them, where there are tuning runs.
        recall: what `recall_plot.recall` made of them, where answers were scored.
        positions: what `positions_plot.figure` made of them, where the loss was read by position.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    finished = int(results.runs["outcome"].eq("finished").sum())
    return environment.get_template("template.html.j2").render(
        results=results,
        finished=finished,
        readings=[(one.variant, reading(results, one)) for one in results.summaries],
        curves=inline_svg(curves),
        tuning=inline_svg(tuning) if tuning else "",
        recall=inline_svg(recall) if recall else "",
        positions=inline_svg(positions) if positions else "",
        asked=eval_tables.shown(results),
        evaluations=eval_tables.evaluations(results) if results.evals else [],
        evaluations_full=eval_tables.full(results) if results.evals else None,
        evaluations_caption=eval_captions.caption(results),
        caption=captions.caption(results),
        rule=captions.verdicts(results),
        tuned=captions.tuned(results),
        tables=_tables(results),
        comparisons=tables.comparisons(results),
        choices=tables.choices(results) if results.choices else None,
        runs=_runs(results),
        tuning_runs=_tuning_runs(results),
        changes=[_changes(results, one) for one in results.summaries],
        facts={name: text for name, text in results.facts.items() if name != "command"},
        command=results.facts.get("command", ""),
        key=_key,
    )


def _tables(results: SuiteResults) -> list[Grid]:
    """The table as one where the page is wide enough for it, else in parts."""
    parts = eval_tables.parts(results)
    whole = reduce(Grid.beside, parts)
    return [whole] if len(whole.columns) <= WIDEST else parts


def reading(results: SuiteResults, one: VariantSummary) -> str:
    """What the runs of a variant say, in plain words and with the interval, and nothing beyond it."""
    unit, comparison = results.measured.unit, one.comparison
    if one.metric.n == 0:
        text = "No finished run, so no number."
    elif comparison is None:
        text = f"The base: {words.mean(one.metric)} {unit}" + (
            f", n = {one.metric.n}." if one.metric.n > 1 else "."
        )
    elif comparison.difference.n == 0:
        text = "No seed has finished both here and in the base, so there is no difference to report."
    elif comparison.difference.n == 1:
        text = (
            f"Undecided: {words.number(comparison.difference.mean, 3, sign=True)} {unit} against the base in "
        )
        text += "one pair of runs: no interval, so it cannot be told from the noise."
    else:
        text = _verdict(results, comparison)
        if comparison.verdict in ("better", "worse") and one.variant in results.repeats and not one.diff:
            text += " Nothing but the initialisation seeds differs, so this is a false alarm."
    if one.outliers:
        text += f" Outliers, counted and kept: {one.outliers} of {one.metric.n} values."
    _, _, lost = words.outcomes(one.outcomes).partition(", ")
    return f"{text} Of {one.planned} runs: {lost}." if lost else text


def _verdict(results: SuiteResults, comparison: Comparison) -> str:
    unit, difference = results.measured.unit, comparison.difference
    verdict = comparison.verdict if comparison.verdict == "undecided" else words.verdict(comparison, unit)
    mean = words.number(difference.mean, words.places_of(difference), sign=True)
    text = (
        f"{verdict.capitalize()}: {mean} {unit}, {results.coverage} interval {words.ends(difference)}, "
        f"{difference.n} pairs of seeds"
    )
    if comparison.verdict == "equivalent":
        return f"{text}, {words.p_is(comparison.equivalence_p, results.alpha)} (equivalence)."
    if not math.isfinite(comparison.p_holm):
        return f"{text}. All differences are equal, so there is no noise to test against."
    text += f", {words.p_is(comparison.p_holm, results.alpha)} (Holm)."
    if comparison.verdict == "undecided" and comparison.seeds_needed:
        seeds = words.seeds(comparison.seeds_needed)
        text += (
            f" {seeds.capitalize()} seeds would decide; {difference.n} find a difference of "
            f"{words.plain(comparison.detectable, unit)} with a power of 80 %."
        )
    return text


def _changes(results: SuiteResults, one: VariantSummary) -> tuple[str, dict[str, str], str]:
    """A variant's name, its settings that differ from the base, and what else is to be said of them."""
    settings = {name: words.value(value) for name, value in one.diff.items()}
    notes = ["the base"] if one.comparison is None else []
    if one.variant in results.repeats:
        notes.append("fresh initialisation seeds (A/A)")
    if one.matching:
        widths = ", ".join(f"{name} = {size}" for name, size in one.matching.changed.items()) or "no width"
        by = captions.MATCHED[results.matched_by]
        notes.append(f"matched by {by} with {widths}: residual {words.percent(one.matching.residual)}")
    return one.variant, settings, "; ".join(notes)


def _runs(results: SuiteResults) -> Grid:
    columns = [
        Column("variant", numeric=False),
        Column("seed"),
        Column("run", numeric=False),
        Column("outcome", numeric=False),
        Column(results.measured.label, results.measured.unit),
        Column("tokens"),
        Column("speed", "tokens/s"),
        Column("peak memory"),
        Column("training", "s"),
        Column("attempts"),
    ]
    return Grid(columns, [_run(results, run) for _, run in frames.runs(results).iterrows()])


def _run(results: SuiteResults, run: Any) -> list[Cell]:
    tokens, speed, memory = (
        _float(run[name]) for name in ("tokens", "tokens_per_second", "peak_memory_bytes")
    )
    return [
        *_identity(run),
        _count(run[results.metric], "{:.4f}"),
        Cell(words.short(tokens), tokens),
        Cell(words.short(speed), speed),
        Cell(words.memory(memory), memory),
        _count(run["train_seconds"], "{:.1f}"),
        _count(run["attempts"]),
    ]


def _tuning_runs(results: SuiteResults) -> Grid:
    columns = [
        Column("variant", numeric=False),
        Column("seed"),
        Column("run", numeric=False),
        Column("outcome", numeric=False),
        *(Column(words.key(name)) for name in results.grid),
        Column(results.measured.label, f"{results.measured.unit}, tune split"),
    ]
    rows = [
        [
            *_identity(run),
            *(_count(run[name], "{:g}") for name in results.grid),
            _count(run["value"], "{:.4f}"),
        ]
        for _, run in frames.tuning(results).iterrows()
    ]
    return Grid(columns, rows)


def _identity(run: Any) -> list[Cell]:
    """Variant, seed, run id and outcome of a run."""
    step, reason = _float(run.get("stopped_step")), run["reason"]
    outcome = OUTCOMES[run["outcome"]]
    outcome += f" at step {step:.0f}" if math.isfinite(step) and run["outcome"] != "finished" else ""
    outcome += f": {' '.join(str(reason).split())}" if isinstance(reason, str) and reason else ""
    identity = run["run_id"] if isinstance(run["run_id"], str) and run["run_id"] else words.NOTHING
    return [Cell.word(run["variant"]), _count(run["seed"]), Cell.word(identity), Cell.word(outcome)]


def _count(value: Any, form: str = "{:.0f}") -> Cell:
    value = _float(value)
    return Cell(form.format(value) if math.isfinite(value) else words.NOTHING, value)


def _float(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)


def _key(cell: Cell) -> str:
    """What the page's script sorts by; nothing for an unknown number, which comes last."""
    return "" if isinstance(cell.key, float) and not math.isfinite(cell.key) else str(cell.key)
