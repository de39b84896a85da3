"""`tnbench eval --by-position`, behind the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tnbench.config import DataConfig, check, digest
from tnbench.data import Split, prepare
from tnbench.errors import INTERRUPTED, RequestError
from tnbench.evaluation import study
from tnbench.evaluation.by_position import binned, files, length_of, losses, rows
from tnbench.evaluation.generation import inference_model
from tnbench.evaluation.loading import find_run, finished, load_run
from tnbench.evaluation.study import Store
from tnbench.profiling.lines import Line, RecordsError
from tnbench.profiling.machine import machine
from tnbench.records import RunFolder, command_line, now, provenance

LEARNED = "ape"
"""The position that has a last one."""


def by_position(
    runs: Sequence[str], text: str, device: str, precision: str | None, results: Path, console: Console
) -> int:
    """The loss of runs at each position of windows of the corpus that they were trained on.

    Args:
        runs: run ids, run folders or manifests.
        text: the windows' length, as `length_of` reads it.
        device, precision: as for `HarnessModel`.
        results: where runs are looked for, and in whose folder `evals` the records are written.

    Returns:
        The exit status: 0, 1 if something could not be written, 130 if interrupted.

    Raises:
        RequestError: the request is wrong, or the corpus is out of reach.
    """
    device, _ = machine(device)
    precision = precision or ("bf16" if device == "cuda" else "fp32")
    folders = [find_run(run, results) for run in runs]
    manifests = [finished(folder) for folder in folders]
    ids = [folder.id for folder in folders]
    for one in ids:
        if ids.count(one) > 1:
            raise RequestError(f"run {one} is given twice")
    identities = [
        {
            "run": folder.id, "precision": precision, "device": device,
            "length": length_of(text, int(manifest["config"]["data"]["context"])),
        }
        for folder, manifest in zip(folders, manifests, strict=True)
    ]  # fmt: skip
    store = Store(results / study.FOLDER)
    known = {digest(line["identity"]): line for line in store.positions()}
    for manifest, identity in zip(manifests, identities, strict=True):
        if digest(identity) not in known:
            _report_split(manifest, identity)
    shown: list[Line] = []
    with store.writing():
        try:
            for folder, manifest, identity in zip(folders, manifests, identities, strict=True):
                line = known.get(digest(identity))
                if line is None:
                    words = f"loss by position: {folder.id}, windows of {identity['length']}"
                    console.print(words, highlight=False)
                    line = read_run(folder, manifest, identity)
                    store.append([line])
                shown.append(line)
            frame = rows(store.positions())
            if len(frame):
                store.write_files(files(frame))
        except KeyboardInterrupt:
            console.print("interrupted: what was read is kept; the same command goes on from there")
            return INTERRUPTED
        except RecordsError as error:
            why = str(error).partition(";")[0]
            console.print(f"failed: {why}; what was recorded before is kept", highlight=False, soft_wrap=True)
            return 1
    _show_positions(shown, console)
    console.print(f"Records, table and plot: {store.folder}", highlight=False, soft_wrap=True)
    return 0


def read_run(folder: RunFolder, manifest: Mapping[str, Any], identity: Line) -> Line:
    """Read the windows of one run: its record.

    Args:
        identity: `run`, `precision`, `device` and `length`, what the numbers follow from.

    Raises:
        RequestError: its corpus is out of reach or another one now, it has no weights, or the windows are
            longer than the text or than its learned positions.
    """
    split = _report_split(manifest, identity)
    loaded = load_run(str(folder.path), folder.path, identity["device"])
    model = inference_model(loaded.model, identity["precision"])
    try:
        nats = losses(model, torch.from_numpy(split.tokens.astype("int64")), identity["length"])
    except ValueError as error:
        raise RequestError(f"run {identity['run']}: {error}") from error
    variant = manifest.get("variant")
    return {
        "kind": "positions",
        "time": now(),
        "command": command_line(),
        "provenance": provenance(),
        "model": f"{variant} {identity['run']}" if variant else identity["run"],
        "identity": identity,
        "trained_context": manifest["config"]["data"]["context"],
        "bytes_per_token": split.text_bytes / len(split.tokens),
        **asdict(binned(nats)),
    }


def _report_split(manifest: Mapping[str, Any], identity: Line) -> Split:
    """The text that is read, of which there is enough.

    Raises:
        RequestError: as `read_run`.
    """
    run, length = identity["run"], identity["length"]
    data: Any = prepare(check(DataConfig, manifest["config"]["data"], "data"))
    if "report" not in data.splits:
        raise RequestError(f"run {run} was trained on examples, which are no text to be read on")
    expected = manifest["data"]["hash"]
    if data.hash != expected:
        raise RequestError(
            f"run {run} was trained on another text: its hash was {expected}, "
            f"that of {data.corpus} is {data.hash} now"
        )
    split = data.splits["report"]
    if len(split.tokens) <= length:
        raise RequestError(
            f"run {run}: the text has {len(split.tokens)} tokens, less than one window of {length + 1}; "
            "give a shorter --by-position"
        )
    context = int(manifest["config"]["data"]["context"])
    if manifest["config"]["model"]["position"]["name"] == LEARNED and length > context:
        raise RequestError(
            f"run {run}: learned absolute positions end at {context}; give a shorter --by-position"
        )
    return split


def _show_positions(lines: Sequence[Line], console: Console) -> None:
    """Bits per token in the last bin within the trained context, and in those beyond."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, head in enumerate(("model", "tokens before", "bits per token", "± standard error")):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for line in lines:
        for low, high, bits, error in zip(
            line["edges"], line["edges"][1:], line["bits"], line["stderr"], strict=False
        ):
            beyond = " (beyond)" if low >= line["trained_context"] else ""
            place = f"{low} to {high - 1}{beyond}"
            table.add_row(Text(str(line["model"])), place, f"{bits:.3f}", f"{float(error):.3f}")
    console.print(table)
