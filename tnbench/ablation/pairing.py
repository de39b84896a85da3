"""Two sides' records as samples that may be compared, paired where their seeds mean the same data.

Losses are compared only where both sides were evaluated on the same text. Another tokenizer divides it into
other tokens, and only bits per byte do not depend on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tnbench.ablation.sides import UNCOMPARED, Record, Results, Side, find
from tnbench.errors import RequestError, nearest
from tnbench.report.results import METRICS
from tnbench.statistics import Comparison, check_alpha, compare

ORDER = ("data.context", "training.batch_tokens")
"""Keys that, with the steps and the tokens, decide which text a seed puts into which step."""


@dataclass(frozen=True)
class Row:
    """A against B; a difference is A minus B."""

    name: str
    """The variant that both folders have; empty where two runs or variants are compared."""
    a: Side
    b: Side
    metric: str

    def values(self, side: Side) -> dict[int, float]:
        """The metric of a side's finished runs by data seed."""
        return {seed: record.measured[self.metric] for seed, record in side.by_seed(self.metric).items()}

    @property
    def seeds(self) -> list[int]:
        """Data seeds that both sides have finished."""
        return [seed for seed in self.values(self.a) if seed in self.values(self.b)]

    def not_paired(self) -> str:
        """Why the runs cannot be paired by seed; empty where they can."""
        a, b = self.a.known[0], self.b.known[0]
        keys = [key for key in ORDER if a.config.get(key) != b.config.get(key)]
        keys += ["steps"] if a.entry("steps") != b.entry("steps") else []
        keys += ["data.tokenizer"] if a.entry("data.hash") != b.entry("data.hash") else []
        if keys:
            return f"the order of the data differs with {', '.join(keys)}"
        fewest = min(len(self.values(self.a)), len(self.values(self.b)))
        if self.name and fewest < 2:  # has no verdict in any case; must not cost the table its pairs
            return ""
        if len(self.seeds) < min(2, fewest):
            return f"data seed {self.seeds[0]} alone is common" if self.seeds else "no data seed is common"
        return ""

    def sample(self, paired: bool) -> tuple[np.ndarray, np.ndarray]:
        """Values of A and of B: of the common seeds, in the same order, or of all."""
        a, b = self.values(self.a), self.values(self.b)
        if paired:
            return np.array([a[seed] for seed in self.seeds]), np.array([b[seed] for seed in self.seeds])
        return np.array(list(a.values())), np.array(list(b.values()))


@dataclass(frozen=True)
class Judged:
    """What the records say of A against B."""

    a: str
    b: str
    metric: str
    alpha: float
    margin: float | None
    rows: list[Row]
    comparisons: list[Comparison]
    """One per row; Holm over them."""
    not_paired: str
    """Why the rows are not paired by seed; empty where they are."""
    notes: list[str] = field(default_factory=list)


def judge(a: str, b: str, *, metric: str, margin: float | None, alpha: float, results: Path) -> Judged:
    """Compare what two names stand for (see `sides`), A minus B.

    Runs are paired by their data seed where the same seed means the same text in the same order; else all
    values of A are compared with all of B (Welch). Two results folders are compared variant by variant, with
    Holm's correction over the variants that both have; one that cannot be paired leaves all unpaired.

    Args:
        a, b: names.
        metric: a key of `report.results.METRICS`.
        margin: differences up to this size count as equivalent, in the metric's unit.
        alpha: level of the verdicts, and one minus the coverage of the intervals.
        results: where names are looked for.

    Raises:
        RequestError: an unknown name, metric or variant; texts that cannot be compared; one record twice.
    """
    if metric not in METRICS:
        raise RequestError(f"--metric {metric}: {nearest(metric, METRICS)}")
    if margin is not None and not 0 < margin < np.inf:
        raise RequestError(f"--margin {margin:g}: expected a positive number of {METRICS[metric].unit}")
    check_alpha(alpha)
    rows, notes = _rows(a, b, find(a, results), find(b, results), metric)
    for row in rows:
        _require_same_text(row)
    if all(_paths(row.a) == _paths(row.b) for row in rows):
        raise RequestError(f"{a} and {b} are one and the same record; there is nothing to compare")
    reasons = [(row, row.not_paired()) for row in rows]
    not_paired = next((why if not row.name else f"{row.name}: {why}" for row, why in reasons if why), "")
    comparisons = compare(
        [row.sample(paired=not not_paired) for row in rows], alpha=alpha, margin=margin, paired=not not_paired
    )
    for row in rows:
        notes += [*_of_provenance(row, a, b), *_of_records(row, bool(not_paired))]
    return Judged(a, b, metric, alpha, margin, rows, comparisons, not_paired, list(dict.fromkeys(notes)))


def _paths(side: Side) -> set[Path]:
    return {record.folder.path.resolve() for record in side.records}


def _rows(
    a: str, b: str, left: Side | Results, right: Side | Results, metric: str
) -> tuple[list[Row], list[str]]:
    if isinstance(left, Side) and isinstance(right, Side):
        return [Row("", left, right, metric)], [*left.notes, *right.notes]
    for name, one in ((a, left), (b, right)):
        if isinstance(one, Side):
            folder = b if one is left else a
            raise RequestError(
                f"{folder} is a results folder and {name} is not: compare two folders, or a variant: "
                f"{folder.rstrip('/')}/VARIANT"
            )
    assert isinstance(left, Results)
    assert isinstance(right, Results)
    common = [variant for variant in left.records if variant in right.records]
    if not common:
        raise RequestError(
            f"{a} and {b} have no variant in common: {', '.join(left.records) or 'none'}; "
            f"{', '.join(right.records) or 'none'}"
        )
    notes = [
        f"only {name} has {', '.join(alone)}"
        for name, one in ((a, left), (b, right))
        if (alone := [variant for variant in one.records if variant not in common])
    ]
    rows = [
        Row(v, left.side(v, f"{a.rstrip('/')}/{v}"), right.side(v, f"{b.rstrip('/')}/{v}"), metric)
        for v in common
    ]
    return rows, [*left.notes, *right.notes, *notes]


def _require_same_text(row: Row) -> None:
    """Losses on different texts say nothing about each other.

    Raises:
        RequestError: corpus, its division or the text of the evaluation differ; or the tokenizer does and the
            metric depends on it.
    """
    a, b = row.a.known[0], row.b.known[0]
    names = f"{row.a.name} and {row.b.name}"
    corpora = [f"{one.entry('data.corpus')} ({one.entry('data.corpus_hash')})" for one in (a, b)]
    if corpora[0].split()[-1] != corpora[1].split()[-1]:
        raise RequestError(f"{names} were trained on different texts: {corpora[0]} and {corpora[1]}")
    if _texts(a) != _texts(b):
        raise RequestError(f"{names} read or divide the corpus {a.entry('data.corpus')} differently")
    sizes = [
        {record.entry("evaluation.report.text_bytes") for record in side.by_seed(row.metric).values()}
        for side in (row.a, row.b)
    ]
    if len(sizes[0] | sizes[1]) > 1:
        shown = ", ".join(f"{size:,}" for size in sorted(sizes[0] | sizes[1]))
        raise RequestError(f"{names} were not evaluated on the same text: {shown} bytes")
    if a.entry("data.hash") != b.entry("data.hash") and row.metric != "val_bits_per_byte":
        tokenizers = f"{a.entry('data.tokenizer.name')} and {b.entry('data.tokenizer.name')}"
        raise RequestError(
            f"{names} differ in the tokenizer ({tokenizers}): {row.metric} depends on it; "
            f"use --metric val_bits_per_byte"
        )


def _texts(record: Record) -> Any:
    """What divides a corpus into texts, whatever its tokens are."""
    splits = {
        name: (split.get("documents"), split.get("bytes"))
        for name, split in record.entry("data.splits").items()
    }
    return record.config.get("data.text_field"), splits


def _of_provenance(row: Row, a: str, b: str) -> list[str]:
    """In what the code behind the two sides differs."""
    notes = []
    for what, key in (("source code", "source_hash"), ("version of torch", "versions.torch")):
        mine, other = (side.known[0].entry(f"provenance.{key}") for side in (row.a, row.b))
        if mine != other:
            notes.append(f"{a} and {b} differ in the {what}: {mine} and {other}")
    return notes


def _of_records(row: Row, unpaired: bool) -> list[str]:
    """Which runs are on both sides, and which on one and have no partner."""
    notes = []
    names = [row.a.name, row.b.name]
    ids = [{record.folder.id for record in side.by_seed(row.metric).values()} for side in (row.a, row.b)]
    if common := sorted(ids[0] & ids[1]):
        more = f" and {len(common) - 3} more" if len(common) > 3 else ""
        notes.append(
            f"{names[0]} and {names[1]} share {', '.join(common[:3])}{more}: the same configuration, code "
            f"and seed, so that a difference there is no effect of a choice"
        )
    if not unpaired:
        for name, side in zip(names, (row.a, row.b), strict=True):
            left = [seed for seed in row.values(side) if seed not in row.seeds]
            if left and row.seeds:
                notes.append(f"{name}: seeds without a partner are left out: {', '.join(map(str, left))}")
    return notes


def differing(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two configurations differ, seeds apart; another component is shown whole."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*a.config, *b.config]):
        one, other = a.config.get(key), b.config.get(key)
        if one == other or key in UNCOMPARED:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one.get("name") == other.get("name"):
            parts = dict.fromkeys([*one, *other])
            found.update(
                {
                    f"{key}.{part}": (one.get(part), other.get(part))
                    for part in parts
                    if one.get(part) != other.get(part)
                }
            )
        else:
            found[key] = (one, other)
    return found
