"""`tnbench profile-model`, behind the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from tnbench.errors import INTERRUPTED, RequestError
from tnbench.profiling.lines import RecordsError, slug
from tnbench.profiling.machine import installed_version, machine
from tnbench.profiling.models import planning, report, table
from tnbench.profiling.models.campaign import Campaign, Measurement, Point, Session, words
from tnbench.profiling.models.largest import Axis, Search
from tnbench.profiling.models.store import Records, Store, code_hash
from tnbench.profiling.models.variants import Variant
from tnbench.profiling.progress import Progress, Watcher, conclude
from tnbench.records import command_line, provenance
from tnbench.report.words import counted, duration, memory

PACKAGES = (
    *("torch", "triton", "flash-linear-attention", "fla-core", "liger-kernel", "transformers"),
    "nvidia-ml-py",
)
REPRODUCED = "reproduced"
"""Where the commands of single rows write: they leave the campaign's own records alone."""
FOLDER = "models"


def profile_model(
    wanted: planning.Wanted,
    *,
    suites: planning.SuiteLoader,
    largest: Axis | None,
    rounds: int | None,
    energy: float | None,
    time_limit: float | None,
    device: str,
    results: Path,
    plan: bool,
    console: Console,
) -> int:
    """Measure what is missing, then write tables and plots from the records.

    Args:
        suites: reads a suite's variants, for `--suite`.
        largest: search for the largest context or batch in place of measuring speed; `wanted.budget` is then
            the memory that may be used. Without it, a budget asks what fits by the memory model.
        rounds: interleaved rounds at each point, None for the default of the device.
        energy: seconds of the energy window, 0 for none, None for the default of the device.
        time_limit: seconds after which nothing more is started.
        plan: show what would be measured; run nothing.

    Returns:
        The exit status: 0, 1 if a variant failed or records could not be written, 130 if interrupted.

    Raises:
        RequestError: the request is wrong; nothing has been run.
    """
    planning.require_use(wanted, largest, rounds=rounds, energy=energy, time_limit=time_limit, plan=plan)
    if wanted.budget is not None and largest is None:
        from tnbench.profiling.models.fitting import show_fit

        return show_fit(wanted, wanted.budget, device, suites, console)
    device, name = machine(device)
    if energy and device == "cpu":
        raise RequestError(f"--energy {energy:g}: a CPU has no counter of energy; leave it out")
    measurement = _measurement(device, rounds, energy)
    stack = {package: installed_version(package) for package in ("torch", "triton")}
    limit = None
    if largest is not None:
        first = next(iter(wanted.sizes or (None,)))
        _require_whole_batches(planning.variants_at(wanted, first, device, suites))
        wanted, limit = planning.along(wanted, largest, device), wanted.budget
    points = planning.points(wanted, device, stack, suites, measurement, REPRODUCED, limit)
    store = Store(results / FOLDER / slug(name))
    session = Session(lambda _: _command(device), store, time_limit=time_limit)
    search = None
    if largest is not None:
        there = _memory_of(device)
        search = Search(session, largest, partial(_guess, axis=largest, there=there), there)
    _note_settings(wanted, points, console)
    if plan:
        if search is None:
            _show_plan(points, store.read(), measurement, name, console)
        else:
            _show_searches(search, points, store.read(), name, console)
        return 0
    line = {
        "device": name,
        "command": command_line(),
        "versions": {package: text for package in PACKAGES if (text := installed_version(package))},
        "measurement": asdict(measurement),
        "provenance": provenance(),
    }
    with contextlib.ExitStack() as stack_:
        stack_.enter_context(store.writing())
        watcher = stack_.enter_context(Watcher(console, each_step=True))
        session.watch = watcher
        work = search or Campaign(session, measurement)
        try:
            progress = work.run(points, store.read(), line)
        except RecordsError as error:
            _failed(error, console)
            return 1
    try:
        return _finish(store, progress, session.id, console)
    except KeyboardInterrupt:
        text = (
            "interrupted while tables and plots were written: the records are kept, --report writes the rest"
        )
        console.print(text, highlight=False, soft_wrap=True)
        return INTERRUPTED


def _measurement(device: str, rounds: int | None, energy: float | None) -> Measurement:
    measurement = planning.DEFAULTS[device].measurement
    if rounds is not None:
        measurement = replace(measurement, rounds=rounds)
    return measurement if energy is None else replace(measurement, energy=energy)


def _command(device: str) -> list[str]:
    return [sys.executable, "-m", "tnbench.profiling.models.worker", "--device", device]


def _require_whole_batches(variants: Sequence[Variant]) -> None:
    """Micro-batches of a fixed size fit few of the values that a search tries."""
    for variant in variants:
        tokens = variant.config.training.micro_batch_tokens
        if tokens is not None:
            raise RequestError(
                f"--largest needs steps of one micro-batch, and training.micro_batch_tokens = {tokens} in "
                f"{variant.name}; --set training.micro_batch_tokens=null"
            )


def _note_settings(wanted: planning.Wanted, points: Sequence[Point], console: Console) -> None:
    """What `--set` does not reach."""
    peers = {variant.name for point in points for variant in point.variants if variant.peer}
    for name in sorted(peers) if wanted.variants.settings else ():
        text = f"note: --set does not change {name}, which is another package's model"
        console.print(text, highlight=False, soft_wrap=True)


def _memory_of(device: str) -> int:
    """Bytes of the GPU's memory, or those free on the CPU of which a model may take three quarters."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    from tnbench.profiling.kernels.memory import available

    return available(device) * 3 // 4


def _guess(point: Point, variant: Variant, *, axis: Axis, there: int) -> int | None:
    """The largest context or batch by the memory model; None for a foreign model."""
    if variant.peer:
        return None
    from tnbench.profiling.models import fit

    case, budget = point.case, min(point.case["limit"] or there, there)
    if axis == "context":
        found = fit.largest_context(
            variant.config, budget, case["mode"], batch=case["batch"], vocab_size=case["vocabulary"]
        )
    else:
        found = fit.largest_batch(variant.config, budget, case["mode"], vocab_size=case["vocabulary"])
    return found or None


def _failed(error: RecordsError, console: Console) -> None:
    console.print(f"failed: {error}; what was recorded before is kept", highlight=False, soft_wrap=True)


def _finish(store: Store, progress: Progress, session: str, console: Console) -> int:
    records = store.read()
    anything = bool(records.blocks or records.largest)
    if anything:
        try:
            _report(store, records, console)
        except RecordsError as error:
            _failed(error, console)
            return 1
    shown = [block.line["session"] for block in records.shown()]
    now = [block.line["session"] for block in records.blocks]
    hidden = now.count(session) - shown.count(session)
    conclude(progress, store.folder if anything else None, hidden, "variants", console)
    if progress.stopped == "interrupted":
        return INTERRUPTED
    return 1 if "failed" in progress.rows else 0


def _report(store: Store, records: Records, console: Console) -> None:
    frame, found = report.write(store, records)
    for title, rows in table.groups(frame):
        console.print(table.terminal(title, rows))
    if len(found):
        console.print(table.largest_terminal(found))
    if len(frame):
        console.print(table.LEGEND, highlight=False)
    for note in (*_unmeasured(frame), *records.problems, *_outdated(records)):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _unmeasured(frame: Any) -> Iterator[str]:
    """Why rows have no time, each reason once."""
    bad = frame[frame["status"] != "ok"]
    for (variant, status, reason), rows in bad.groupby(["variant", "status", "reason"], sort=False):
        yield f"{variant}: {status} at {counted(len(rows), 'point')}: {str(reason)[:300]}"


def _outdated(records: Records) -> Iterator[str]:
    here = code_hash()
    old = sum(block.line["code"] != here for block in records.shown())
    if old:
        were = "was" if old == 1 else "were"
        yield f"{counted(old, 'point')} {were} measured with other code than that of this version"


def report_all(results: Path, console: Console) -> int:
    """Rewrite the tables and plots of every machine that has records.

    Raises:
        RequestError: there are none.
    """
    folder = results / FOLDER
    stores = [Store(path.parent) for path in sorted(folder.glob("*/records.jsonl"))]
    found = [(store, records) for store in stores if (records := store.read()).blocks or records.largest]
    if not found:
        raise RequestError(f"{folder} holds no records of models; run tnbench profile-model")
    for store, records in found:
        try:
            _report(store, records, console)
        except RecordsError as error:
            _failed(error, console)
            return 1
        console.print(f"Tables and plots: {store.folder}", highlight=False, soft_wrap=True)
    return 0


def _show_plan(
    points: Sequence[Point], records: Records, measurement: Measurement, name: str, console: Console
) -> None:
    """What would be measured, what it will take of memory, and the least that it takes of time."""
    from tnbench.profiling.models.memory import predict

    missing = [point for point in points if records.current(point.key(measurement), point.arms) is None]
    for point in points:
        state = "to measure" if point in missing else "there"
        sizes = []
        for variant in point.variants:
            spec = point.spec(variant)
            known = "" if variant.peer else f" ({memory(_predict(predict, spec))})"
            sizes.append(f"{variant.name}{known}")
        console.print(f"{words(point.case)}: {', '.join(sizes)}: {state}", highlight=False, soft_wrap=True)
    rows = sum(len(point.variants) for point in missing)
    seconds = planning.least_seconds(missing, measurement)
    console.print(
        f"{name}: {len(missing)} of {counted(len(points), 'point')} to measure, {counted(rows, 'row')}, "
        f"at least {duration(seconds)} of timing; starting, compiling and trying each variant comes on top",
        highlight=False,
        soft_wrap=True,
    )


def _show_searches(
    search: Search, points: Sequence[Point], records: Records, name: str, console: Console
) -> None:
    """Which searches there are, and which of them are done."""
    jobs = search.jobs(points)
    missing = 0
    for point, variant in jobs:
        there = records.found(search.key(point, variant)) is not None
        missing += not there
        state = "there" if there else "to search"
        console.print(f"{search.words(point)}: {variant.name}: {state}", highlight=False, soft_wrap=True)
    total = counted(len(jobs), "search", "searches")
    console.print(
        f"{name}: {missing} of {total} to do; each tries some ten values, every one in a fresh process",
        highlight=False,
        soft_wrap=True,
    )


def _predict(predict: Any, spec: Any) -> int:
    found = predict(spec.config, spec.vocabulary, spec.mode, batch=spec.together, device=spec.device)
    return found.total
