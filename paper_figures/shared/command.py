"""`tnbench figures`, behind the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tnbench.errors import RequestError
from tnbench.paper_figures import registry
from tnbench.paper_figures.shared import checking, measuring, outputs
from tnbench.paper_figures.shared.about import About
from tnbench.paper_figures.shared.freshness import stale
from tnbench.paper_figures.shared.page import page
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.tables import Built
from tnbench.paper_figures.shared.verdicts import Verdict
from tnbench.report.words import counted

MEASURED = Path("results")
"""Where `--run` writes records, so that the committed reference stays what it is."""


def figures(
    names: Sequence[str],
    *,
    records: Path | None,
    out: Path | None,
    run: bool,
    check: bool,
    listing: bool,
    console: Console,
) -> int:
    """Write figures and tables and, for the whole set, the report and the numbers of the pages.

    Args:
        names: figures; none: all.
        records: where the records are; None: `results/reference`, with `run` `results`.
        out: where `figures/` and `report.html` go; None: the folder of the records.
        run: measure again first.
        check: write nothing, and say what is wrong.
        listing: list the figures; nothing else is done.

    Returns:
        The exit status: 0; 1 where the check found something or a measurement failed; 130 if interrupted.

    Raises:
        RequestError: an unknown figure, a folder that is missing or cannot be written, options that exclude
            each other.
    """
    abouts = {name: registry.module(name).ABOUT for name in dict.fromkeys(names or registry.MODULES)}
    if listing:
        console.print(_list(list(abouts.values())))
        return 0
    if run and check:
        raise RequestError("--run and --check exclude each other")
    root = records or (MEASURED if run else checking.REFERENCE)
    out = out or root
    if run:
        if not names:
            raise RequestError("--run measures what is named, as in tnbench figures gating --run; see --list")
        measuring.require_measurable(list(abouts.values()))
        _require_folder(out)
        if status := measuring.measure(list(abouts.values()), root, console):
            return status
    if not root.is_dir():
        raise RequestError(f"{root} is no folder of records; name one with --records")
    if not check:
        _require_folder(out)
    found = Records(root)
    built = {name: (about, registry.module(name).build(found)) for name, about in abouts.items()}
    for problem in dict.fromkeys(found.problems):
        console.print(f"note: {problem}", highlight=False, soft_wrap=True)
    report = "" if names else page(built, root, out, drawn=not check)
    if check:
        return _check(built, out, root, report, console)
    return _write(built, out, root, report, console)


def _require_folder(out: Path) -> None:
    """Raises RequestError where figures cannot be written."""
    try:
        (out / outputs.FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"cannot write to {out}: {reason}; choose another folder with --out") from error


def _check(
    built: Mapping[str, tuple[About, Built]], out: Path, root: Path, report: str, console: Console
) -> int:
    found = checking.problems(built, out, root, report)
    for line in found:
        console.print(line, highlight=False, soft_wrap=True)
    pages = checking.pages(root) if report else []
    what = f"{counted(len(built), 'figure')}, {counted(len(pages), 'page')}"
    console.print(
        f"{what}: {counted(len(found), 'problem') if found else 'nothing to complain of'}", highlight=False
    )
    return 1 if found else 0


def _write(
    built: Mapping[str, tuple[About, Built]], out: Path, root: Path, report: str, console: Console
) -> int:
    for about, one in built.values():
        outputs.write(about, one, out / outputs.FOLDER)
    console.print(_summary(built))
    notes = [note for _, one in built.values() for note in one.notes]
    stamps = [stamp for _, one in built.values() for stamp in stale(one.stamps, root)]
    notes += [
        f"{stamp.folder}: its {stamp.kind} code was {stamp.code}, now it is {stamp.present}"
        for stamp in dict.fromkeys(stamps)
    ]
    for note in dict.fromkeys(notes):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if report:
        outputs.put(out / checking.REPORT, report)
        for path in checking.render_pages(root) if out.resolve() == root.resolve() else []:
            console.print(f"numbers written anew: {path}", highlight=False, soft_wrap=True)
        console.print(f"Report: {out / checking.REPORT}", highlight=False, soft_wrap=True)
    console.print(f"Figures and tables: {out / outputs.FOLDER}", highlight=False, soft_wrap=True)
    return 0


def _summary(built: Mapping[str, tuple[About, Built]]) -> Table:
    """A row per figure: how many of its claims have which verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    table.add_column("records", justify="right")
    table.add_column("claims")
    for name, (_, one) in built.items():
        counts = Counter(
            str(found.verdict) if isinstance(found.verdict, Verdict) else f"open: {found.verdict}"
            for found in one.findings
        )
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        table.add_row(name, str(len(one.runs)), Text(told))
    return table


def _list(abouts: Sequence[About]) -> Table:
    """Name, title, and what measures it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("figure", "what it shows", "measured by"):
        table.add_column(head)
    for about in abouts:
        table.add_row(about.name, Text(about.title), Text(about.measure.how))
    return table
