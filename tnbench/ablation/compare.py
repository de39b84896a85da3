"""`tnbench compare`: a verdict between any two runs, variants or results folders, from their records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tnbench.ablation.pairing import Judged, Row, differing, judge
from tnbench.ablation.sides import Side
from tnbench.report import words
from tnbench.report.results import METRICS, OUTCOMES
from tnbench.statistics import MOST_PAIRS, POWER, Comparison, Interval, bca_coverage, mean_interval


def compare(
    a: str,
    b: str,
    *,
    metric: str,
    margin: float | None,
    alpha: float,
    results: Path,
    as_json: bool,
    console: Console,
) -> int:
    """Print the verdict on A against B, the numbers behind it, and what differs between them.

    Returns:
        The exit status, 0: every verdict is a result.

    Raises:
        RequestError: as `pairing.judge`.
    """
    judged = judge(a, b, metric=metric, margin=margin, alpha=alpha, results=results)
    if as_json:
        console.out(json.dumps(_json(judged), indent=1, ensure_ascii=False), highlight=False)
        return 0
    for letter, name, side in (("A", a, judged.rows[0].a), ("B", b, judged.rows[0].b)):
        runs = f"{len(judged.rows)} variants" if judged.rows[0].name else _runs(side)
        console.print(f"{letter}: {name}, {runs}", highlight=False)
    console.print(_table(judged), "")
    for text in (*_sentences(judged), *(f"note: {note}" for note in judged.notes)):
        console.print(text, highlight=False)
    return 0


def _runs(side: Side) -> str:
    if len(side.records) > 1:
        return f"finished {words.outcomes(side.outcomes)}"
    return f"one run, {OUTCOMES[side.records[0].outcome]}"


def _table(judged: Judged) -> Table:
    """One row per comparison; the units stand above, the verdict is on A."""
    metric, single = METRICS[judged.metric], not judged.rows[0].name
    coverage = f"{100 * (1 - judged.alpha):.4g} %"
    table = Table(
        title=f"{metric.label} in {metric.unit}, lower is better, with {coverage} t intervals",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for head in () if single else ("variant",):
        table.add_column(head, overflow="fold")
    for head in ("A", "B", "A − B", "n", "p" if len(judged.rows) == 1 else "p (Holm)"):
        table.add_column(head, justify="right", no_wrap=head == "A − B")
    table.add_column("A is")
    for row, one in zip(judged.rows, judged.comparisons, strict=True):
        table.add_row(
            *(() if single else (f"{row.name}\n{_incomplete(row)}".rstrip(),)),
            words.mean(_mean(row, row.a, judged.alpha)),
            words.mean(_mean(row, row.b, judged.alpha)),
            words.difference(one.difference),
            str(len(row.seeds)) if one.paired else f"{len(row.values(row.a))}, {len(row.values(row.b))}",
            words.p(one.p_holm, judged.alpha),
            words.verdict(one),
        )
    return table


def _incomplete(row: Row) -> str:
    """In a table: the sides whose runs have not all finished."""
    told = [
        f"{letter}: {words.outcomes(side.outcomes)}"
        for letter, side in (("A", row.a), ("B", row.b))
        if side.outcomes["finished"] < len(side.records)
    ]
    return "\n".join(told)


def _mean(row: Row, side: Side, alpha: float) -> Interval:
    return mean_interval(list(row.values(side).values()), alpha)


def _sentences(judged: Judged) -> Iterator[str]:
    unit = METRICS[judged.metric].unit
    yield _how(judged)
    detectable = [one.detectable for one in judged.comparisons if math.isfinite(one.detectable)]
    if detectable:
        yield (
            f"Smallest detectable difference with the spread of these runs: {_range(detectable)} {unit} "
            f"({100 * POWER:g} % power, alpha = {judged.alpha:g}{_corrected(judged)})."
        )
    needed = {
        row.name: one.seeds_needed
        for row, one in zip(judged.rows, judged.comparisons, strict=True)
        if one.seeds_needed
    }
    if needed:
        what = (
            "the difference found" if judged.margin is None else f"a difference of {judged.margin:g} {unit}"
        )
        seeds = ", ".join(
            f"{name} {'at least' if n == MOST_PAIRS else 'about'} {n:,}".strip() for name, n in needed.items()
        )
        yield f"Seeds needed in all to decide on {what}, with {100 * POWER:g} % power: {seeds}."
    if judged.margin is None:
        yield "Equivalence is not tested without --margin."
    if not judged.rows[0].name:
        yield from _beside(judged.comparisons[0], unit)
    yield from _configurations(judged)


def _how(judged: Judged) -> str:
    """Paired or not, and what that bought."""
    if judged.not_paired:
        return f"Not paired (Welch's t-test): {judged.not_paired}."
    if len(judged.rows) == 1:
        seeds = ", ".join(map(str, judged.rows[0].seeds)) or "none"
        text = f"Paired by data seed: {seeds}"
    else:
        text = "Paired by data seed"
    gains = [one.pairing_gain for one in judged.comparisons if math.isfinite(one.pairing_gain)]
    correlations = [one.correlation for one in judged.comparisons if math.isfinite(one.correlation)]
    if gains and correlations:
        text += (
            f"; correlation {_range(correlations, 2)}: unpaired runs would need {_range(gains, 1)} times the "
            f"seeds"
        )
    return text + "."


def _corrected(judged: Judged) -> str:
    count = len(judged.rows)
    return f" / {count} comparisons" if count > 1 else ""


def _range(values: list[float], places: int | None = None) -> str:
    low, high = min(values), max(values)
    decimals = words.decimals(low) if places is None else places
    texts = [words.number(value, decimals) for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _beside(one: Comparison, unit: str) -> Iterator[str]:
    """What is shown for information and decides nothing."""
    parts = []
    if math.isfinite(one.sign_flip_p):
        parts.append(f"exact sign-flip {words.p_is(one.sign_flip_p, one.alpha)}")
    if one.bca:
        covered = bca_coverage(one.bca.n)
        simulated = f", simulated coverage {100 * covered:.1f} %" if covered and one.alpha == 0.05 else ""
        places = words.places_of(one.bca)
        low, high = (words.number(end, places, sign=True) for end in (one.bca.low, one.bca.high))
        parts.append(f"BCa bootstrap interval [{low}, {high}] {unit}{simulated}")
    if one.difference.n >= 2:
        parts.append(f"probability that A is better in a pair of runs {one.improvement:.2f}")
    if parts:
        yield f"For information: {'; '.join(parts)}."


def _configurations(judged: Judged) -> Iterator[str]:
    """The keys in which A and B differ; variants that differ alike are named together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in judged.rows:
        found = differing(row.a.known[0], row.b.known[0])
        keys = [f"  {key}: {words.value(a)} -> {words.value(b)}" for key, (a, b) in found.items()]
        alike.setdefault(tuple(keys) or (_seeds_only(row),), []).append(row.name)
    for keys, names in alike.items():
        yield "Configuration, A -> B" + (f" ({', '.join(names)}):" if len(alike) > 1 else ":")
        yield from keys


def _seeds_only(row: Row) -> str:
    """What two equal configurations compare."""
    a, b = row.a.by_seed(row.metric), row.b.by_seed(row.metric)
    both = [(a[seed].config, b[seed].config) for seed in row.seeds]
    if any(mine["training.init_seed"] != other["training.init_seed"] for mine, other in both):
        return "  the same but for the seeds of the initial weights"
    return "  the same"


def _json(judged: Judged) -> dict[str, Any]:
    return _finite(
        {
            "metric": judged.metric,
            "unit": METRICS[judged.metric].unit,
            "alpha": judged.alpha,
            "margin": judged.margin,
            "a": judged.a,
            "b": judged.b,
            "paired": not judged.not_paired,
            "not_paired_because": judged.not_paired or None,
            "comparisons": [
                _numbers(row, one, judged.alpha)
                for row, one in zip(judged.rows, judged.comparisons, strict=True)
            ],
            "notes": judged.notes,
        }
    )


def _numbers(row: Row, one: Comparison, alpha: float) -> dict[str, Any]:
    return {
        "variant": row.name or None,
        "a": _side(row, row.a, alpha),
        "b": _side(row, row.b, alpha),
        "seeds": row.seeds if one.paired else None,
        "n": one.difference.n,
        "difference": one.difference.mean,
        "low": one.difference.low,
        "high": one.difference.high,
        "p": one.difference.p,
        "p_holm": one.p_holm,
        "comparisons": one.comparisons,
        "equivalence_p": one.equivalence_p,
        "verdict": one.verdict.value,
        "within_margin": one.within_margin,
        "seeds_needed": one.seeds_needed,
        "detectable_difference": one.detectable,
        "sign_flip_p": one.sign_flip_p,
        "bca_low": one.bca.low if one.bca else None,
        "bca_high": one.bca.high if one.bca else None,
        "bca_coverage": bca_coverage(one.bca.n) if one.bca else None,
        "probability_of_improvement": one.improvement,
        "correlation": one.correlation,
        "pairing_gain": one.pairing_gain,
        "configuration": {
            key: {"a": mine, "b": other}
            for key, (mine, other) in differing(row.a.known[0], row.b.known[0]).items()
        },
    }


def _side(row: Row, side: Side, alpha: float) -> dict[str, Any]:
    mean = _mean(row, side, alpha)
    return {
        "name": side.name,
        "n": mean.n,
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "runs": [
            {
                "run_id": record.folder.id,
                "seed": record.seed,
                "outcome": record.outcome,
                "value": record.measured.get(row.metric),
            }
            for record in side.records
        ],
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
