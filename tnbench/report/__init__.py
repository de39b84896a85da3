"""Reports: the records of one suite as tables, figures and a page. Nothing else enters them."""

from __future__ import annotations

from pathlib import Path

from tnbench.records import write_atomic
from tnbench.report import formats, frames, html, plots, recall_plot, tuning_plot
from tnbench.report.drawing import save
from tnbench.report.formats import terminal_table
from tnbench.report.results import (
    CURVE_COLUMNS,
    METRICS,
    OUTCOMES,
    RUN_COLUMNS,
    TUNING_COLUMNS,
    Choice,
    Matching,
    SuiteResults,
)

__all__ = [
    "CURVE_COLUMNS",
    "METRICS",
    "OUTCOMES",
    "RUN_COLUMNS",
    "TUNING_COLUMNS",
    "Choice",
    "Matching",
    "SuiteResults",
    "terminal_table",
    "write_reports",
]

OF_TUNING = ("tuning.csv", "tuning.png", "tuning.pdf")
OF_RECALL = ("recall.csv", "recall.png", "recall.pdf")


def write_reports(results: SuiteResults, folder: Path) -> list[Path]:
    """Write the tables, figures and page of a suite, each file as a whole or not at all.

    The same results give the same bytes, on one machine and with the same versions. Without tuning runs the
    files of an earlier tuning are deleted: they would tell of a suite that is no more; likewise those of
    recall, where nothing was asked.

    Returns:
        The paths: runs.csv, summary.csv, comparisons.csv, table.md, table.tex, curves.png, curves.pdf, where
        there was tuning tuning.csv, tuning.png and tuning.pdf, where answers were scored recall.csv,
        recall.png and recall.pdf, and report.html.
    """
    curves, _ = plots.curves(results)
    contents = {
        "runs.csv": frames.runs(results).to_csv(index=False, lineterminator="\n"),
        "summary.csv": frames.summary(results).to_csv(index=False, lineterminator="\n"),
        "comparisons.csv": frames.comparisons(results).to_csv(index=False, lineterminator="\n"),
        "table.md": formats.markdown(results),
        "table.tex": formats.latex(results),
        "curves.png": save(curves, "png"),
        "curves.pdf": save(curves, "pdf"),
    }
    tuning = None
    if results.tuned:
        tuning, _ = tuning_plot.tuning(results)
        csv = frames.tuning(results).to_csv(index=False, lineterminator="\n")
        contents |= dict(zip(OF_TUNING, (csv, save(tuning, "png"), save(tuning, "pdf")), strict=True))
    recall = None
    if recall_plot.ERROR in results.runs:
        recall, table = recall_plot.recall(results)
        csv = table.to_csv(index=False, lineterminator="\n")
        contents |= dict(zip(OF_RECALL, (csv, save(recall, "png"), save(recall, "pdf")), strict=True))
    contents["report.html"] = html.page(results, curves, tuning, recall)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    for name in {*OF_TUNING, *OF_RECALL} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in contents]
