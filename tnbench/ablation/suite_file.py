"""The suite file: its keys, and its YAML, read so that every mistake is told with its line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from tnbench.ablation.eval_keys import Evals
from tnbench.ablation.matching import Match
from tnbench.config import Strict, shortened, shown
from tnbench.errors import RequestError, nearest
from tnbench.report.results import METRICS
from tnbench.resolution import flatten

LARGEST = 100_000
"""Nodes of a suite file, aliases written out."""
SHIPPED = Path(__file__).resolve().parent.parent / "ablations"

TUNABLE = ("training.learning_rate", "training.weight_decay", "training.gradient_clip")
"""What a tuning grid may be laid over: positive numbers for which a longer or shorter step is a factor."""

Seed = Annotated[int, Field(ge=0, lt=10**9)]
"""Repeats of a configuration take the numbers above (`tnbench.ablation.suite.REPEAT_STRIDE`)."""
SeedList = Annotated[tuple[Seed, ...], Field(max_length=10_000)]


def _printable(text: str) -> str:
    text = " ".join(text.split())
    if not text.isprintable():
        raise RequestError(f"{shortened(text)}: expected text without control characters")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""A line of text; line breaks count as spaces."""


class Seeds(Strict):
    """Seeds of the runs; equal numbers mean the same data order, so that variants can be paired."""

    report: Annotated[SeedList, Field(min_length=1)] = (0, 1, 2)
    """Seeds of the reported runs."""
    tune: Annotated[SeedList, Field(min_length=1)] = (100, 101)
    """Seeds of the runs that `tune` chooses by; none of them is reported."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`3` stands for 0, 1, 2 and a list for `report`."""
        if isinstance(value, str | float) or value is True or value in (0, [], None):
            raise RequestError(f"{shortened(value)}: expected how many, as in 3, or a list, as in [0, 1, 2]")
        if isinstance(value, list):
            return {"report": value}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"report": _first_seeds(value)}
        if isinstance(value, dict) and isinstance(value.get("report"), int):
            return {**value, "report": _first_seeds(value["report"])}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Seeds:
        for seeds in (self.report, self.tune):
            if len(set(seeds)) < len(seeds):
                raise RequestError("a seed is listed twice")
        return self


def _first_seeds(count: int) -> list[int]:
    if not 0 < count <= 10_000:
        raise RequestError(f"{count}: expected a number of seeds from 1 to 10000")
    return list(range(count))


class Tune(Strict):
    """Tuning that is fair: the same grid for every variant, on seeds and a split of their own."""

    grid: Annotated[dict[str, tuple[float, ...]], Field(min_length=1, max_length=3)]
    """Values of each tuned key; all combinations are tried."""
    widen: Annotated[int, Field(ge=0, le=10)] = 1
    """How often the grid may grow beyond either end, for all variants, where one is best at the edge."""

    @field_validator("grid", mode="before")
    @classmethod
    def _keys_and_values(cls, grid: Any) -> Any:
        example = "as in {training.learning_rate: [0.001, 0.002, 0.004]}"
        if not isinstance(grid, dict) or not grid:
            raise RequestError(f"expected keys with their values, {example}")
        checked = {}
        for key, values in flatten(grid).items():
            if key not in TUNABLE:
                raise RequestError(f"{key} cannot be tuned; {' and '.join(TUNABLE)} can")
            numbers = values if isinstance(values, list | tuple) else []
            fit = [isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e6 for v in numbers]
            if not 2 <= len(set(numbers if all(fit) else [])) == len(numbers) <= 50:
                raise RequestError(f"{key}: expected 2 to 50 different positive numbers, {example}")
            checked[key] = tuple(sorted(map(float, numbers)))
        return checked


class Analysis(Strict):
    """How the runs are compared. Fixed before the runs: its hash is in their manifests."""

    metric: str = "val_bits_per_byte"
    """The column of runs.csv by which variants are compared; lower is better."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Differences up to this, in the metric's unit, are as good as none; absent, there is no equivalence."""
    alpha: Annotated[float, Field(ge=1e-4, le=0.5)] = 0.05
    """Level of the tests, and one minus the coverage of the intervals."""

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise RequestError(f"no metric {shortened(value)}, {nearest(value, METRICS)}")
        return value


class Paper(Strict):
    """What the suite reproduces."""

    table: Text = ""
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
                raise RequestError(
                    f"{shown(name)} = {shortened(diff)}: expected a diff, as in {{model.gate: false}}"
                )
            repeat = (diff or {}).get("repeat", True)
            if repeat is not True:
                raise RequestError(f"{shown(name)}: repeat = {shortened(repeat)}: the only value is true")
        return value

    title: Text = ""
    """A line that says what is compared."""
    base: dict[str, Any]
    """The configuration that the variants differ from."""
    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """Name and diff of each variant; the empty diff is the base row, and `repeat: true` in one an A/A row."""
    seeds: Seeds = Seeds()
    """Seeds of the runs."""
    tune: Tune | None = None
    """Hyperparameters that every variant has tuned for itself."""
    match: Match | None = None
    """What every variant is given as much of as the base."""
    fixed: Text = ""
    """What was held fixed: the results hold only for it."""
    analysis: Analysis = Analysis()
    """How the runs are compared."""
    evals: Evals | None = None
    """What the reported runs are asked after their training."""
    paper: Paper = Paper()
    """What the suite reproduces."""

    @model_validator(mode="after")
    def _tuned_apart(self) -> SuiteFile:
        if self.tune and METRICS[self.analysis.metric].split != "tune":
            raise RequestError(
                f"analysis.metric = {self.analysis.metric}: tuning needs a metric of validation, "
                f"such as val_bits_per_byte"
            )
        both = set(self.seeds.tune) & set(self.seeds.report)
        if self.tune and both:
            raise RequestError(
                f"seeds: {min(both)} is both a tuning and a report seed; a choice is reported on fresh seeds"
            )
        return self


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
            name = f"the key {shown(key_node.value)}" if isinstance(key_node, yaml.ScalarNode) else "a key"
            raise RequestError(f"line {line}: {name} reads as {shortened(key)}; write it in quotes")
        if key in seen:
            raise RequestError(f"line {line}: {shortened(key)} is given twice, first in line {seen[key]}")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_suite_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's content, and the line of each key by its path (`variants.none`)."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: no UTF-8 text (byte {error.start})") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if _written_out(root, {}) > LARGEST:
            raise RequestError("its aliases (*name) stand for more than a suite can hold")
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RequestError(
            f"{path}{where}: not valid YAML: {' '.join((error.problem or '').split())}"
        ) from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RequestError as error:
        raise RequestError(f"{path}, {error}") from error
    except RecursionError as error:
        raise RequestError(f"{path}: nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's on `!!int x`, 2001-99-99
        raise RequestError(f"{path}: not valid YAML: a number, date or !!tag with a wrong value") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path}: a suite is a mapping with the keys base and variants")
    return content, _lines(root, "")


def _written_out(node: Any, sizes: dict[int, float]) -> float:
    """Nodes of a tree with each alias counted as all that it stands for; infinite where one holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        items = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]


def _lines(node: Any, prefix: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines.update(_lines(value, name + "."))
    return lines
