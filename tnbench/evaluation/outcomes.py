"""Evaluations as tables: one row for a model, task and metric, and models beside each other on the same
questions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tnbench.config import digest
from tnbench.errors import RequestError
from tnbench.evaluation.groups import ACCURACIES, groups, questions, scores, tasks_and_groups
from tnbench.evaluation.items import Item
from tnbench.evaluation.study import Store, read_items
from tnbench.profiling.lines import Line
from tnbench.profiling.texts import markdown_table
from tnbench.report.formats import escape_markdown
from tnbench.report.results import Frame
from tnbench.report.words import BELOW, NOTHING
from tnbench.statistics import compare_items, holm, verdicts

ALPHA = 0.05
Z = 1.959964
"""Of a 95 % interval."""
BITS = "gold_bits_per_byte"
ITEM_BITS = "item_gold_bits_per_byte"
"""Of single right answers, which are compared: their mean is not the ratio of sums that `BITS` is."""
COLUMNS = (
    "task", "members", "model", "metric", "value", "stderr", "higher_is_better", "items", "fewshot", "limit",
    "chance", "at_chance", "key",
)  # fmt: skip
COMPARED = (
    "task", "fewshot", "limit", "metric", "model", "base", "difference", "low", "high", "p", "items",
    "p_holm", "comparisons", "verdict", "key",
)  # fmt: skip
OPTIONS = {"max_length": "max length ", "precision": "", "device": "", "faithful": ""}
"""Of an identity, and how they are written."""
HEADS = ["task", "model", "metric", "value", "± standard error", "chance", "against the first model"]


def rows(lines: Sequence[Line]) -> Frame:
    """Every metric of every record, bits per byte of the right answers where they are known, and accuracies
    of groups over all of their questions."""
    names = _names(lines)
    made = [{**row, "model": names[line["key"]]} for line in lines for row in _of(line)]
    made += [
        {**row, "model": names[members[0]["key"]]} for members in groups(lines) for row in _of_group(members)
    ]
    return pd.DataFrame(made, columns=pd.Index(COLUMNS))


def _names(lines: Sequence[Line]) -> dict[str, str]:
    """Names of models by the keys of records: with what they were asked under, where that differs."""
    asked: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for line in lines:
        for option in OPTIONS:
            asked[line["model"], option].add(line["identity"].get(option))
    found = {}
    for line in lines:
        differ = [option for option in OPTIONS if len(asked[line["model"], option]) > 1]
        given = [(OPTIONS[option], line["identity"].get(option)) for option in differ]
        words = [f"{word}{value}" for word, value in given if value is not None]
        found[line["key"]] = ", ".join([str(line["model"]), *words])
    return found


def _of(line: Line) -> Iterator[dict[str, Any]]:
    shared = {name: line[name] for name in ("task", "model", "items", "fewshot", "limit", "key")}
    for metric, found in line["metrics"].items():
        chance = line["chance"] if metric in ACCURACIES else None
        yield {
            **shared,
            "metric": metric,
            **_numbers(found),
            "chance": chance,
            "at_chance": None if chance is None else _at_chance(_numbers(found), chance),
        }
    if line[BITS] is not None and not math.isnan(float(line[BITS])):
        error = float(line[f"{BITS}_stderr"])
        yield {
            **shared, "metric": BITS, "value": line[BITS], "stderr": error, "higher_is_better": False,
            "chance": None, "at_chance": None,
        }  # fmt: skip


def _of_group(members: Sequence[Line]) -> Iterator[dict[str, Any]]:
    shots = {line["fewshot"] for line in members}
    for metric, found, chance in scores(members):
        yield {
            "task": members[0]["group"],
            "members": len(members),
            "metric": metric,
            **found,
            "items": sum(line["items"] for line in members),
            "fewshot": shots.pop() if len(shots) == 1 else None,
            "limit": members[0]["limit"],
            "chance": chance,
            "at_chance": _at_chance(found, chance),
            "key": members[0]["request"],
        }


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """A metric as it is recorded, where what is not finite stands by its name."""
    error = found["stderr"]
    return {**found, "value": float(found["value"]), "stderr": None if error is None else float(error)}


def _at_chance(found: Mapping[str, Any], chance: float) -> bool | None:
    """Whether guessing is within the 95 % interval, or above it."""
    if found["stderr"] is None:
        return None
    return bool(found["value"] - Z * found["stderr"] <= chance)


def comparisons(store: Store, lines: Sequence[Line], problems: list[str] | None = None) -> Frame:
    """Each model against the first one that answered the same questions, item by item.

    Records whose items are lost or damaged are left out; `problems` gets a line for each.

    Accuracies are compared as they are, right answers by −log2 p per byte of an item. The interval is that of
    paired items: it speaks of these two models on other questions of the kind. The p of two models are
    corrected together (Holm, 1979): those of all scores, and apart from them those of all right answers; the
    verdict is *better* or *worse* where the corrected p is at most 0.05.
    """
    made = []
    asked: dict[str, list[tuple[str, list[Line]]]] = defaultdict(list)
    for name, same, members in tasks_and_groups(lines):
        asked[digest(same)].append((name, members))
    names, known = _names(lines), _Answers(store, problems)
    for several in asked.values():
        if len(several) < 2:
            continue
        answered = [(name, members, items) for name, members in several if (items := known(members))]
        for name, other, mine in answered[1:]:
            _, base, theirs = answered[0]
            made += [
                {
                    "task": name,
                    **row,
                    "model": names[other[0]["key"]],
                    "base": names[base[0]["key"]],
                    "key": other[0]["key"] if len(other) == 1 else other[0]["request"],
                }
                for row in _pair(base, theirs, mine)
            ]
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


Items = dict[tuple[str, int, str], Item]
"""By task, number and hash."""


class _Answers:
    """The items of records, read once; those that are lost or damaged are told once."""

    def __init__(self, store: Store, problems: list[str] | None) -> None:
        self.store, self.problems = store, problems
        self._of: dict[str, Items] = {}

    def __call__(self, lines: Sequence[Line]) -> Items:
        """All of them; none where some of them cannot be read."""
        parts = [self._read(line) for line in lines]
        return {key: item for part in parts for key, item in part.items()} if all(parts) else {}

    def _read(self, line: Line) -> Items:
        if line["key"] not in self._of:
            try:
                self._of[line["key"]] = questions(line, read_items(self.store, line))
            except RequestError as error:
                self._of[line["key"]] = {}
                if self.problems is not None:
                    self.problems.append(f"{error}: it is compared with nothing")
        return self._of[line["key"]]


def _pair(base: Sequence[Line], theirs: Items, mine: Items) -> Iterator[dict[str, Any]]:
    both = [key for key in theirs if key in mine]
    if len(both) < 2:
        return
    scored: dict[str, tuple[list[float], list[float]]] = {}
    for metric in base[0]["metrics"]:
        if all(metric in theirs[key].scores and metric in mine[key].scores for key in both):
            scored[metric] = [mine[k].scores[metric] for k in both], [theirs[k].scores[metric] for k in both]
    bits = [[_bits(side[key]) for key in both] for side in (mine, theirs)]
    if not any(value is None for side in bits for value in side):
        scored[ITEM_BITS] = bits[0], bits[1]  # type: ignore[assignment]
    for metric, (a, b) in scored.items():
        found = compare_items(a, b, alpha=ALPHA)
        better = base[0]["metrics"].get(metric, {}).get("higher_is_better", metric in ACCURACIES)
        yield {
            "fewshot": base[0]["fewshot"], "limit": base[0]["limit"], "metric": metric,
            "difference": found.mean, "low": found.low, "high": found.high, "p": found.p, "items": len(both),
            "higher_is_better": bool(better),
        }  # fmt: skip


def _bits(item: Item) -> float | None:
    if item.gold_nats is None or not item.gold_bytes or not math.isfinite(item.gold_nats):
        return None
    return item.gold_nats / math.log(2) / item.gold_bytes


def cells(frame: Frame, compared: Frame) -> list[list[str]]:
    """Texts of the table."""
    pairs = {(row["key"], row["metric"]): row for row in compared.to_dict("records")}
    made = []
    for row in frame.to_dict("records"):
        pair = pairs.get((row["key"], ITEM_BITS if row["metric"] == BITS else row["metric"]))
        chance = NOTHING if pd.isna(row["chance"]) else f"{row['chance']:.3f}"
        if row["at_chance"] is True:
            chance += f"; {BELOW}"
        said = NOTHING
        if pair is not None:
            said = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}] {pair['verdict']}"
        shots = "" if pd.isna(row["fewshot"]) or not row["fewshot"] else f", {int(row['fewshot'])}-shot"
        error = NOTHING if pd.isna(row["stderr"]) else f"{row['stderr']:.3f}"
        value = f"{row['value']:.3f}"
        first = "" if pd.isna(row["limit"]) else f", first {int(row['limit'])}"
        several = "" if pd.isna(row["members"]) else f" ({int(row['members'])} tasks)"
        made.append(
            [
                f"{row['task']}{several}{shots}{first}",
                str(row["model"]),
                str(row["metric"]),
                value,
                error,
                chance,
                said,
            ]
        )
    return made


def markdown(texts: Sequence[Sequence[str]], caption: str = "") -> str:
    """The table as a file, with its caption below."""
    table = markdown_table(HEADS, [[escape_markdown(text) for text in line] for line in texts], left=3)
    return f"{table}\n\n{escape_markdown(caption)}\n" if caption else f"{table}\n"
