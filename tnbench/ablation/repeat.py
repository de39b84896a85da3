"""`tnbench train --from`: repeat a run from its manifest alone, and say whether it came out the same.

On a CPU of the same kind, with the same code and the same version of torch, all recorded values repeat bit
for bit; times, speeds and memory describe the machine and are not compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tnbench import registry
from tnbench.ablation import thinning
from tnbench.ablation.train import complete, exit_status
from tnbench.config import RunConfig, check, digest, run_id
from tnbench.data import TokenData, prepare
from tnbench.errors import RequestError
from tnbench.records import ENDED, RunFolder, provenance, read_metrics, source_hash
from tnbench.resolution import flatten
from tnbench.training.environment import require_device
from tnbench.training.manifest import SCHEMA

OWN = ("finished", "diverged")
"""Outcomes that the run itself brings about; others may be the machine's, and the repeat may get further."""
Key = tuple[str, str, int]
"""Name, split and step of a recorded value."""


@dataclass(frozen=True)
class Original:
    """The run to be repeated."""

    path: Path
    """Its manifest."""
    manifest: Mapping[str, Any]
    config: RunConfig
    notes: list[str]

    @property
    def folder(self) -> RunFolder:
        """The record beside the manifest; it may hold the manifest alone."""
        return RunFolder(self.path.parent)


def repeat(manifest: Path, *, results: Path, keep: str, console: Console) -> int:
    """Train the run of a manifest again, under `<results>/train/runs/<run id>/`, and compare the records.

    A repeat that was interrupted is resumed, and one that has ended is only compared again.

    Args:
        manifest: a run's `manifest.json`, or its folder.
        results: where the repeat is written.
        keep: `weights` or `none`.
        console: shows the progress and the result.

    Returns:
        The exit status: 0 where all values of the original came again, 1 where one did not or the run failed,
        130 if interrupted.

    Raises:
        RequestError: no manifest that could be repeated here, changed data, or the original's own folder as
            the target; nothing has been run.
    """
    original = read_original(manifest)
    require_device(original.config)
    data = prepare(original.config.data)
    _require_same_data(original, data)
    folder = RunFolder(results / "train" / "runs" / run_id(original.config, data.hash, source_hash()))
    if folder.path.resolve() == original.folder.path.resolve():
        raise RequestError(
            f"{folder.path} holds the original, which a repeat must not touch; choose another place with "
            f"--results, for example --results {results / 'repeats'}"
        )
    for note in (*original.notes, *_differences(original)):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if folder.outcome() in ENDED:
        ended = (folder.read_manifest() or {}).get("ended")
        console.print(
            f"note: this repeat ended before, at {ended}: nothing is run, the records are compared again",
            highlight=False,
            soft_wrap=True,
        )
    attributes = {"seed": original.config.training.data_seed, "repeat_of": original.manifest.get("run_id")}
    outcome = complete(original.config, data, folder, attributes=attributes, keep=keep, console=console)
    if status := exit_status(outcome):
        return status
    same, text = compared(original, folder)
    console.print(text, highlight=False, soft_wrap=True)
    return 0 if same else 1


def read_original(path: Path) -> Original:
    """Read a manifest and check that it says how to repeat its run.

    Raises:
        RequestError: it does not, in one line.
    """
    path = path / "manifest.json" if path.is_dir() else path
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"--from {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise RequestError(f"--from {path}: no JSON, so no manifest") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise RequestError(f"--from {path}: no manifest of a training run, it has no config")
    if manifest.get("schema") != SCHEMA:
        raise RequestError(
            f"--from {path}: its schema is {manifest.get('schema')}, this version of tnbench reads {SCHEMA}"
        )
    registry.load()
    try:
        config: RunConfig = check(RunConfig, manifest["config"], "config")
    except RequestError as error:
        raise RequestError(f"--from {path}: {error}") from error
    data, source, name = (
        _require(path, manifest, key) for key in ("data.hash", "provenance.source_hash", "run_id")
    )
    made = run_id(config, data, source)
    changed = manifest.get("config_hash") not in (None, digest(manifest["config"]))
    if changed or (source == source_hash() and made != name):
        raise RequestError(f"--from {path}: its configuration is not that of run {name}: it has been changed")
    known = flatten(manifest["config"])
    notes = [
        f"the manifest does not have {key}; {value!r} is taken"
        for key, value in flatten(config.model_dump(mode="json")).items()
        if key not in known
    ]
    config, note = _with_micro_batches(path, manifest, config)
    return Original(path, manifest, config, [*notes, *note])


def _with_micro_batches(
    path: Path, manifest: Mapping[str, Any], config: RunConfig
) -> tuple[RunConfig, list[str]]:
    """The configuration with the micro-batches to which the run came when the memory did not suffice."""
    try:
        sizes = {int(step): int(tokens) for step, tokens in manifest.get("micro_batches") or []}
    except (TypeError, ValueError) as error:
        raise RequestError(f"--from {path}: micro_batches is no list of [step, tokens]") from error
    usual = config.training.micro_batch_tokens or config.training.batch_tokens
    if sizes.keys() - {0}:
        return config, ["the original changed its micro-batches on the way; the last bits may differ"]
    if sizes.get(0, usual) == usual:
        return config, []
    values = config.model_dump(mode="json")
    values["training"]["micro_batch_tokens"] = sizes[0]
    note = f"micro-batches of {sizes[0]} tokens, as in the original after it ran out of memory"
    try:
        return check(RunConfig, values, "micro_batches"), [note]
    except RequestError as error:
        raise RequestError(f"--from {path}: {error}") from error


def _find(manifest: Mapping[str, Any], key: str) -> Any:
    """An entry by its dotted key; None where there is none."""
    value: Any = manifest
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _require(path: Path, manifest: Mapping[str, Any], key: str) -> str:
    value = _find(manifest, key)
    if not isinstance(value, str):
        raise RequestError(f"--from {path}: no manifest that could be repeated, it has no {key}")
    return value


def _require_same_data(original: Original, data: TokenData) -> None:
    now = {"data": data.describe()}
    for key, what in (
        ("data.corpus_hash", f"the corpus {data.corpus} has changed since the run"),
        ("data.tokenizer.hash", f"the tokenizer {data.tokenizer.name} is not that of the run"),
        ("data.hash", f"the corpus {data.corpus} is not divided or read as it was for the run"),
    ):
        mine, former = _find(now, key), _find(original.manifest, key)
        if mine != former:
            raise RequestError(f"--from {original.path}: {what}: {key} is {mine}, in the manifest {former}")


def _differences(original: Original) -> list[str]:
    """What may change the last bits, or more."""
    here = {"provenance": provenance()}
    what = {
        "source code": "provenance.source_hash",
        "version of torch": "provenance.versions.torch",
        "processor": "provenance.processor",
    }
    found = [(name, _find(original.manifest, key), _find(here, key)) for name, key in what.items()]
    return [
        f"another {name}: {former} then, {mine} now; values may differ"
        for name, former, mine in found
        if former != mine
    ]


def compared(original: Original, again: RunFolder) -> tuple[bool, str]:
    """Whether all values of the original stand in the other record too, exactly, and a line that says so.

    Two runs that finished or diverged must agree in that, in their last step, and in what they recorded;
    of one that was stopped by its machine, or whose metrics were thinned, what it has recorded must be in the
    other.
    """
    beside = original.folder
    former, problems = read_metrics(beside.metrics)
    mine, theirs = (_recorded(values) for values in (read_metrics(again.metrics)[0], former))
    broken = f" ({'; '.join(problems)})" if problems and theirs else ""
    if not theirs:
        return True, f"nothing to compare with: no recorded values in {beside.metrics}"
    first, second = original.manifest, again.read_manifest() or {}
    whole = first.get("outcome") in OWN
    differ = [key for key, value in theirs.items() if key not in mine or not _same(value, mine[key])]
    thinned = thinning.KEY in first
    differ += [key for key in mine if key not in theirs] if whole and not broken and not thinned else []
    if differ:
        name, split, step = key = differ[0]
        values = [f"{side[key]!r}" if key in side else "no value" for side in (theirs, mine)]
        return False, (
            f"differs from the original in {len(differ)} of {len(theirs)} recorded values, first in {name} "
            f"({split}) at step {step}: {values[0]} there, {values[1]} here{broken}"
        )
    ends = [(one.get("outcome"), one.get("stopped_step")) for one in (first, second)]
    if whole and ends[0] != ends[1]:
        told = [f"{str(outcome).replace('_', ' ')} at step {step}" for outcome, step in ends]
        return False, f"differs from the original, which ended {told[0]}; the repeat ended {told[1]}"
    if not whole:
        return True, (
            f"identical to the original as far as that went: all {len(theirs)} recorded values, up to step "
            f"{max(step for _, _, step in theirs)}{broken}"
        )
    weights = ""
    if beside.weights.exists() and again.weights.exists():
        if not _same_weights(beside.weights, again.weights):
            return False, f"differs from the original in the final weights ({again.weights})"
        weights = ", and the final weights"
    kept = " that are kept" if thinned else ""
    return True, f"identical to the original: all {len(theirs)} recorded values{kept}{weights}{broken}"


def _recorded(values: list[dict[str, Any]]) -> dict[Key, float]:
    return {
        (value["name"], value.get("split", ""), value["step"]): value["value"]
        for value in values
        if not _measures_the_machine(value["name"])
    }


def _measures_the_machine(name: str) -> bool:
    return name.endswith(("_seconds", "_per_second", "_bytes", "_joules"))


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _same_weights(one: Path, other: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
