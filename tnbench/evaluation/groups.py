"""Groups of tasks: one number for all of their questions, each counted alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tnbench.evaluation.items import Item
from tnbench.profiling.lines import Line

ACCURACIES = ("acc", "acc_norm")


def groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The records of each evaluation of a group: one for each of its tasks."""
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.get("group") is not None:
            found[line["request"]].append(line)
    yield from found.values()


def scores(lines: Sequence[Line]) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Metric, value with standard error, and chance, for each accuracy that all tasks of a group have."""
    sizes = [int(line["items"]) for line in lines]
    for metric in ACCURACIES:
        found = [line["metrics"].get(metric) for line in lines]
        if all(found):
            error = pooled([one["stderr"] for one in found], sizes)
            value = {
                "value": weighted((one["value"] for one in found), sizes),
                "stderr": None if math.isnan(error) else error,
                "higher_is_better": True,
            }
            yield metric, value, weighted((line["chance"] for line in lines), sizes)


def weighted(values: Iterable[float | None], sizes: Sequence[int]) -> float:
    """The mean over questions; NaN where a part is not known."""
    known = [math.nan if value is None else float(value) for value in values]
    return float(np.average(known, weights=sizes)) if sum(sizes) else math.nan


def pooled(errors: Sequence[float | None], sizes: Sequence[int]) -> float:
    """The standard error of a mean over the questions of several tasks, which are themselves given: that of
    a stratified sample."""
    known = [math.nan if error is None else float(error) for error in errors]
    return math.sqrt(sum((error * size) ** 2 for error, size in zip(known, sizes, strict=True))) / max(
        1, sum(sizes)
    )


def tasks_and_groups(lines: Sequence[Line]) -> Iterator[tuple[str, dict[str, Any], list[Line]]]:
    """What models are compared on: name, what was asked, and the records that answer it, one or several."""
    for line in lines:
        asked = {name: value for name, value in line["asked"].items() if name != "model"}
        yield line["task"], {**asked, "member": line["task"]}, [line]
    for members in groups(lines):
        asked = {name: value for name, value in members[0]["asked"].items() if name != "model"}
        yield members[0]["group"], {**asked, "member": None}, members


def questions(line: Line, items: Sequence[Item]) -> dict[tuple[str, int, str], Item]:
    """Items by what tells questions apart, and is the same in every evaluation."""
    return {(line["task"], item.id, item.hash): item for item in items}
