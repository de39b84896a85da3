"""What is written from the records of one machine: CSV files, table.md and plots."""

from __future__ import annotations

from tnbench.profiling.models import plots, rows, table
from tnbench.profiling.models.store import Records, Store
from tnbench.report.drawing import save
from tnbench.report.results import Frame


def write(store: Store, records: Records) -> tuple[Frame, Frame]:
    """Write all files of a machine's folder, each as a whole or not at all.

    The same records give the same bytes, on one machine and with the same versions.

    Returns:
        What models.csv and largest.csv hold. The others are comparisons.csv, table.md, and
        [SUITE-]SIZE-PRECISION-vVOCABULARY-{speed,time,memory}.{png,pdf}.

    Raises:
        RecordsError: a file cannot be written.
    """
    frame, found = rows.models(records), rows.largest(records)
    contents: dict[str, str | bytes] = {"models.csv": _csv(frame)}
    if len(found):
        contents["largest.csv"] = _csv(found)
    contents["comparisons.csv"] = _csv(rows.comparisons(records))
    contents["table.md"] = table.markdown(frame, found, records)
    for name, figure in plots.figures(frame):
        contents[f"{name}.png"] = save(figure, "png", dpi=200)
        contents[f"{name}.pdf"] = save(figure, "pdf")
    store.write_files(contents)
    return frame, found


def _csv(frame: Frame) -> str:
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
