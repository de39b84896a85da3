"""What is written from the records of one machine: CSV files, table.md and plots."""

from __future__ import annotations

from collections import Counter

from tnbench.profiling.kernels import plots, rows, table
from tnbench.profiling.kernels.panels import Panel, panels
from tnbench.profiling.kernels.store import Records, Store, kernel_hash
from tnbench.report.drawing import save
from tnbench.report.results import Frame


def write(store: Store, records: Records) -> tuple[Frame, Frame]:
    """Write all files of a machine's folder, each as a whole or not at all.

    The same records give the same bytes, on one machine and with the same versions.

    Returns:
        What kernels.csv and summary.csv hold. The others are comparisons.csv, break_even.csv, table.md, and
        OPERATOR-DTYPE-{time,memory,roofline}.{png,pdf}.

    Raises:
        RecordsError: a file cannot be written.
    """
    frame, summary, crossings = rows.kernels(records), rows.summary(records), rows.break_evens(records)
    contents: dict[str, str | bytes] = {
        "kernels.csv": _csv(frame),
        "comparisons.csv": _csv(rows.comparisons(records)),
        "summary.csv": _csv(summary),
        "break_even.csv": _csv(crossings),
        "table.md": table.markdown(frame, summary, crossings, records),
    }
    groups: dict[tuple[str, str], list[Panel]] = {}
    for panel in panels(frame):
        groups.setdefault((panel.operator, panel.dtype), []).append(panel)
    for key, found in groups.items():
        looks = plots.looks(frame[frame["operator"] == key[0]])
        for measure in plots.MEASURES:
            figure = plots.figure(measure, found, looks)
            if figure is not None:
                name = "-".join([*key, measure])
                contents[f"{name}.png"] = save(figure, "png", dpi=200)
                contents[f"{name}.pdf"] = save(figure, "pdf")
    store.write_files(contents)
    return frame, summary


def outdated(records: Records) -> list[str]:
    """How many points of each operator were measured with other kernels than those that are here now."""
    counts = Counter(
        block.case["operator"]
        for block in records.shown()
        if block.line["kernel_hash"] != kernel_hash(block.case["operator"])
    )
    return [
        f"{count} points of {operator} were measured with other kernels than those of this version"
        for operator, count in counts.items()
    ]


def _csv(frame: Frame) -> str:
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
