"""From the words of a command to the points that it measures."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tnbench.config import RunConfig
from tnbench.errors import RequestError
from tnbench.model.presets import SIZES
from tnbench.profiling.models.arms import MODES
from tnbench.profiling.models.campaign import Measurement, Point
from tnbench.profiling.models.largest import Axis
from tnbench.profiling.models.store import code_hash
from tnbench.profiling.models.variants import Asked, Variant, asked, of_suite, resolved
from tnbench.profiling.texts import names, numbers

SuiteLoader = Callable[[str, Mapping[str, Any]], Iterable[tuple[str, Mapping[str, Any], RunConfig]]]
"""(suite, settings) → name, diff and configuration of each variant, the base first."""


@dataclass(frozen=True)
class Defaults:
    """What a command measures that asks for nothing else."""

    presets: tuple[str, ...]
    size: str
    contexts: tuple[int, ...]
    vocabulary: int
    precision: str
    step_tokens: int
    """Tokens of a training step, from which the batch follows."""
    compiled: bool
    measurement: Measurement


DEFAULTS = {
    "cuda": Defaults(
        presets=("transnormerllm", "transformer", "fla-retnet"),
        size="385m",
        contexts=(2048, 8192, 32768),
        vocabulary=50272,
        precision="bf16",
        step_tokens=32768,
        compiled=True,
        measurement=Measurement(rounds=5, calls=50, seconds=2.0, energy=1.0),
    ),
    "cpu": Defaults(
        presets=("transnormerllm", "transformer"),
        size="0.8m",
        contexts=(256, 1024),
        vocabulary=4096,
        precision="fp32",
        step_tokens=2048,
        compiled=False,
        measurement=Measurement(rounds=5, calls=20, seconds=0.5),
    ),
}
"""By device. On a CPU every mode ends within two minutes."""


@dataclass(frozen=True)
class Wanted:
    """What a command asks for; None or empty: the default of the device."""

    modes: tuple[str, ...] = ("train",)
    sizes: tuple[str, ...] | None = None
    contexts: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    vocabulary: int | None = None
    precision: str | None = None
    suite: str | None = None
    variants: Asked = field(default_factory=Asked)
    budget: int | None = None
    """Bytes of memory that are asked about."""


def wanted(
    *,
    mode: str | None,
    size: str | None,
    context: str | None,
    batch: str | None,
    vocabulary: int | None,
    precision: str | None,
    presets: Sequence[str],
    variants: Sequence[str],
    suite: str | None,
    settings: Mapping[str, Any],
    budget: str | None = None,
) -> Wanted:
    """Check the words of a command for themselves.

    Raises:
        RequestError: a name that is not known, a number that cannot be read, options that exclude each other.
    """
    if suite is not None and (presets or variants):
        raise RequestError("--suite brings its own variants: leave out --preset and --variant")
    if variants and not presets:
        presets = ("transnormerllm",)
    sizes = names("--size", size.lower() if size is not None else None, tuple(SIZES))
    if precision is not None:
        names("--precision", precision, ("fp32", "bf16"))
    return Wanted(
        modes=names("--mode", mode, MODES) or ("train",),
        sizes=sizes,
        contexts=numbers("--context", context),
        batches=numbers("--batch", batch),
        vocabulary=vocabulary,
        precision=precision,
        suite=suite,
        variants=asked(presets, variants, settings),
        budget=None if budget is None else _budget(budget),
    )


def require_use(
    wanted: Wanted,
    largest: Axis | None,
    *,
    rounds: int | None,
    energy: float | None,
    time_limit: float | None,
    plan: bool,
) -> None:
    """Refuse options that would do nothing beside the others.

    Raises:
        RequestError: there is one, or seconds that are no number.
    """
    for option, seconds in (("--energy", energy), ("--time-limit", time_limit)):
        if seconds is not None and not math.isfinite(seconds):
            raise RequestError(f"{option} {seconds}: give a number of seconds")
    given = {"--rounds": rounds is not None, "--energy": energy is not None}
    if largest is not None:
        reason = f"--largest {largest}, which tries each value in turn and times nothing"
        given["--context" if largest == "context" else "--batch"] = bool(
            wanted.contexts if largest == "context" else wanted.batches
        )
    elif wanted.budget is not None:
        reason = "--fit alone, which asks the memory model and measures nothing"
        given |= {"--time-limit": time_limit is not None, "--plan": plan}
    else:
        return
    for option in (name for name, there in given.items() if there):
        raise RequestError(f"{option} does not go with {reason}")


def along(wanted: Wanted, axis: Axis, device: str) -> Wanted:
    """The grid of a search: of its axis one value, from which what has no prediction starts; contexts are
    searched for at one sequence unless others are asked for."""
    if axis == "context":
        return replace(wanted, contexts=DEFAULTS[device].contexts[:1], batches=wanted.batches or (1,))
    return wanted


def _budget(text: str) -> int:
    from tnbench.profiling.models.fit import parse_budget

    return parse_budget(text)


def variants_at(
    wanted: Wanted, size: str | None, device: str, suites: SuiteLoader, *, compiled: bool | None = None
) -> list[Variant]:
    """Every variant at a size (None: the suite's own), at a context of no account.

    Args:
        compiled: whether steps are compiled where the command does not say; by default, on a GPU.

    Raises:
        RequestError: an unknown key, an impossible pair, no such suite.
    """
    chosen = DEFAULTS[device]
    place = {
        "training.device": device,
        "training.precision": wanted.precision or chosen.precision,
        "training.threads": threads(device),
        "training.compile": chosen.compiled if compiled is None else compiled,
    }
    settings = wanted.variants.settings
    if wanted.suite is not None:
        sized = {**settings, **({"model.size": size} if size else {})}
        own = {key: value for key, value in settings.items() if key in place}
        return of_suite(suites(wanted.suite, sized), {**place, **own})
    presets = wanted.variants.presets or chosen.presets
    filled = Asked(presets, wanted.variants.diffs, settings)
    # A learning rate at which random tokens leave the weights what they are.
    lower = {**place, "training.steps": 1000, "training.learning_rate": 1e-4}
    return resolved(filled, size or chosen.size, {**lower, "data.context": 256})


def threads(device: str) -> int:
    """CPU threads of a process: all cores where the model itself runs on them."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1


def points(
    wanted: Wanted,
    device: str,
    stack: Mapping[str, str | None],
    suites: SuiteLoader,
    measurement: Measurement,
    reproduced: str,
    limit: int | None = None,
) -> list[Point]:
    """The grid: mode × size × context × batch, with all variants at each.

    Args:
        stack: versions of torch and triton.
        measurement: what the commands of single points repeat.
        reproduced: the results folder of those commands.
        limit: bytes that a process may use, None for all there are.

    Raises:
        RequestError: something that is wrong, before any work.
    """
    chosen, code = DEFAULTS[device], code_hash()
    sizes: Sequence[str | None] = wanted.sizes or ((None,) if wanted.suite else (chosen.size,))
    made = []
    for size in sizes:
        variants = variants_at(wanted, size, device, suites)
        named = size or variants[0].config.model.size
        for mode in wanted.modes:
            for context in wanted.contexts or chosen.contexts:
                for batch in wanted.batches or (default_batch(mode, context, device),):
                    case = {
                        "mode": mode,
                        "size": named,
                        "context": context,
                        "batch": batch,
                        "vocabulary": wanted.vocabulary or chosen.vocabulary,
                        "precision": wanted.precision or chosen.precision,
                        "device": device,
                        "threads": threads(device),
                        "suite": wanted.suite or "",
                        "limit": limit,
                    }
                    there = tuple(variant.at(context, batch) for variant in variants)
                    command = command_of(case, wanted, there, measurement, reproduced)
                    made.append(Point(case, there, code, dict(stack), command))
    return made


def default_batch(mode: str, context: int, device: str) -> int:
    """Sequences: of a step of the default number of tokens in training, one otherwise."""
    return max(1, DEFAULTS[device].step_tokens // context) if mode == "train" else 1


def command_of(
    case: Mapping[str, Any],
    wanted: Wanted,
    variants: Sequence[Variant],
    measurement: Measurement,
    reproduced: str,
) -> str:
    """The command that measures one point alone, for a shell."""
    options: list[tuple[str, Any]] = [
        (f"--{name}", case[name])
        for name in ("mode", "size", "context", "batch", "vocabulary", "precision", "device")
    ]
    if wanted.suite:
        options.append(("--suite", wanted.suite))
    else:
        diffs = dict(wanted.variants.diffs)
        options += [("--preset", variant.name) for variant in variants if variant.name not in diffs]
        options += [("--variant", f"{name}: {setting_words(diff)}") for name, diff in diffs.items()]
    options += [("--set", f"{key}={_value(value)}") for key, value in wanted.variants.settings.items()]
    options += [("--rounds", measurement.rounds), ("--energy", f"{measurement.energy:g}")]
    options += [("--results", reproduced)]
    return shlex.join(["tnbench", "profile-model", *(str(word) for pair in options for word in pair)])


def setting_words(diff: Mapping[str, Any]) -> str:
    """`model.gate=false model.decay=none`."""
    return " ".join(f"{key}={_value(value)}" for key, value in diff.items())


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def least_seconds(points: Iterable[Point], measurement: Measurement) -> float:
    """Seconds of timing and counting energy, without preparing."""
    each = measurement.rounds * measurement.seconds + measurement.energy
    return sum(len(point.variants) * each for point in points)
