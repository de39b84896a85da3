"""Reports: the records of one suite as tables, figures and a page. Nothing else enters them."""

from __future__ import annotations

from pathlib import Path

from tnbench.records import write_atomic
from tnbench.report import html, plots, tables
from tnbench.report.results import CURVE_COLUMNS, METRICS, OUTCOMES, RUN_COLUMNS, SuiteResults
from tnbench.report.tables import terminal_table

__all__ = [
    "CURVE_COLUMNS",
    "METRICS",
    "OUTCOMES",
    "RUN_COLUMNS",
    "SuiteResults",
    "terminal_table",
    "write_reports",
]


def write_reports(results: SuiteResults, folder: Path) -> list[Path]:
    """Write the tables, figures and page of a suite, each file as a whole or not at all.

    The same results give the same bytes, on one machine and with the same versions.

    Returns:
        The paths: runs.csv, summary.csv, table.md, table.tex, curves.png, curves.pdf, report.html.
    """
    figure, _ = plots.curves(results)
    contents = {
        "runs.csv": tables.runs(results).to_csv(index=False, lineterminator="\n"),
        "summary.csv": tables.summary(results).to_csv(index=False, lineterminator="\n"),
        "table.md": tables.markdown(results),
        "table.tex": tables.latex(results),
        "curves.png": plots.save(figure, "png"),
        "curves.pdf": plots.save(figure, "pdf"),
        "report.html": html.page(results, figure),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [folder / name for name in contents]
