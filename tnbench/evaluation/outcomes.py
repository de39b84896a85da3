"""Evaluations as tables: one row for a model, task and metric, and models beside each other on the same
questions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tnbench.config import digest
from tnbench.evaluation.study import Store, read_items
from tnbench.profiling.lines import Line
from tnbench.profiling.texts import markdown_table
from tnbench.report.formats import escape_markdown
from tnbench.report.results import Frame
from tnbench.report.words import NOTHING
from tnbench.statistics import compare_items, holm, verdicts

ALPHA = 0.05
Z = 1.959964
"""Of a 95 % interval."""
ACCURACIES = ("acc", "acc_norm")
BITS = "gold_bits_per_byte"
ITEM_BITS = "item_gold_bits_per_byte"
"""Of single right answers, which are compared: their mean is not the ratio of sums that `BITS` is."""
COLUMNS = (
    "task", "model", "metric", "value", "stderr", "higher_is_better", "items", "fewshot", "limit", "chance",
    "at_chance", "key",
)  # fmt: skip
COMPARED = (
    "task", "fewshot", "limit", "metric", "model", "base", "difference", "low", "high", "p", "items",
    "p_holm", "comparisons", "verdict",
)  # fmt: skip
HEADS = ["task", "model", "metric", "value", "± standard error", "chance", "against the first model"]


def rows(lines: Sequence[Line]) -> Frame:
    """Every metric of every record, and bits per byte of the right answers where they are known."""
    made = [row for line in lines for row in _of(line)]
    return pd.DataFrame(made, columns=pd.Index(COLUMNS))


def _of(line: Line) -> Iterator[dict[str, Any]]:
    shared = {name: line[name] for name in ("task", "model", "items", "fewshot", "limit", "key")}
    for metric, found in line["metrics"].items():
        chance = line["chance"] if metric in ACCURACIES else None
        yield {
            **shared,
            "metric": metric,
            **found,
            "chance": chance,
            "at_chance": None if chance is None else _at_chance(found, chance),
        }
    if line[BITS] is not None and not math.isnan(float(line[BITS])):
        error = float(line[f"{BITS}_stderr"])
        yield {
            **shared, "metric": BITS, "value": line[BITS], "stderr": error, "higher_is_better": False,
            "chance": None, "at_chance": None,
        }  # fmt: skip


def _at_chance(found: Mapping[str, Any], chance: float) -> bool | None:
    """Whether guessing is within the 95 % interval, or above it."""
    if found["stderr"] is None:
        return None
    return bool(found["value"] - Z * found["stderr"] <= chance)


def comparisons(store: Store, lines: Sequence[Line]) -> Frame:
    """Each model against the first one that answered the same questions, item by item.

    Accuracies are compared as they are, right answers by −log2 p per byte of an item. The interval is that of
    paired items: it speaks of these two models on other questions of the kind. The p of two models are
    corrected together (Holm, 1979): those of all scores, and apart from them those of all right answers; the
    verdict is *better* or *worse* where the corrected p is at most 0.05.
    """
    made = []
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        same = {name: value for name, value in line["asked"].items() if name != "model"}
        groups[digest({**same, "member": line["task"]})].append(line)
    for base, *others in groups.values():
        for other in others:
            made += list(_pair(store, base, other))
    families: dict[tuple[str, str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in made:
        families[row["model"], row["base"], row["metric"] == ITEM_BITS].append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            verdict = str(verdicts(row["difference"], p, math.nan, ALPHA, not row.pop("higher_is_better")))
            row |= {"p_holm": float(p), "comparisons": len(family), "verdict": verdict}
    return pd.DataFrame(made, columns=pd.Index(COMPARED))


def family(compared: Frame) -> str:
    """How many comparisons were corrected together, where there are several: a line under the table."""
    most = {bits: compared[(compared["metric"] == ITEM_BITS) == bits]["comparisons"].max() for bits in (0, 1)}
    parts = [f"{most[bits]} {words}" for bits, words in enumerate(("scores", BITS)) if most[bits] > 1]
    if not parts:
        return ""
    return (
        f"better, worse: paired questions, p ≤ {ALPHA:g} after Holm's correction for all comparisons of two "
        f"models: {', '.join(parts)}."
    )


def _pair(store: Store, base: Line, other: Line) -> Iterator[dict[str, Any]]:
    mine = {item.hash: item for item in read_items(store.items_of(other["key"]))}
    theirs = {item.hash: item for item in read_items(store.items_of(base["key"]))}
    both = [key for key in theirs if key in mine]
    if len(both) < 2:
        return
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for metric in base["metrics"]:
        if all(metric in theirs[key].scores and metric in mine[key].scores for key in both):
            scores[metric] = [mine[k].scores[metric] for k in both], [theirs[k].scores[metric] for k in both]
    bits = [[_bits(side[key]) for key in both] for side in (mine, theirs)]
    if not any(value is None for side in bits for value in side):
        scores[ITEM_BITS] = bits[0], bits[1]  # type: ignore[assignment]
    for metric, (a, b) in scores.items():
        found = compare_items(a, b, alpha=ALPHA)
        better = base["metrics"].get(metric, {}).get("higher_is_better", metric in ACCURACIES)
        yield {
            "task": base["task"], "fewshot": base["fewshot"], "limit": base["limit"], "metric": metric,
            "model": other["model"], "base": base["model"],
            "difference": found.mean, "low": found.low, "high": found.high, "p": found.p, "items": len(both),
            "higher_is_better": bool(better),
        }  # fmt: skip


def _bits(item: Any) -> float | None:
    if item.gold_nats is None or not item.gold_bytes:
        return None
    return item.gold_nats / math.log(2) / item.gold_bytes


def cells(frame: Frame, compared: Frame) -> list[list[str]]:
    """Texts of the table."""
    pairs = {(*_place(row), row["metric"]): row for row in compared.to_dict("records")}
    made = []
    for row in frame.to_dict("records"):
        pair = pairs.get((*_place(row), ITEM_BITS if row["metric"] == BITS else row["metric"]))
        chance = NOTHING if pd.isna(row["chance"]) else f"{row['chance']:.3f}"
        if row["at_chance"] is True:
            chance += ", not above it"
        said = NOTHING
        if pair is not None:
            said = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}] {pair['verdict']}"
        shots = "" if pd.isna(row["fewshot"]) or not row["fewshot"] else f", {int(row['fewshot'])}-shot"
        error = NOTHING if pd.isna(row["stderr"]) else f"{row['stderr']:.3f}"
        value = f"{row['value']:.3f}"
        first = "" if pd.isna(row["limit"]) else f", first {int(row['limit'])}"
        made.append(
            [
                f"{row['task']}{shots}{first}",
                str(row["model"]),
                str(row["metric"]),
                value,
                error,
                chance,
                said,
            ]
        )
    return made


def _place(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row's task, as it was asked, and model."""
    return tuple(str(row[name]) for name in ("task", "fewshot", "limit", "model"))


def markdown(texts: Sequence[Sequence[str]], caption: str = "") -> str:
    """The table as a file, with its caption below."""
    table = markdown_table(HEADS, [[escape_markdown(text) for text in line] for line in texts], left=3)
    return f"{table}\n\n{escape_markdown(caption)}\n" if caption else f"{table}\n"
