"""The report of all figures: one file that opens without a network, in the style of the suites' reports."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import tnbench.report
from tnbench.paper_figures import registry
from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About
from tnbench.paper_figures.shared.outputs import FOLDER
from tnbench.paper_figures.shared.printing import grid
from tnbench.paper_figures.shared.tables import Built, Row
from tnbench.paper_figures.shared.verdicts import Finding, Verdict
from tnbench.report.drawing import inline_svg
from tnbench.report.tables import Cell, Grid

SUITE_PAGE = Path(tnbench.report.__file__).with_name("template.html.j2")
"""Its style and the script that sorts tables are this page's too."""
UNDRAWN = "<svg></svg>"


@dataclass(frozen=True)
class Line:
    """A claim with its verdict, as the page shows it."""

    finding: Finding
    section: str
    sign: str
    kind: str
    """Class of the style: a colour."""
    verdict: str
    link: str
    """To the records, relative to the page; empty: none."""


@dataclass(frozen=True)
class Section:
    """A figure on the page."""

    about: About
    group: str
    place: str
    lines: list[Line]
    drawing: str
    table: Grid
    links: list[str]
    """For each row of the table, where its records are; empty for the paper's."""
    inconsistencies: list[str]
    notes: list[str]
    commands: list[str]
    measured: bool
    ids: int


def page(built: Mapping[str, tuple[About, Built]], root: Path, out: Path, drawn: bool = True) -> str:
    """The page, with everything in it: text, figures, tables, style and script.

    Args:
        built: figure → what its module made of the records.
        root: the folder of the records.
        out: the folder that the page stands in.
        drawn: False leaves the figures empty, for a comparison of all else.
    """
    groups = {
        module.replace("_", "-"): group for group, modules in registry.GROUPS.items() for module in modules
    }
    toward = os.path.relpath(root, out)
    toward = "" if toward == "." else f"{Path(toward).as_posix()}/"
    sections = [_section(about, one, groups[name], toward, drawn) for name, (about, one) in built.items()]
    lines = [line for section in sections for line in section.lines]
    counts = Counter(line.finding.verdict for line in lines)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _of_suites()
    return environment.get_template("page.html.j2").render(
        sections=sections,
        lines=lines,
        counts=[(verdict, drawing.SIGNS[verdict], verdict.name, counts[verdict]) for verdict in Verdict],
        open=sum(not isinstance(line.finding.verdict, Verdict) for line in lines),
        sources=published.sources(),
        folder=FOLDER,
        style=style,
        script=script,
        key=_key,
    )


def _of_suites() -> tuple[str, str]:
    """Style and script of a suite's page."""
    text = SUITE_PAGE.read_text(encoding="utf-8")
    found = [re.search(rf"<{tag}>\n(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script")]
    assert all(found), f"{SUITE_PAGE} has no style or no script"
    style, script = (one.group(1) for one in found if one)
    return style, script


def _section(about: About, built: Built, group: str, toward: str, drawn: bool) -> Section:
    table = _published(about)
    notes = list(built.notes)
    notes += [
        f"The records in {stamp.folder} were made by the {stamp.kind} code {stamp.code}."
        for stamp in dict.fromkeys(built.stamps)
    ]
    commands = dict.fromkeys(row.command for row in built.rows if row.ours and row.command)
    return Section(
        about=about,
        group=group,
        place=published.place(table.get("where", {})) or "no table or figure of the paper",
        lines=[_line(about, finding, toward) for finding in built.findings],
        drawing=inline_svg(built.figure).strip() if drawn else UNDRAWN,
        table=grid(built.rows),
        links=[_link(row, toward) for row in built.rows],
        inconsistencies=published.inconsistencies(tuple(table.get("inconsistent", ()))),
        notes=notes,
        commands=list(commands) or [about.measure.how],
        measured=built.measured,
        ids=len(built.runs),
    )


def _published(about: About) -> Mapping:
    """What is printed of a figure; the open questions on the decay have the note on its formula."""
    if about.name == "downstream":
        return published.downstream()
    if not about.table:
        more = {"loss-units": ["one-billion-perplexity", "loss-up-perplexity-down"]}
        decays = ["decay-formula"] if about.name.startswith("decay") else []
        return {"inconsistent": more.get(about.name, decays)}
    return published.ablation(about.table) if about.measure.suite else published.efficiency(about.table)


def _line(about: About, finding: Finding, toward: str) -> Line:
    known = isinstance(finding.verdict, Verdict)
    verdict = Verdict(finding.verdict) if known else None
    return Line(
        finding,
        about.name,
        drawing.SIGNS[verdict] if verdict else "·",
        verdict.name if verdict else "open",
        str(finding.verdict) if known else f"open question: {finding.verdict}",
        records_link(finding.records, toward),
    )


def _link(row: Row, toward: str) -> str:
    return records_link(row.where, toward) if row.ours else ""


def records_link(folder: str, toward: str) -> str:
    """The file that the numbers of a folder are read from.

    >>> records_link("gating", ""), records_link("kernels/h100", "../r/")
    ('gating/runs.csv', '../r/kernels/h100/records.jsonl')
    """
    if not folder:
        return ""
    measured = folder.split("/")[0] in ("kernels", "models", "evals")
    return f"{toward}{folder}/{'records.jsonl' if measured else 'runs.csv'}"


def _key(cell: Cell) -> str:
    """What the page's script sorts by; nothing for an unknown number, which comes last."""
    return "" if cell.key != cell.key else str(cell.key)
