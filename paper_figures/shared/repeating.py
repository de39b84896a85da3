"""Whether other code still gives the recorded numbers: python -m tnbench.paper_figures.shared.repeating

Where the records behind figures are those of other code, one run of every variant is trained again, and the
study of inference errors is made again. If all recorded values come again, to the bit, `code.yaml` takes the
present code for that of the records (`freshness`). On a CPU this takes half a minute a run for the small
models, as many at a time as there are cores; what was trained on a GPU needs one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from tnbench.ablation.sides import Record
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
    built = (registry.module(name).build(records) for name in registry.MODULES)
    stamps = dict.fromkeys(stamp for one in built for stamp in stale(one.stamps, records.root))
    folders = dict.fromkeys(stamp.folder for stamp in stamps if stamp.kind == "training")
    names = dict.fromkeys(Path(folder).name for folder in folders)
    return [one for name in names for one in records.suites(name) if one.where in folders]


def first_runs(one: SuiteRecords) -> list[Record]:
    """The first finished run of every variant."""
    finished = ([run for run in runs if run.outcome == "finished"] for runs in one.variants.values())
    return [found[0] for found in finished if found]


def again(run: Record, folder: Path) -> tuple[bool, str]:
    """Train a run again in a process of its own; whether all values came again, and the line that says so.

    Args:
        folder: where the repeat is written.
    """
    command = [sys.executable, "-m", "tnbench.cli", "train", "--from", str(run.folder.manifest)]
    command += ["--results", str(folder), "--keep", "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = (done.stdout if not done.returncode else done.stderr or done.stdout).strip().splitlines()
    return not done.returncode, said[-1] if said else f"exit status {done.returncode}"


def trained(found: Sequence[SuiteRecords], folder: Path, shown: Console) -> list[str]:
    """Train one run of every variant again, on a CPU as many at a time as it has cores.

    Args:
        folder: where the repeats are written.

    Returns:
        For each suite what was seen, or empty where a value differs.
    """
    runs = [(one, run) for one in found for run in first_runs(one)]
    gpu = any(run.config.get("training.device") == "cuda" for _, run in runs)
    same = dict.fromkeys((one.where for one in found), True)
    with ThreadPoolExecutor(1 if gpu else os.cpu_count() or 1) as pool:
        tasks = {pool.submit(again, run, folder / run.folder.id): (one, run) for one, run in runs}
        for number, task in enumerate(as_completed(tasks), 1):
            (one, run), (came, said) = tasks[task], task.result()
            same[one.where] &= came
            where = f"[{number}/{len(tasks)}] {one.where}: {run.variant}, run {run.folder.id}"
            shown.print(f"{where}: {said}", highlight=False, markup=False, soft_wrap=True)
    texts = []
    for one in found:
        count = sum(other is one for other, _ in runs)
        text = f"tnbench train --from, {counted(count, 'run')} of {one.where}, one per variant: identical"
        texts.append(text if same[one.where] and count else "")
    return texts


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
    shown, found = console(), Records(records)
    seen: list[tuple[list[Stamp], str]] = []
    stale_suites = suites(found)
    stamps = robust_inference.build(found).stamps
    with tempfile.TemporaryDirectory(prefix="tnbench-repeat-") as folder:
        told = trained(stale_suites, Path(folder), shown)
        seen += [(one.stamps, text) for one, text in zip(stale_suites, told, strict=True)]
        if stale(stamps, records):
            seen.append((stamps, studied(found, Path(folder))))
    note(seen, records)
    leave(0 if all(text for _, text in seen) else 1)


def note(seen: Sequence[tuple[Sequence[Stamp], str]], root: Path) -> None:
    """Write what was seen into `code.yaml`, in place of what was seen of earlier code.

    Records that share their code are taken for the present one's together, or not at all.

    Args:
        seen: records, and what was seen of them, empty where a value differs.
    """
    texts: dict[Stamp, list[str]] = {}
    for stamps, text in seen:
        for stamp in stamps:
            key = replace(stamp, folder="", command="")
            texts.setdefault(key, []).append(text)
    lines = read(root)
    for stamp, told in texts.items():
        if all(told):
            entry = {
                "kind": stamp.kind,
                "records": stamp.code,
                "code": stamp.present,
                "seen": "; ".join(told),
            }
            lines = [line for line in lines if (line["kind"], line["records"]) != (stamp.kind, stamp.code)]
            lines.append(entry)
    if lines != read(root):
        put(root / FILE, yaml.safe_dump(lines, sort_keys=False, width=1000))


if __name__ == "__main__":
    run_alone(main)
