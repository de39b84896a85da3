"""Whether other code still gives the recorded numbers: python -m tnbench.paper_figures.shared.repeating

Where the records behind figures are those of other code, one run of every variant is trained again, and the
study of inference errors is made again. If all recorded values come again, to the bit, `code.yaml` takes the
present code for that of the records (`freshness`). On a CPU this takes half a minute a run for the small
models; what was trained on a GPU needs one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from tnbench.ablation.repeat import repeat
from tnbench.commands import leave, run_alone
from tnbench.console import console
from tnbench.errors import RequestError
from tnbench.paper_figures import registry, robust_inference
from tnbench.paper_figures.shared.checking import REFERENCE
from tnbench.paper_figures.shared.freshness import FILE, read, stale
from tnbench.paper_figures.shared.outputs import put
from tnbench.paper_figures.shared.records import INFERENCE_ERROR, Records, SuiteRecords
from tnbench.paper_figures.shared.tables import Stamp
from tnbench.profiling import inference_error_report
from tnbench.report.words import counted

MEASURED = ("overflow", "model", "series")
"""What has to come again of a study of inference errors."""


def suites(records: Records) -> list[SuiteRecords]:
    """The suites behind figures whose records are those of other code, each once."""
    names = dict.fromkeys(registry.module(name).ABOUT.measure.suite for name in registry.MODULES)
    found = [one for name in names if name for one in records.suites(name)]
    return [one for one in found if stale(one.stamps, records.root)]


def trained(one: SuiteRecords, folder: Path, shown: Console) -> str:
    """Train the first finished run of every variant again; what was seen, or empty where a value differs.

    Args:
        folder: where the repeats are written.
    """
    finished = ([run for run in runs if run.outcome == "finished"] for runs in one.variants.values())
    runs = [found[0] for found in finished if found]
    for run in runs:
        shown.print(f"{one.where}: {run.variant}, run {run.folder.id}", highlight=False)
        if repeat(run.folder.manifest, results=folder, keep="none", console=shown):
            return ""
    return f"tnbench train --from, {counted(len(runs), 'run')} of {one.where}, one per variant: identical"


def studied(records: Records, folder: Path) -> str:
    """Make the study of inference errors again; what was seen, or empty where a value differs."""
    command = ["-m", "tnbench.profiling.inference_error", "--results", str(folder)]
    if subprocess.run([sys.executable, *command], check=False, stdout=subprocess.DEVNULL).returncode:
        return ""
    again = inference_error_report.read(folder / INFERENCE_ERROR)
    there = inference_error_report.read(records.root / INFERENCE_ERROR)
    same = all(again[name] == there[name] for name in MEASURED)
    return "python -m tnbench.profiling.inference_error: identical" if same else ""


def main(
    records: Annotated[Path, typer.Option("--records", help="Where the records are.")] = REFERENCE,
) -> None:
    """Repeat what stale records were made by; write code.yaml where all values are the same."""
    if not records.is_dir():
        raise RequestError(f"{records} is no folder of records; name one with --records")
    shown, found, failed = console(), Records(records), 0
    for one in suites(found):
        with tempfile.TemporaryDirectory(prefix="tnbench-repeat-") as folder:
            failed += not _noted(one.stamps, trained(one, Path(folder), shown), records)
    stamps = robust_inference.build(found).stamps
    if stale(stamps, records):
        with tempfile.TemporaryDirectory(prefix="tnbench-repeat-") as folder:
            failed += not _noted(stamps, studied(found, Path(folder)), records)
    leave(1 if failed else 0)


def _noted(stamps: list[Stamp], seen: str, root: Path) -> bool:
    """Write what was seen into `code.yaml`, in place of what was seen of earlier code."""
    lines = read(root)
    for stamp in stamps if seen else ():
        entry = {"kind": stamp.kind, "records": stamp.code, "code": stamp.present, "seen": seen}
        lines = [line for line in lines if (line["kind"], line["records"]) != (stamp.kind, stamp.code)]
        lines.append(entry)
    if seen:
        put(root / FILE, yaml.safe_dump(lines, sort_keys=False, width=1000))
    return bool(seen)


if __name__ == "__main__":
    run_alone(main)
