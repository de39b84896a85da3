"""What the modules of ablations share: the paper's table and the records of a suite, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About
from tnbench.paper_figures.shared.records import Records, SuiteRecords
from tnbench.paper_figures.shared.tables import OURS, Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Finding, Verdict, judged
from tnbench.report import words
from tnbench.statistics import Comparison, Interval


def built(
    about: About,
    claims: Sequence[Claim],
    records: Records,
    *,
    names: Mapping[str, str],
    under: str,
) -> Built:
    """The figure, rows and verdicts of an ablation.

    Args:
        about: the figure; its suite is where ours come from.
        claims: what the paper says of rows and variants.
        records: where they are looked for.
        names: variant of the suite → the line that shows it, the base first; a line that the paper has too
            bears the name of its row. Variants that are not named belong to another figure.
        under: a sentence under the title.
    """
    suites = records.suites(about.measure.suite)
    rows = [*(of_table(about) if about.table else []), *of_suites(suites, names)]
    findings = [one for claim in claims for one in _findings(claim, suites, about)]
    rows = [_with_claim(row, findings) for row in rows]
    figure = drawing.forest(about.title, under, _subjects(about, names, suites, rows), rows, findings)
    notes = [
        f"{one.where}, {names[variant]}: {lost}"
        for one in suites
        for variant in one.variants
        if variant in names and (lost := one.outcomes(variant))
    ]
    return Built(figure, rows, findings, [stamp for one in suites for stamp in one.stamps], notes)


def of_table(about: About) -> Iterator[Row]:
    """The printed losses, every version's rows against the base that this version has."""
    table = published.ablation(about.table)
    first, second = published.VERSIONS
    for version in published.VERSIONS:
        base = table["base"][version]
        for name, printed in table["rows"].items():
            value = published.loss(printed, version)
            if value is None:
                continue
            against = printed.get("base", base)
            if name == base or against == name or name in _own_bases(table):
                against = ""
            reference = published.loss(table["rows"][against], version) if against else None
            mixed = "not-rerun" in table["inconsistent"] and version == second and against
            moved = mixed and printed.get(first) == printed.get(second)
            yield of_paper(
                name,
                f"paper {version}",
                "training loss",
                published.LOSS_UNIT,
                value,
                base=reference,
                against=against,
                setting=f"{printed['parameters']}, 100K updates, one run",
                where=f"{version} {table['where'][version]}",
                note="printed as in v1, whose base was another model" if moved else "",
            )


def _own_bases(table: Mapping) -> set[str]:
    """Rows that others name as their base."""
    return {row["base"] for row in table["rows"].values() if "base" in row}


def of_suites(suites: Sequence[SuiteRecords], names: Mapping[str, str]) -> Iterator[Row]:
    """What the runs of each suite say: means, and differences to the suite's base."""
    for one in suites:
        label, unit = one.measured.label, one.measured.unit
        shared: dict[str, Any] = {"setting": one.setting, "where": one.where, "command": one.command}
        base = one.mean(one.base)
        for variant in names:
            if variant not in one.variants:
                continue
            name = names[variant]
            if variant == one.base:
                yield Row(name, OURS, label, unit, value=base, runs=one.ids(variant), **shared)
                continue
            found = one.comparisons[variant]
            yield Row(
                name,
                OURS,
                label,
                unit,
                against=names.get(one.base, one.base),
                value=one.mean(variant),
                base=base,
                difference=found.difference,
                relative=one.relative(variant),
                p_holm=found.p_holm,
                margin=math.nan if one.margin is None else one.margin,
                verdict=words.verdict(found),
                runs=one.ids(variant, one.base),
                note=one.outcomes(variant),
                **shared,
            )


def _findings(claim: Claim, suites: Sequence[SuiteRecords], about: About) -> Iterator[Finding]:
    measured = [one for one in suites if claim.variant in one.comparisons]
    if not measured:
        yield Finding(claim, Verdict.missing, command=about.measure.command)
    for one in measured:
        found = one.comparisons[claim.variant]
        yield Finding(
            claim,
            judged(claim.expects, found),
            because(found, one, one.relative(claim.variant)),
            one.setting,
            one.where,
            one.command,
            one.ids(claim.variant, one.base),
        )


def because(found: Comparison, one: SuiteRecords, relative: Interval) -> str:
    """The difference with its interval, absolute and relative, its p, and what the comparison says."""
    difference, unit = found.difference, one.measured.unit
    if not difference.n:
        return "no seed has finished both here and in the base"
    text = f"{words.difference(difference)} {unit}"
    if difference.exists:
        text += f", {difference.n} pairs"
        if math.isfinite(relative.mean):
            text += f", {words.percent(relative.mean)}"
    if math.isfinite(found.p_holm):
        text += f", {words.p_is(found.p_holm, one.alpha)} (Holm)"
    return f"{text}: {words.verdict(found, unit)}"


def _with_claim(row: Row, findings: Sequence[Finding]) -> Row:
    """Rows of ours bear the verdict on the claim about them."""
    if not row.ours:
        return row
    mine = [one for one in findings if one.records == row.where and one.claim.about(row.subject)]
    known = mine and isinstance(mine[0].verdict, Verdict)
    return replace(row, claim=str(mine[0].verdict)) if known else row


def _subjects(
    about: About, names: Mapping[str, str], suites: Sequence[SuiteRecords], rows: Sequence[Row]
) -> list[str]:
    """The lines of the figure: those of the paper, then ours; bases that differ from nothing apart."""
    bases = {names[one.base] for one in suites if one.base in names} or {next(iter(names.values()))}
    paper: list[str] = []
    if about.table:
        table = published.ablation(about.table)
        paper = [name for name in table["rows"] if name not in _own_bases(table)]
    different = {row.subject for row in rows if math.isfinite(row.difference.mean)}
    lines = dict.fromkeys([*paper, *names.values()])
    return [name for name in lines if name in different or name not in bases]
