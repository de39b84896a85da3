"""The sides of a comparison: which records a name on the command line stands for.

| name | stands for |
|---|---|
| a run folder, its `manifest.json`, or a run id | one run |
| `SUITE/VARIANT`, `path/to/suite-folder/VARIANT` | the runs of a variant |
| `SUITE`, `path/to/suite-folder` | the runs of every variant of a results folder |

Of a results folder, the runs count that its last report covers: those in its `runs.csv`. Where there is none,
all runs in it count that were not made for tuning, as long as those of a variant differ in nothing but seeds.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError
from tnbench.records import RunFolder, read_metrics
from tnbench.report.results import METRICS

SEEDS = ("training.init_seed", "training.data_seed")
UNCOMPARED = (*SEEDS, "training.checkpoint_every")
"""Keys in which runs of one variant may differ."""


@dataclass(frozen=True)
class Record:
    """One run as it was recorded; without a manifest, as it was planned."""

    folder: RunFolder
    variant: str
    manifest: Mapping[str, Any]
    planned_seed: int | None = None
    """Its seed in `runs.csv`."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration by dotted keys, components as a whole."""
        parts = {part: self.entry(f"config.{part}") for part in ("model", "data", "training")}
        if not all(isinstance(keys, Mapping) for keys in parts.values()):
            raise RequestError(f"{self.folder.manifest}: config is not that of a training run")
        return {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}

    @cached_property
    def seed(self) -> int | None:
        """The seed of the data order."""
        return self.entry("config.training.data_seed") if self.manifest else self.planned_seed

    @cached_property
    def outcome(self) -> str:
        """How the run ended, in the words of `report.results.OUTCOMES`."""
        if not self.manifest:
            return "missing"
        recorded = self.manifest.get("outcome") or "interrupted"
        return "unmeasured" if recorded == "finished" and self.folder.outcome() is None else recorded

    @cached_property
    def measured(self) -> dict[str, float]:
        """The figures at the end of a finished run, by name in `report.results.METRICS`."""
        if self.outcome != "finished":
            return {}
        values, _ = read_metrics(self.folder.metrics)
        last = {(value["name"], value.get("split")): value["value"] for value in values}
        names = {
            name: (metric.curve, "train" if metric.split == "train" else "report")
            for name, metric in METRICS.items()
        }
        return {name: float(last[key]) for name, key in names.items() if key in last}

    def entry(self, key: str) -> Any:
        """An entry of the manifest by its dotted key.

        Raises:
            RequestError: there is none.
        """
        value: Any = self.manifest
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise RequestError(
                    f"{self.folder.manifest} has no {key}: it is no manifest of a training run"
                )
            value = value[part]
        return value

    def fixed(self) -> dict[str, Any]:
        """What the runs of one variant have in common."""
        code = self.entry("provenance.source_hash")
        config = {key: value for key, value in self.config.items() if key not in UNCOMPARED}
        return {**config, "the data": self.entry("data.hash"), "the source hash": code}


@dataclass(frozen=True)
class Side:
    """The runs on one side of a comparison."""

    name: str
    records: list[Record]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def known(self) -> list[Record]:
        """The records that have a manifest; there is at least one."""
        return [record for record in self.records if record.manifest]

    @property
    def outcomes(self) -> Counter[str]:
        """Runs by outcome."""
        return Counter(record.outcome for record in self.records)

    def by_seed(self, metric: str) -> dict[int, Record]:
        """The finished runs that have a value, by seed."""
        found = {record.seed: record for record in self.records if metric in record.measured}
        return {seed: found[seed] for seed in sorted(seed for seed in found if seed is not None)}


@dataclass(frozen=True)
class Results:
    """The variants of a results folder."""

    path: Path
    records: dict[str, list[Record]]
    """Variant → runs."""
    notes: list[str]

    def side(self, variant: str, name: str) -> Side:
        """The runs of one variant.

        Raises:
            RequestError: they differ in more than seeds, or two have the same seed, or none has a manifest.
        """
        side = Side(name, self.records[variant], self.notes)
        if not side.known:
            raise RequestError(f"{name}: none of its {len(side.records)} runs has begun")
        first, seeds = side.known[0], {}
        for record in side.known:
            differs = [key for key, value in record.fixed().items() if first.fixed().get(key) != value]
            if differs:
                raise RequestError(
                    f"{name} has runs of several configurations: {first.folder.id} and {record.folder.id} "
                    f"differ in {', '.join(differs)}; name single runs, or write the suite's report again"
                )
            if record.seed in seeds:
                raise RequestError(
                    f"{name} has two runs with data seed {record.seed}: {seeds[record.seed]} and "
                    f"{record.folder.id}; name one of them"
                )
            seeds[record.seed] = record.folder.id
        return side


def find(name: str, results: Path) -> Side | Results:
    """What a name stands for: a run or a variant (a side), or a results folder.

    Args:
        name: as in the table above; a path comes before a name under `results`.
        results: the folder that holds the suites' results folders.

    Raises:
        RequestError: nothing has this name, or what has it cannot be read.
    """
    if not name.strip():
        raise RequestError("an empty name: give a run id or folder, SUITE/VARIANT or a results folder")
    name = name.rstrip("/") or name
    path = Path(name)
    if path.name == "manifest.json":
        path = path.parent
    if (path / "manifest.json").exists():
        return _run(path, name)
    for place in (path, results / name):
        if (place / "runs").is_dir():
            return _open(place)
    if "/" not in name:
        places = [folder / "runs" / name for folder in _suites(results)]
        there = [place for place in places if (place / "manifest.json").exists()]
        if len(there) > 1:
            raise RequestError(f"run {name} is in {' and in '.join(map(str, there))}; name its folder")
        if there:
            return _run(there[0], name)
    return _variant(name, results)


def _run(path: Path, name: str) -> Side:
    folder = RunFolder(path)
    manifest = folder.read_manifest()
    if manifest is None:
        raise RequestError(f"{path} holds no record that counts: {folder.problem()}")
    record = Record(folder, str(manifest.get("variant") or ""), manifest)
    record.fixed()  # says what is missing
    return Side(name, [record])


def _variant(name: str, results: Path) -> Side:
    parts = name.split("/")
    near: RequestError | None = None
    for cut in range(len(parts) - 1, 0, -1):  # the name of a variant may have a slash
        head, variant = "/".join(parts[:cut]), "/".join(parts[cut:])
        for place in (Path(head), results / head):
            if head and (place / "runs").is_dir():
                folder = _open(place)
                if variant in folder.records:
                    return folder.side(variant, name)
                near = near or RequestError(
                    f"{place} has no variant {variant!r}, {_nearest(variant, folder.records)}"
                )
    if near:
        raise near
    if Path(name).exists():
        raise RequestError(
            f"{name} is neither the folder of a run, with a manifest.json, nor of a suite, with runs/"
        )
    suites = _suites(results)
    ids = [run.name for suite in suites for run in (suite / "runs").iterdir() if run.is_dir()]
    names = [*(suite.name for suite in suites), *ids]
    for suite in suites:
        with contextlib.suppress(RequestError):
            names += [f"{suite.name}/{variant}" for variant in _open(suite).records]
    raise RequestError(f"{results} has no run, variant or suite {name!r}, {_nearest(name, names, suites)}")


def _nearest(name: str, names: Iterable[str], groups: Iterable[Path] = ()) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    known = sorted({path.name for path in groups} or set(names))
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}" if known else "none is known"


def _suites(results: Path) -> list[Path]:
    return sorted(path.parent for path in results.glob("*/runs") if path.is_dir())


def _open(path: Path) -> Results:
    table = path / "runs.csv"
    found = list(_reported(table) if table.exists() else _all(path / "runs"))
    notes = [
        f"{record.folder.path} counts as missing: {problem}"
        for record in found
        if not record.manifest and (problem := record.folder.problem())
    ]
    records: dict[str, list[Record]] = {}
    for record in sorted(found, key=lambda record: record.variant):
        if record.variant:
            records.setdefault(record.variant, []).append(record)
    return Results(path, records, notes)


def _reported(table: Path) -> Iterable[Record]:
    """The runs of a `runs.csv`, whether their folders are still there or not."""
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")), strict=True))
        for row in rows:
            folder = RunFolder(table.parent / "runs" / (row["run_id"] or "none"))
            yield Record(folder, row["variant"], folder.read_manifest() or {}, int(row["seed"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RequestError(
            f"{table} cannot be read ({error}); tnbench ablate {table.parent.name} --report writes it again"
        ) from error


def _all(runs: Path) -> Iterable[Record]:
    """All runs in a folder but those made for tuning."""
    for path in sorted(runs.iterdir()):
        folder = RunFolder(path)
        manifest = folder.read_manifest() or {}
        if path.is_dir() and manifest.get("phase") != "tune":
            yield Record(folder, str(manifest.get("variant") or ""), manifest)
