"""The records behind the figures: suites, kernels, whole models, evaluations, inference errors.

A suite is found under its name in the records' folder, and one level below, where a campaign keeps what it
measured at another size or on another corpus (`code-corpus/positional-encoding`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tnbench.ablation.sides import Record, Results, find
from tnbench.errors import RequestError
from tnbench.paper_figures.shared.tables import Stamp
from tnbench.profiling import inference_error_report, phase_error_report
from tnbench.profiling.kernels import store as kernel_store
from tnbench.records import source_hash
from tnbench.report.results import METRICS, OUTCOMES, Frame, Metric
from tnbench.report.words import short
from tnbench.statistics import Comparison, Interval, compare, mean_interval, paired_difference

INFERENCE_ERROR = Path("models") / "inference-error"


@dataclass(frozen=True)
class SuiteRecords:
    """The runs of one suite, as its folder's last report covers them."""

    folder: Path
    where: str
    """Relative to the root of the records."""
    variants: Mapping[str, list[Record]]
    """Variant → runs."""
    base: str
    metric: str
    margin: float | None
    alpha: float

    @property
    def measured(self) -> Metric:
        """Label and unit of the metric."""
        return METRICS[self.metric]

    def values(self, variant: str) -> dict[int, float]:
        """The metric of the finished runs of a variant, by seed."""
        found = {
            record.seed: record.measured[self.metric]
            for record in self.variants.get(variant, [])
            if record.seed is not None and math.isfinite(record.measured.get(self.metric, math.nan))
        }
        return dict(sorted(found.items()))

    def mean(self, variant: str) -> Interval:
        """Over the finished runs."""
        return mean_interval(list(self.values(variant).values()), self.alpha)

    def pairs(self, variant: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of a variant and of the base, of the seeds that both have finished."""
        own, base = self.values(variant), self.values(self.base)
        seeds = [seed for seed in own if seed in base]
        return np.array([own[seed] for seed in seeds]), np.array([base[seed] for seed in seeds])

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Every variant against the base, Holm's correction over all of them: the suite's own table."""
        others = [variant for variant in self.variants if variant != self.base]
        found = compare([self.pairs(variant) for variant in others], alpha=self.alpha, margin=self.margin)
        return dict(zip(others, found, strict=True))

    def relative(self, variant: str) -> Interval:
        """Variant over base, less one: t interval of the paired logarithms; NaN where there is no ratio."""
        own, base = self.pairs(variant)
        if not own.size or min(own.min(), base.min()) <= 0:
            return Interval(math.nan, math.nan, math.nan, 0)
        found = paired_difference(np.log(own), np.log(base), self.alpha)
        return Interval(math.expm1(found.mean), math.expm1(found.low), math.expm1(found.high), found.n)

    def ids(self, *variants: str) -> tuple[str, ...]:
        """Ids of the runs of variants, those without a record left out."""
        return tuple(
            record.folder.id for variant in variants for record in self.variants[variant] if record.manifest
        )

    def outcomes(self, variant: str) -> str:
        """`1 of 3 runs diverged`; empty where all have finished."""
        runs = self.variants[variant]
        lost = Counter(record.outcome for record in runs if record.outcome != "finished")
        return ", ".join(f"{n} of {len(runs)} runs {OUTCOMES[name]}" for name, n in lost.items())

    @cached_property
    def known(self) -> list[Record]:
        """All runs that have a manifest."""
        return [record for records in self.variants.values() for record in records if record.manifest]

    @cached_property
    def setting(self) -> str:
        """The scale of the runs: `0.1m, context 128, 640k tokens of state-of-the-union, fp32, …`."""
        first = next(record for record in self.variants[self.base] if record.manifest)
        config = first.config
        tokens = first.entry("steps") * config["training.batch_tokens"]
        rate = "tuned" if any(record.manifest.get("point") for record in self.known) else "not tuned"
        return (
            f"{config['model.size']}, context {config['data.context']}, {short(tokens)} tokens of "
            f"{first.entry('data.corpus')}, {config['training.precision']}, learning rate {rate}"
        )

    @property
    def command(self) -> str:
        """The command that made the runs, as their manifests have it."""
        commands = dict.fromkeys(str(record.manifest.get("command", "")) for record in self.known)
        return "; ".join(command.replace("cli.py", "tnbench", 1) for command in commands if command)

    @property
    def stamps(self) -> list[Stamp]:
        """The source of the runs."""
        sources = dict.fromkeys(record.entry("provenance.source_hash") for record in self.known)
        return [Stamp(self.where, "training", source, source_hash(), self.command) for source in sources]


@dataclass(frozen=True)
class Records:
    """All records under a folder."""

    root: Path
    problems: list[str] = field(default_factory=list)
    """What was wrong with those that were read."""

    def suites(self, name: str) -> list[SuiteRecords]:
        """The folders of a suite that have records, that of its own name first.

        Raises:
            RequestError: a table in one of them cannot be read.
        """
        places = [self.root / name, *sorted(self.root.glob(f"*/{name}"))]
        found = (self._suite(place) for place in places if (place / "runs").is_dir())
        return [one for one in found if one is not None]

    def _suite(self, place: Path) -> SuiteRecords | None:
        table = place / "comparisons.csv"
        where = place.relative_to(self.root).as_posix()
        if not table.exists():
            self.problems.append(f"{where} has no report yet: tnbench ablate {place.name} --report writes it")
            return None
        try:
            first: Any = pd.read_csv(table).iloc[0]
            margin = float(first["margin"])
            base, metric, alpha = str(first["base"]), str(first["metric"]), float(first["alpha"])
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise RequestError(
                f"{table} cannot be read; tnbench ablate {place.name} --report writes it again"
            ) from error
        found = find(str(place), self.root)
        assert isinstance(found, Results)
        self.problems.extend(found.notes)
        if not any(record.manifest for record in found.records.get(base, [])):
            return None
        return SuiteRecords(
            place, where, found.records, base, metric, None if math.isnan(margin) else margin, alpha
        )

    def kernels(self) -> Iterator[tuple[str, kernel_store.Records]]:
        """Folder and records of each machine on which kernels were measured."""
        for path in sorted(self.root.glob("kernels/*/records.jsonl")):
            yield self._told(path.parent, kernel_store.Store(path.parent).read())

    def models(self) -> Iterator[tuple[str, Any]]:
        """Folder and records of each machine on which whole models were measured."""
        from tnbench.profiling.models.store import Store

        for path in sorted(self.root.glob("models/*/records.jsonl")):
            if path.parent not in (self.root / INFERENCE_ERROR, self.root / phase_error_report.FOLDER):
                yield self._told(path.parent, Store(path.parent).read())

    def _told(self, folder: Path, found: Any) -> tuple[str, Any]:
        """A machine's folder, relative to the root, and its records, whose problems are told."""
        where = folder.relative_to(self.root).as_posix()
        self.problems.extend(f"{where}: {problem}" for problem in found.problems)
        return where, found

    def evaluations(self) -> Frame | None:
        """Results of lm-eval's tasks, as `tnbench eval` tabled its records: a row per model, task and metric.

        None where nothing was asked.

        Raises:
            RequestError: the table cannot be read.
        """
        table = self.root / "evals" / "results.csv"
        if not table.exists():
            return None
        try:
            found: Frame = pd.read_csv(table)
            _ = found[["task", "model", "metric", "value", "stderr", "items", "fewshot", "limit", "key"]]
        except (OSError, ValueError, KeyError) as error:
            raise RequestError(f"{table} cannot be read; tnbench eval writes it again") from error
        return found

    def inference_error(self) -> dict[str, Any] | None:
        """The study of both inference forms; None where there is none."""
        folder = self.root / INFERENCE_ERROR
        return inference_error_report.read(folder) if (folder / "records.jsonl").exists() else None


def stamps_of_kernels(where: str, found: kernel_store.Records, operator: str) -> list[Stamp]:
    """The source of the measurements of an operator."""
    hashes = dict.fromkeys(
        block.line["kernel_hash"] for block in found.shown() if block.case["operator"] == operator
    )
    present, command = kernel_store.kernel_hash(operator), f"tnbench profile-kernels {operator}"
    return [Stamp(where, operator, one, present, command) for one in hashes]
