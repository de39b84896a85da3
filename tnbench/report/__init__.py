"""Reports: the records of one suite as tables, figures and a page. Nothing else enters them."""

from __future__ import annotations

from pathlib import Path

from tnbench.records import write_atomic
from tnbench.report import (
    eval_frames,
    eval_tables,
    formats,
    frames,
    html,
    plots,
    positions_plot,
    recall_plot,
    tuning_plot,
)
from tnbench.report.drawing import save
from tnbench.report.eval_terminal import terminal_evaluations
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
    "terminal_evaluations",
    "terminal_table",
    "write_reports",
]

OF_TUNING = ("tuning.csv", "tuning.png", "tuning.pdf")
OF_RECALL = ("recall.csv", "recall.png", "recall.pdf")
OF_TASKS = ("evals.csv", "eval_summary.csv")
OF_POSITIONS = ("positions.csv", "positions.png", "positions.pdf")


def write_reports(results: SuiteResults, folder: Path) -> list[Path]:
    """Write the tables, figures and page of a suite, each file as a whole or not at all.

    The same results give the same bytes, on one machine and with the same versions. Without tuning runs,
    evaluations or recall the files of earlier ones are deleted: they would tell of a suite that is no more.

    Returns:
        The paths: runs.csv, summary.csv, comparisons.csv, table.md, table.tex, curves.png, curves.pdf; where
        there was tuning tuning.csv, tuning.png and tuning.pdf; where answers were scored recall.csv,
        recall.png and recall.pdf; where runs are asked tasks evals.csv and eval_summary.csv, and where they
        are read by position positions.csv, positions.png and positions.pdf; report.html.
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
    if eval_tables.shown(results):
        csvs = (eval_frames.values(results), eval_frames.summary(results))
        texts = (frame.to_csv(index=False, lineterminator="\n") for frame in csvs)
        contents |= dict(zip(OF_TASKS, texts, strict=True))
    positions = None
    if results.evals and len(results.evals.positions):
        positions, table = positions_plot.figure(results)
        csv = table.to_csv(index=False, lineterminator="\n")
        contents |= dict(
            zip(OF_POSITIONS, (csv, save(positions, "png"), save(positions, "pdf")), strict=True)
        )
    contents["report.html"] = html.page(results, curves, tuning, recall, positions)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    for name in {*OF_TUNING, *OF_RECALL, *OF_TASKS, *OF_POSITIONS} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in contents]
