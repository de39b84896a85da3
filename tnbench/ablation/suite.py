"""A suite: a base, variants that are small diffs to it, and seeds. Read from YAML, checked first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, field_validator, model_validator

from tnbench.config import RunConfig, Strict, check, digest, run_id
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError, nearest
from tnbench.model import LanguageModel
from tnbench.records import RunFolder, source_hash
from tnbench.report.results import METRICS
from tnbench.resolution import flatten, resolve

SHIPPED = Path(__file__).resolve().parent.parent / "ablations"
Seed = Annotated[int, Field(ge=0)]


class Seeds(Strict):
    """Seeds of the runs; equal numbers mean the same data order, so that variants can be paired."""

    report: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the reported runs."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`3` stands for 0, 1, 2 and a list for `report`."""
        if isinstance(value, str | float) or value is True or value in (0, [], None):
            raise RequestError(f"{value!r}: expected how many, as in 3, or a list, as in [0, 1, 2]")
        if isinstance(value, int) and not isinstance(value, bool):
            return {"report": list(range(value))}
        return {"report": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _distinct(self) -> Seeds:
        if len(set(self.report)) < len(self.report):
            raise RequestError("a seed is listed twice")
        return self


class Analysis(Strict):
    """How the runs are compared."""

    metric: str = "val_bits_per_byte"
    """The column of runs.csv by which variants are compared; lower is better."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """One minus the coverage of the intervals."""

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise RequestError(f"no metric {value!r}, {nearest(value, METRICS)}")
        return value


class Paper(Strict):
    """What the suite reproduces."""

    table: str = ""
    """The paper's table or figure."""


class SuiteFile(Strict):
    """The keys of a suite file."""

    @field_validator("variants", mode="before")
    @classmethod
    def _names_and_diffs(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            raise RequestError("expected names with a diff each, as in {no-gate: {model.gate: false}}")
        for name, diff in value.items():
            if not isinstance(diff, dict | None):
                raise RequestError(f"{name} = {diff!r}: expected a diff, as in {{model.gate: false}}")
        return value

    title: str = ""
    """A line that says what is compared."""
    base: dict[str, Any]
    """The configuration that the variants differ from."""
    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """Name and diff of each variant; the empty diff is the base row."""
    seeds: Seeds = Seeds()
    """Seeds of the runs."""
    fixed: str = ""
    """What was held fixed: the results hold only for it."""
    analysis: Analysis = Analysis()
    """How the runs are compared."""
    paper: Paper = Paper()
    """What the suite reproduces."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    diff: dict[str, Any]
    config: RunConfig
    parameters: dict[str, int]
    state_size: int
    flops_per_token: float


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    config: RunConfig
    folder: RunFolder


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

    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed, so that every variant has its first result early."""
        planned = []
        for seed in self.seeds:
            for variant in self.variants:
                config = with_seed(variant.config, seed)
                identity = run_id(config, self.data_of(variant).hash, source_hash())
                planned.append(PlannedRun(variant, seed, config, RunFolder(self.folder / "runs" / identity)))
        return planned

    @property
    def device(self) -> str:
        """Where all runs of the suite take place."""
        return self.variants[0].config.training.device

    def data_of(self, variant: Variant) -> TokenData:
        """The tokens that a variant is trained on."""
        return self.data[_data_key(variant.config)]

    def digest(self) -> str:
        """Hash of the suite's own text, as read."""
        return digest(self.file.model_dump(mode="json"))


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same seed for the initial weights and the data order."""
    training = config.training.model_copy(update={"init_seed": seed, "data_seed": seed})
    return config.model_copy(update={"training": training})


def shipped_suites() -> dict[str, Path]:
    """Names and files of the suites that come with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find_suite(name: str) -> Path:
    """The file of a shipped name or a path.

    Raises:
        RequestError: there is none.
    """
    known = shipped_suites()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RequestError(f"no suite file {name}")
        return path
    raise RequestError(f"no suite {name!r}, {nearest(name, known)}")


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, and mappings remember the lines of their keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise RequestError(f"line {line}: the key {key_node.value} reads as {key!r}; write it in quotes")
        if key in seen:
            raise RequestError(f"line {line}: {key!r} is given twice, first in line {seen[key]}")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's content, and the line of each key by its path (`variants.none`)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: no UTF-8 text (byte {error.start})") from error
    try:
        content = yaml.load(text, Loader=_Loader)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RequestError(
            f"{path}{where}: not valid YAML: {' '.join((error.problem or '').split())}"
        ) from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (RequestError, ValueError, RecursionError) as error:
        raise RequestError(f"{path}, {' '.join(str(error).split()) or 'nested too deeply'}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path}: a suite is a mapping with the keys base and variants")
    return content, _lines(root, "")


def _lines(node: Any, prefix: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines.update(_lines(value, name + "."))
    return lines


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
        seeds: use the seeds 0 … seeds − 1 in place of the file's.

    Raises:
        RequestError: anything that is wrong, in one line with the file's line number where there is one.
    """
    path = find_suite(name)
    content, lines = _read(path)
    settings = dict(settings or {})

    def at(key: str) -> str:
        return f"{path}, line {lines[key]}: {key}" if key in lines else f"{path}: {key}"

    try:
        file: SuiteFile = check(SuiteFile, content, "")
    except RequestError as error:
        named = next((key for key in sorted(lines, key=len, reverse=True) if f" {key}" in f" {error}"), None)
        raise RequestError(f"{path}{f', line {lines[named]}' if named else ''}: {error}") from error
    diffs = {variant: dict(diff or {}) for variant, diff in file.variants.items()}
    for variant in diffs:
        if not variant.strip() or not variant.isprintable():
            raise RequestError(f"{at('variants')}: {variant!r} is no name for a variant; use printable words")
    for where, keys in (
        (at("base"), file.base),
        ("--set", settings),
        *((at(f"variants.{v}"), d) for v, d in diffs.items()),
    ):
        if taken := {"training.init_seed", "training.data_seed"} & flatten(keys).keys():
            raise RequestError(f"{where}: {min(taken)} is set by the suite's seeds; list them under seeds")
    if {} not in diffs.values():
        if "base" in diffs:
            raise RequestError(
                f"{at('variants.base')}: the variant named base has a diff; give it another name"
            )
        diffs = {"base": {}, **diffs}

    variants: list[Variant] = []
    data: dict[str, TokenData] = {}
    names = sorted(
        diffs, key=lambda variant: bool(diffs[variant])
    )  # the base first: its mistakes are the file's
    for variant in names:
        where = at(f"variants.{variant}") if diffs[variant] else at("base")
        try:
            config = resolve(file.base, diffs[variant], pinned=settings)
            key = _data_key(config)
            if key not in data:
                data[key] = prepare(config.data, quiet=quiet)
            data[key].check_length(config.data.context)  # variants may differ in it
            variants.append(_measured(variant, flatten(diffs[variant]), config, data[key].vocab_size))
        except RequestError as error:
            if settings and not diffs[variant] and _valid(file.base):
                where = "--set"
            raise RequestError(f"{where}: {error}") from error
    _refuse_duplicates(variants, data, at)
    devices = {variant.config.training.device for variant in variants}
    if len(devices) > 1:
        raise RequestError(f"{path}: the variants run on different devices; set one with --device")
    order = list(diffs)
    variants.sort(key=lambda variant: order.index(variant.name))
    base = next(variant.name for variant in variants if not variant.diff)
    chosen = list(range(seeds)) if seeds is not None else list(file.seeds.report)
    return Suite(path.stem, path, file, base, variants, chosen, results / path.stem, data, settings)


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
    )


def _refuse_duplicates(variants: list[Variant], data: dict[str, TokenData], at: Callable[[str], str]) -> None:
    seen: dict[str, str] = {}
    for variant in variants:
        identity = run_id(variant.config, data[_data_key(variant.config)].hash, "")
        if identity in seen:
            raise RequestError(
                f"{at(f'variants.{variant.name}')}: the same configuration as variant {seen[identity]!r};"
                f" leave one of them out"
            )
        seen[identity] = variant.name
