"""A suite: a base, variants that are small diffs to it, and seeds; checked down to its corpus and shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tnbench.ablation.eval_plan import EvalPlan, Subject
from tnbench.ablation.matching import Matched, matched
from tnbench.ablation.suite_file import SuiteFile, find_suite, read_suite_file
from tnbench.ablation.tuning import Point, Search, search
from tnbench.config import NO_TOKENIZER, RunConfig, check, digest, run_id, shortened, shown
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, read_metrics, source_hash
from tnbench.report.results import METRICS
from tnbench.resolution import flatten, resolve

MOST_RUNS = 10_000
"""Runs of a suite; planning alone takes seconds for so many."""
RESERVED = ("evals", "kernels", "models")
"""Folders of results that other commands write to."""
REPEAT_STRIDE = 10**9
"""The k-th repeat of a configuration draws its weights with seed + k · REPEAT_STRIDE."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    diff: dict[str, Any]
    config: RunConfig
    parameters: dict[str, int]
    state_size: int
    flops_per_token: float
    reach: int | None = None
    """Tokens that its positions reach; None for any number."""
    repeat: int = 0
    """Which repeat of its configuration it is; 0 for the configuration itself."""
    matched: Matched | None = None
    """How it was brought to the base's size."""


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    config: RunConfig
    folder: RunFolder
    phase: str = "report"
    """`tune` for a run that only serves to choose hyperparameters."""
    point: Point = field(default_factory=dict)
    """Hyperparameters from the tuning grid, by dotted key."""

    @property
    def subject(self) -> Subject:
        """The run as its evaluations know it."""
        return Subject(self.folder.id, self.config.data.context, self.variant.reach)


@dataclass(frozen=True)
class Suite:
    """A checked suite: everything that its runs need is known to be there."""

    name: str
    path: Path
    file: SuiteFile
    base: str
    variants: list[Variant]
    seeds: list[int]
    folder: Path
    data: dict[str, TokenData] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    """What the command line set."""
    evals: EvalPlan | None = None
    """What the reported runs are asked after their training."""

    def runs(self) -> list[PlannedRun]:
        """All runs that are known to be needed, seed by seed, so that every variant has a result early.

        With tuning these are its runs, and once the records of all of them hold a choice, the reported ones.
        """
        found = self.search()
        if found is None:
            return [self.planned(variant, seed) for seed in self.seeds for variant in self.variants]
        runs = self.tuning_runs(found)
        if found.choices:
            runs += [
                self.planned(variant, seed, "report", dict(found.choices[variant.name].point))
                for seed in self.seeds
                for variant in self.variants
            ]
        return runs

    def search(self) -> Search | None:
        """Where the tuning stands, from the records; None without tuning."""
        tune = self.file.tune
        if tune is None:
            return None
        variants = {variant.name: variant for variant in self.variants}
        return search(
            list(variants),
            tune.grid,
            tune.widen,
            lambda name, point: self._score(variants[name], point),
            seeds=len(self.file.seeds.tune),
            ceiling=lambda name: self._uniform(variants[name]),
        )

    def tuning_runs(self, found: Search) -> list[PlannedRun]:
        """The runs that a search needs, seed by seed."""
        return [
            self.planned(variant, seed, "tune", point)
            for seed in self.file.seeds.tune
            for point in found.points
            for variant in self.variants
        ]

    def tuned_value(self, run: PlannedRun) -> float | None:
        """What a tuning run says of its point: the metric at its end on the tune split; None before that.

        Divergence counts as infinity, and so does a model for which the memory does not suffice.
        """
        outcome = run.folder.outcome()
        if outcome in ("diverged", "out_of_memory"):
            return math.inf
        if outcome != "finished":
            return None
        values, _ = read_metrics(run.folder.metrics)
        end = run.config.training.total_steps
        last = [
            value["value"]
            for value in values
            if (value["name"], value.get("split"), value["step"]) == (self.tuned_by, "tune", end)
        ]
        return last[-1] if last else None

    @property
    def tuned_by(self) -> str:
        """Name of the recorded value that tuning looks at, on the tune split."""
        return METRICS[self.file.analysis.metric].curve

    def _score(self, variant: Variant, point: Point) -> float | None:
        values = [
            self.tuned_value(self.planned(variant, seed, "tune", point)) for seed in self.file.seeds.tune
        ]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    def _uniform(self, variant: Variant) -> float:
        """The tuned metric of a model to which all tokens are equally likely."""
        return self.data_of(variant).uniform(self.tuned_by)

    def planned(
        self, variant: Variant, seed: int, phase: str = "report", point: Point | None = None
    ) -> PlannedRun:
        """One run of the suite."""
        config = with_seed(variant.config, seed, variant.repeat)
        if point:
            chosen = {key.removeprefix("training."): value for key, value in point.items()}
            training = config.training.model_copy(update=chosen)
            config = config.model_copy(update={"training": training})
        identity = run_id(config, self.data_of(variant).hash, source_hash())
        folder = RunFolder(self.folder / "runs" / identity)
        return PlannedRun(variant, seed, config, folder, phase, point or {})

    @property
    def device(self) -> str:
        """Where all runs of the suite take place."""
        return self.variants[0].config.training.device

    def data_of(self, variant: Variant) -> TokenData:
        """The tokens that a variant is trained on."""
        return self.data[_data_key(variant.config)]

    def digest(self) -> str:
        """Hash of what the suite file says of its runs and their analysis; titles and seeds are left out, and
        so are evaluations, which have records of their own."""
        left_out = {"title", "fixed", "paper", "seeds", "evals"}
        return digest(self.file.model_dump(mode="json", exclude=left_out))


def with_seed(config: RunConfig, seed: int, repeat: int = 0) -> RunConfig:
    """The same seed for the weights and the data order; in a repeat, the weights have one of their own."""
    seeds = {"init_seed": seed + repeat * REPEAT_STRIDE, "data_seed": seed}
    return config.model_copy(update={"training": config.training.model_copy(update=seeds)})


def load_suite(
    name: str,
    results: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    quiet: bool = False,
) -> Suite:
    """Read and check a suite, down to its corpus and the shapes of its models. Nothing is run.

    Args:
        name: a shipped suite or a YAML file; its stem names the results folder.
        results: the folder that results go to.
        settings: dotted keys from the command line, laid over the base.
        seeds: report the seeds 0 … seeds − 1 in place of the file's.

    Raises:
        RequestError: anything that is wrong, in one line with the file's line number where there is one.
    """
    path = find_suite(name)
    content, lines = read_suite_file(path)
    settings = dict(settings or {})

    def at(key: str) -> str:
        return f"{path}, line {lines[key]}: {key}" if key in lines else f"{path}: {key}"

    try:
        file: SuiteFile = check(SuiteFile, content, "")
    except RequestError as error:
        named = next((key for key in sorted(lines, key=len, reverse=True) if f" {key}" in f" {error}"), None)
        raise RequestError(f"{path}{f', line {lines[named]}' if named else ''}: {error}") from error
    diffs, repeats = _diffs(file, at)
    _refuse_reserved(file, diffs, settings, at)
    base = next(name for name, diff in diffs.items() if not diff and name not in repeats)

    reader = _Reader(file, settings, quiet)
    variants: dict[str, Variant] = {}
    for variant in sorted(diffs, key=lambda name: name != base):  # its mistakes are the file's
        where = at(f"variants.{variant}") if variant != base else at("base")
        try:
            variants[variant] = reader.read(variant, diffs[variant])
            if file.match and variant != base:
                variants[variant] = reader.match(variants[variant], variants[base])
        except RequestError as error:
            if settings.keys() - {"training.device"} and variant == base and _valid(file.base):
                where = "--set"
            raise RequestError(f"{where}: {error}") from error
    ordered = _numbered([variants[name] for name in diffs], repeats, reader.data, at)
    if len({variant.config.training.device for variant in ordered}) > 1:
        raise RequestError(f"{path}: the variants run on different devices; set one with --device")
    points = math.prod(len(v) + 2 * file.tune.widen for v in file.tune.grid.values()) if file.tune else 0
    reported = len(file.seeds.report) if seeds is None else seeds
    runs = len(ordered) * (reported + points * len(file.seeds.tune))
    if runs > MOST_RUNS:
        raise RequestError(
            f"{path}: {runs:,} runs, counting a grid that is widened, and a suite has at most {MOST_RUNS:,}; "
            f"use fewer seeds, variants or tuned values"
        )
    chosen = list(file.seeds.report) if seeds is None else list(range(seeds))
    if both := set(chosen) & set(file.seeds.tune if file.tune else ()):
        raise RequestError(f"--seeds {seeds}: seed {min(both)} is a tuning seed of {path}; use fewer")
    if path.stem in RESERVED:
        raise RequestError(f"{path}: {results / path.stem} holds other records; give the suite another name")
    evals = None
    if file.evals:
        try:
            device = ordered[0].config.training.device
            evals = EvalPlan.of(file.evals, path.parent, results, device)
        except RequestError as error:
            raise RequestError(f"{at('evals').removesuffix(': evals')}: {error}") from error
    folder = results / path.stem
    return Suite(path.stem, path, file, base, ordered, chosen, folder, reader.data, settings, evals)


def _diffs(file: SuiteFile, at: Callable[[str], str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The diff of each variant, a base row among them, and which variants are repeats."""
    diffs = {variant: dict(diff or {}) for variant, diff in file.variants.items()}
    repeats = {variant for variant, diff in diffs.items() if diff.pop("repeat", False)}
    for variant in diffs:
        if not variant.strip() or shown(variant) != variant:
            raise RequestError(f"{at('variants')}: {shortened(variant)} is no name for a variant; use words")
    if all(diff or variant in repeats for variant, diff in diffs.items()):
        if "base" in diffs:
            kind = "is a repeat" if "base" in repeats else "has a diff"
            raise RequestError(f"{at('variants.base')}: the variant named base {kind}; give it another name")
        diffs = {"base": {}, **diffs}
    return diffs, repeats


def _refuse_reserved(
    file: SuiteFile, diffs: dict[str, dict[str, Any]], settings: dict[str, Any], at: Callable[[str], str]
) -> None:
    """Seeds and tuned keys have a place of their own in the file."""
    layers = [(at("base"), file.base), ("--set", settings)]
    layers += [(at(f"variants.{variant}"), diff) for variant, diff in diffs.items()]
    grid = file.tune.grid if file.tune else {}
    for where, keys in layers:
        try:
            given = flatten(keys).keys()
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from error
        if taken := {"training.init_seed", "training.data_seed"} & given:
            raise RequestError(f"{where}: {min(taken)} is set by the suite's seeds; list them under seeds")
        if taken := grid.keys() & given:
            raise RequestError(f"{where}: {min(taken)} is tuned, the same grid for all; set it in one place")


@dataclass(frozen=True)
class _Reader:
    """Makes variants of diffs, and prepares the data that they need, each once."""

    file: SuiteFile
    settings: dict[str, Any]
    quiet: bool
    data: dict[str, TokenData] = field(default_factory=dict)

    def read(self, name: str, diff: dict[str, Any]) -> Variant:
        config = resolve(self.file.base, diff, pinned=self.settings)
        if self.file.tune and not config.training.evaluations:
            raise RequestError("training.evaluations = 0: tuning looks at the last evaluation; use 1 or more")
        key = _data_key(config)
        if key not in self.data:
            self.data[key] = prepare(config.data, quiet=self.quiet)
        self.data[key].check_length(config.data.context)  # variants may differ in it
        self._require_values(self.data[key])
        return _measured(name, flatten(diff), config, self.data[key].vocab_size)

    def _require_values(self, data: TokenData) -> None:
        """Examples have no bytes, and their models no words; texts have no answers."""
        if self.file.evals and data.tokenizer.name == NO_TOKENIZER:
            raise RequestError(f"evals: models of {data.corpus} know no text; leave the key out")
        metric = METRICS[self.file.analysis.metric]
        if metric.split != "train" and metric.curve not in data.metrics():
            known = [name for name, one in METRICS.items() if one.curve in data.metrics()]
            raise RequestError(
                f"analysis.metric = {self.file.analysis.metric}: {data.corpus} has no such value; "
                f"known for it: {', '.join(known)}"
            )

    def match(self, variant: Variant, base: Variant) -> Variant:
        assert self.file.match is not None
        found = matched(
            variant.config,
            base.config,
            vocab_size=self.data[_data_key(variant.config)].vocab_size,
            base_vocab_size=self.data[_data_key(base.config)].vocab_size,
            held=variant.diff.keys() | flatten(self.settings).keys(),
            match=self.file.match,
        )
        vocab_size = self.data[_data_key(variant.config)].vocab_size
        return replace(_measured(variant.name, variant.diff, found.config, vocab_size), matched=found)


def _valid(base: Mapping[str, Any]) -> bool:
    try:
        resolve(base)
    except RequestError:
        return False
    return True


def _data_key(config: RunConfig) -> str:
    return json.dumps(config.data.model_dump(exclude={"context"}), sort_keys=True)


def _measured(name: str, diff: dict[str, Any], config: RunConfig, vocab_size: int) -> Variant:
    context = config.data.context
    with torch.device("meta"):
        model = LanguageModel(config.model, vocab_size, context)
    return Variant(
        name,
        diff,
        config,
        model.parameter_counts(),
        model.state_size(context),
        model.flops_per_token(context),
        model.position.limit,
    )


def _numbered(
    variants: list[Variant], repeats: set[str], data: dict[str, TokenData], at: Callable[[str], str]
) -> list[Variant]:
    """Repeats of one configuration counted from 1, in their order; other duplicates are refused."""
    originals: dict[str, str] = {}
    counts: dict[str, int] = {}
    numbered = []
    for variant in variants:
        identity = run_id(variant.config, data[_data_key(variant.config)].hash, "")
        if variant.name in repeats:
            counts[identity] = counts.get(identity, 0) + 1
            numbered.append(replace(variant, repeat=counts[identity]))
            continue
        if identity in originals:
            raise RequestError(
                f"{at(f'variants.{variant.name}')}: the same configuration as variant "
                f"{originals[identity]!r}; leave one of them out, or add repeat: true for an A/A row"
            )
        originals[identity] = variant.name
        numbered.append(variant)
    return numbered
