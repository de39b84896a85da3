"""The tables of a suite, format apart: columns with their units, and cells that know what they sort by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tnbench.report import words
from tnbench.report.captions import MATCHED
from tnbench.report.results import Choice, SuiteResults, VariantSummary
from tnbench.statistics import Comparison, bca_coverage


@dataclass(frozen=True)
class Column:
    """A column of a table: its head and, where it has one, its unit."""

    head: str
    unit: str = ""
    numeric: bool = True
    wraps: bool = False
    """Whether its texts may be broken into lines."""

    @property
    def title(self) -> str:
        """`speed (tokens/s)`."""
        return f"{self.head} ({self.unit})" if self.unit else self.head


@dataclass(frozen=True)
class Cell:
    """What is printed, and what the column is sorted by."""

    text: str
    key: float | str

    @classmethod
    def word(cls, text: str) -> Cell:
        """A text, sorted by itself."""
        return cls(text, text)


@dataclass(frozen=True)
class Grid:
    """A table: columns, and rows with one cell per column."""

    columns: list[Column]
    rows: list[list[Cell]]

    def beside(self, other: Grid) -> Grid:
        """Both as one table, whose first column, the same in both, stands once."""
        rows = [row + more[1:] for row, more in zip(self.rows, other.rows, strict=True)]
        return Grid(self.columns + other.columns[1:], rows)


Layout = list[tuple[Column, Callable[[VariantSummary], Cell]]]
"""Columns, each with what it shows of a variant."""

VARIANT = (Column("variant", numeric=False), lambda one: Cell.word(one.variant))


def _filled(layout: Layout, summaries: list[VariantSummary]) -> Grid:
    return Grid([column for column, _ in layout], [[cell(one) for _, cell in layout] for one in summaries])


def table(results: SuiteResults) -> Grid:
    """The printed table, the base first: what `quality` and `costs` hold."""
    return quality(results).beside(costs(results))


def quality(results: SuiteResults) -> Grid:
    """The metric of each variant, its difference to the base and the verdict."""
    unit = results.measured.unit

    def verdict(one: VariantSummary) -> Cell:
        return Cell.word(words.verdict(one.comparison) if one.comparison else words.NOTHING)

    def holm(one: VariantSummary) -> Cell:
        p = one.comparison.p_holm if one.comparison else math.nan
        return Cell(words.p(p, results.alpha), p)

    layout: Layout = [
        VARIANT,
        (
            Column("change", numeric=False, wraps=True),
            lambda one: Cell.word(words.change(one, one.variant in results.repeats)),
        ),
        (
            Column("n", numeric=False, wraps=True),
            lambda one: Cell(words.outcomes(one.outcomes), one.outcomes["finished"]),
        ),
        (
            Column(f"{results.measured.label} ↓", unit),
            lambda one: Cell(words.mean(one.metric), one.metric.mean),
        ),
        (
            Column("difference to base", unit),
            lambda one: Cell(
                words.difference(one.difference, one.metric.n), one.difference.mean if one.difference else 0.0
            ),
        ),
        (Column("verdict", numeric=False, wraps=True), verdict),
        (Column("p (Holm)"), holm),
    ]
    return _filled(layout, results.summaries)


def costs(results: SuiteResults) -> Grid:
    """What tuning chose for each variant and what it took, its size, speed and memory."""
    by = MATCHED.get(results.matched_by, "")
    matching: Layout = [(Column("residual", f"of {by}"), _residual)]
    layout: Layout = [
        VARIANT,
        *(_tuned(results) if results.choices else []),
        (
            Column("parameters"),
            lambda one: Cell(words.short(one.non_embedding_parameters), one.non_embedding_parameters),
        ),
        *(matching if by else []),
        (
            Column("speed", "tokens/s"),
            lambda one: Cell(words.speed(one.tokens_per_second, one.speed_ratio), one.tokens_per_second),
        ),
        (Column("memory"), lambda one: Cell(words.memory(one.peak_memory_bytes), one.peak_memory_bytes)),
    ]
    return _filled(layout, results.summaries)


def _residual(one: VariantSummary) -> Cell:
    share = one.matching.residual if one.matching else math.nan
    return Cell(words.percent(share), share)


def _tuned(results: SuiteResults) -> Layout:
    def of(show: Callable[[Choice], Cell]) -> Callable[[VariantSummary], Cell]:
        return lambda one: show(one.choice) if one.choice else Cell(words.NOTHING, math.nan)

    return [
        (
            Column(", ".join(map(words.key, results.grid)), wraps=True),
            of(lambda choice: Cell(words.chosen(choice), next(iter(choice.point.values())))),
        ),
        (Column("trials"), of(lambda choice: Cell(str(choice.trials), choice.trials))),
        (
            Column("sensitivity", results.measured.unit),
            of(lambda choice: Cell(words.plain(choice.sensitivity), choice.sensitivity)),
        ),
    ]


def comparisons(results: SuiteResults) -> Grid:
    """Every comparison: the tests behind its verdict, and what stands beside it for information."""
    unit = results.measured.unit

    def p(value: float) -> Cell:
        return Cell(words.p(value, results.alpha), value)

    def number(value: float, form: str = "{:.2g}") -> Cell:
        return Cell(form.format(value) if math.isfinite(value) else words.NOTHING, value)

    def row(one: VariantSummary, found: Comparison) -> list[Cell]:
        pairs = found.difference.n
        bca = words.NOTHING
        if found.bca:
            bca = f"{words.ends(found.bca)} ({100 * bca_coverage(pairs):.3g} %)"
        needed = found.seeds_needed
        return [
            Cell.word(one.variant),
            Cell(str(pairs), pairs),
            p(found.difference.p),
            p(found.p_holm),
            p(found.equivalence_p),
            Cell(words.plain(found.detectable), found.detectable),
            Cell(words.seeds(needed) if needed else words.NOTHING, needed or math.nan),
            p(found.sign_flip_p),
            Cell(bca, found.bca.mean if found.bca else math.nan),
            number(found.improvement, "{:.2f}"),
            number(found.correlation, "{:.2f}"),
            number(found.pairing_gain),
        ]

    columns = [
        Column("variant", numeric=False),
        Column("pairs"),
        Column("p", "paired t"),
        Column("p", "Holm"),
        Column("p", "equivalence"),
        Column("detectable", unit),
        Column("seeds needed"),
        Column("p", "sign flip"),
        Column("BCa interval", "its coverage"),
        Column("P(better)"),
        Column("correlation", "of pairs"),
        Column("pairing gain", "times the seeds"),
    ]
    return Grid(columns, [row(one, one.comparison) for one in results.summaries if one.comparison])


def choices(results: SuiteResults) -> Grid:
    """What tuning chose for each variant, and on what grounds."""
    unit = results.measured.unit
    metric = Column(f"{results.measured.label} ↓", f"{unit}, tune split")

    def value(one: VariantSummary) -> Cell:
        found = one.choice.value if one.choice else math.nan
        return Cell(words.fixed(found), found)

    def edge(one: VariantSummary) -> Cell:
        return Cell.word((one.choice.edge if one.choice else "") or words.NOTHING)

    chosen, trials, sensitivity = _tuned(results)
    edges = (Column("edge of the grid", numeric=False), edge)
    return _filled([VARIANT, chosen, (metric, value), trials, sensitivity, edges], results.summaries)
