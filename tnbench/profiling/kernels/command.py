"""`tnbench profile-kernels`, behind the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tnbench.errors import INTERRUPTED, RequestError
from tnbench.profiling.kernels import planning, report
from tnbench.profiling.kernels.against import commit_of, kernels_at
from tnbench.profiling.kernels.campaign import Campaign, Measurement, Point
from tnbench.profiling.kernels.panels import panels
from tnbench.profiling.kernels.rows import shape_words
from tnbench.profiling.kernels.store import Records, Store
from tnbench.profiling.kernels.table import LEGEND, summary_lines, terminal
from tnbench.profiling.lines import RecordsError, slug
from tnbench.profiling.machine import installed_version
from tnbench.profiling.machine import machine as machine_of
from tnbench.profiling.pool import Pool
from tnbench.profiling.progress import Progress, Watcher, conclude
from tnbench.records import command_line, provenance
from tnbench.report.words import duration

TIMES = (20, 0.05)
"""Most calls, and seconds, of an implementation in a round."""
ROUNDS = {"cuda": 5, "cpu": 3}
ENERGY_WINDOW = 0.3
"""Seconds of back-to-back calls over which energy is counted, on a GPU."""
PACKAGES = (
    *("torch", "triton", "fla-core", "flash-linear-attention", "lightning-attn", "mlstm-kernels"),
    *("liger-kernel", "xopes", "einops", "nvidia-ml-py"),
)
REPRODUCED = "reproduced"
"""Where the commands of single rows write: they leave the campaign's own records alone."""


def profile_kernels(
    operators: Sequence[str],
    *,
    axes: dict[str, tuple],
    implementations: Sequence[str],
    rounds: int | None,
    energy: float | None,
    against: str | None,
    time_limit: float | None,
    device: str,
    results: Path,
    mode: str,
    console: Console,
) -> int:
    """Measure what is missing, then write tables and plots from the records.

    Args:
        operators, axes, implementations: see `planning.Wanted`.
        rounds: interleaved rounds at each point, None for the default of the device.
        energy: seconds of the energy window, 0 for none, None for the default of the device.
        against: a git revision whose kernels are measured beside these.
        time_limit: seconds after which nothing more is started.
        mode: `run`, `plan` (rows and an estimate, nothing run) or `report` (no measuring).

    Returns:
        The exit status: 0, 1 if an implementation crashed or hung, or records could not be written, 130 if
        interrupted.

    Raises:
        RequestError: the request is wrong; nothing has been run.
    """
    if mode == "report":
        return _report_all(results / "kernels", console)
    commit = commit_of(against) if against else ""
    wanted = planning.Wanted(tuple(operators), axes, tuple(implementations), commit)
    planning.operators(wanted.operators)
    device, machine = machine_of(device)
    calls, seconds = TIMES
    measurement = Measurement(rounds or ROUNDS[device], calls, seconds)
    energy = (ENERGY_WINDOW if device == "cuda" else 0.0) if energy is None else energy
    points = planning.points(wanted, device, _stack(), REPRODUCED)
    store = Store(results / "kernels" / slug(machine))
    if mode == "plan":
        _show_plan(points, store.read(), measurement, energy, machine, console)
        return 0
    session = {
        "device": machine,
        "command": command_line(),
        "versions": {name: text for name in PACKAGES if (text := installed_version(name))},
        "measurement": asdict(measurement),
        "energy_window": energy,
        "provenance": provenance(),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.writing())
        folder = stack.enter_context(kernels_at(commit)) if commit else None
        pool = stack.enter_context(Pool(lambda name: _command(name, device, folder)))
        watcher = stack.enter_context(Watcher(console))
        records = store.read()
        campaign = Campaign(
            pool,
            store,
            measurement,
            energy=energy,
            side_by_side=device == "cuda",
            time_limit=time_limit,
            watch=watcher,
        )
        try:
            progress = campaign.run(points, records, session)
        except RecordsError as error:
            console.print(
                f"failed: {error}; what was recorded before is kept", highlight=False, soft_wrap=True
            )
            return 1
    return _finish(store, progress, campaign.session, console)


def _command(name: str, device: str, folder: Path | None) -> list[str]:
    """Of a worker; `NAME@COMMIT` is NAME with the kernels of `folder`."""
    implementation, _, commit = name.partition("@")
    words = [sys.executable, "-m", "tnbench.profiling.kernels.worker", implementation, "--device", device]
    return [*words, "--kernels-from", str(folder)] if commit else words


def _finish(store: Store, progress: Progress, session: str, console: Console) -> int:
    records = store.read()
    if records.blocks:
        try:
            _report(store, records, console)
        except RecordsError as error:
            console.print(f"failed: {error}", highlight=False, soft_wrap=True)
            return 1
    shown = [block.line["session"] for block in records.shown()]
    now = [block.line["session"] for block in records.blocks]
    hidden = now.count(session) - shown.count(session)
    conclude(progress, store.folder if records.blocks else None, hidden, "implementations", console)
    if progress.stopped == "interrupted":
        return INTERRUPTED
    return 1 if progress.rows.keys() & {"crashed", "hung"} else 0


def _report(store: Store, records: Records, console: Console) -> None:
    frame, summary = report.write(store, records)
    for panel in panels(frame):
        console.print(terminal(panel))
    console.print(LEGEND, highlight=False)
    for line in summary_lines(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for note in (*records.problems, *report.outdated(records)):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _report_all(folder: Path, console: Console) -> int:
    """Rewrite the tables and plots of every machine that has records."""
    found = [
        (store, store.read())
        for store in (Store(path.parent) for path in sorted(folder.glob("*/records.jsonl")))
    ]
    found = [(store, records) for store, records in found if records.blocks]
    if not found:
        raise RequestError(f"{folder} holds no records of kernels; run tnbench profile-kernels")
    for store, records in found:
        try:
            _report(store, records, console)
        except RecordsError as error:
            console.print(f"failed: {error}", highlight=False, soft_wrap=True)
            return 1
        console.print(f"Tables and plots: {store.folder}", highlight=False, soft_wrap=True)
    return 0


def _show_plan(
    points: Sequence[Point],
    records: Records,
    measurement: Measurement,
    energy: float,
    machine: str,
    console: Console,
) -> None:
    """What would be measured, and the least that it takes."""
    missing = [
        point for point in points if records.current(point.key(measurement), point.implementations) is None
    ]
    for point in points:
        state = "to measure" if point in missing else "there"
        case = point.case
        console.print(
            f"{case['operator']} {case['mode']} {case['dtype']} {shape_words(case)}: "
            f"{', '.join(point.implementations)} ({state})",
            highlight=False,
            soft_wrap=True,
        )
    seconds = planning.least_seconds(missing, measurement.rounds, measurement.seconds, energy)
    rows = sum(len(point.implementations) for point in missing)
    console.print(
        f"{machine}: {len(missing)} of {len(points)} points to measure, {rows} rows, "
        f"at least {duration(seconds)} of timing; preparing and judging each row comes on top, "
        "and peers that tune themselves take minutes",
        highlight=False,
        soft_wrap=True,
    )


def _stack() -> dict[str, str | None]:
    return {name: installed_version(name) for name in ("torch", "triton")}
