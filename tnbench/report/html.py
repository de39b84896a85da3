"""The report of a suite as one page that opens without a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from tnbench.report import plots, tables, words
from tnbench.report.results import OUTCOMES, SuiteResults, VariantSummary
from tnbench.report.tables import Cell, Column


def page(results: SuiteResults, figure: Figure) -> str:
    """The page, with everything in it: text, figure, tables, style and script.

    Args:
        results: the records of the suite.
        figure: what `plots.curves` made of them.
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
        figure=plots.inline_svg(figure),
        caption=tables.caption(results),
        columns=tables.columns(results),
        rows=tables.cells(results),
        run_columns=_run_columns(results),
        runs=[_run_cells(results, run) for _, run in tables.runs(results).iterrows()],
        diffs=[
            (name, {key: words.value(v) for key, v in diff.items()}) for name, diff in results.diffs.items()
        ],
        facts={name: text for name, text in results.facts.items() if name != "command"},
        command=results.facts.get("command", ""),
        key=_key,
    )


def reading(results: SuiteResults, one: VariantSummary) -> str:
    """What the runs of a variant say, in plain words and with the interval, and nothing beyond it."""
    unit, interval = results.measured.unit, one.difference
    if one.metric.n == 0:
        text = "No finished run, so no number."
    elif interval is None:
        text = f"The base: {words.mean(one.metric)} {unit}" + (
            f", n = {one.metric.n}." if one.metric.n > 1 else "."
        )
    elif interval.n == 0:
        text = "No seed has finished both here and in the base, so there is no difference to report."
    elif not interval.exists:
        text = f"{words.number(interval.mean, 3, sign=True)} {unit} against the base in one pair of runs: "
        text += "no interval, so it cannot be told from the noise."
    else:
        places, pairs = words.places_of(interval), f"{interval.n} pairs of seeds"
        if interval.contains(0.0):
            mean, low, high = (
                words.number(value, places, sign=True)
                for value in (interval.mean, interval.low, interval.high)
            )
            text = f"No difference visible beyond the noise: {mean} {unit}, "
        else:
            mean = words.number(abs(interval.mean), places)
            low, high = (words.number(end, places) for end in sorted((abs(interval.low), abs(interval.high))))
            text = f"{'Higher' if interval.mean > 0 else 'Lower'} than the base by {mean} {unit}, "
        text += f"{results.coverage} interval {low} to {high}, {pairs}."
    _, _, lost = words.outcomes(one.outcomes).partition(", ")
    return f"{text} Of {one.planned} runs: {lost}." if lost else text


def _run_columns(results: SuiteResults) -> list[Column]:
    return [
        Column("variant", numeric=False),
        Column("seed"),
        Column("run", numeric=False),
        Column("outcome", numeric=False),
        Column(results.measured.label, results.measured.unit),
        Column("tokens", ""),
        Column("speed", "tokens/s"),
        Column("peak memory"),
        Column("training", "s"),
        Column("attempts"),
    ]


def _run_cells(results: SuiteResults, run: Any) -> list[Cell]:
    def count(name: str, form: str = "{:.0f}") -> Cell:
        value = _float(run[name])
        return Cell(form.format(value) if math.isfinite(value) else words.NOTHING, value)

    step, reason = _float(run["stopped_step"]), run["reason"]
    outcome = OUTCOMES[run["outcome"]]
    outcome += f" at step {step:.0f}" if math.isfinite(step) and run["outcome"] != "finished" else ""
    outcome += f": {' '.join(str(reason).split())}" if isinstance(reason, str) and reason else ""
    identity = run["run_id"] if isinstance(run["run_id"], str) else words.NOTHING
    tokens, speed, memory = (
        _float(run[name]) for name in ("tokens", "tokens_per_second", "peak_memory_bytes")
    )
    return [
        Cell(run["variant"], run["variant"]),
        count("seed"),
        Cell(identity, identity),
        Cell(outcome, outcome),
        count(results.metric, "{:.4f}"),
        Cell(words.short(tokens), tokens),
        Cell(words.short(speed), speed),
        Cell(words.memory(memory), memory),
        count("train_seconds", "{:.1f}"),
        count("attempts"),
    ]


def _float(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)


def _key(cell: Cell) -> str:
    """What the page's script sorts by; nothing for an unknown number, which comes last."""
    return "" if isinstance(cell.key, float) and not math.isfinite(cell.key) else str(cell.key)
