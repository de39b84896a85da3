"""`tnbench ablate --plan`: what a suite would cost, and what it could find out. Nothing is run."""

from __future__ import annotations

import math

from rich.console import Console

from tnbench.ablation import display
from tnbench.ablation.collect import collect
from tnbench.ablation.estimate import seconds_per_evaluation, seconds_per_run
from tnbench.ablation.eval_queue import Asked
from tnbench.ablation.execute import default_workers, ended_outcomes
from tnbench.ablation.noise import NoiseFloor, noise_floor
from tnbench.ablation.suite import Suite
from tnbench.report import words
from tnbench.report.results import METRICS
from tnbench.statistics import MOST_PAIRS, POWER, detectable_difference, pairs_needed


def show_plan(suite: Suite, workers: int | None, asked: Asked | None, console: Console) -> None:
    """Print each variant's size and cost, the time that is left, and the smallest detectable difference.

    Args:
        asked: what is to be evaluated after the training; None for nothing.
    """
    outcomes = ended_outcomes(suite)
    with console.status("timing a few steps of each variant"):
        seconds = {variant.name: seconds_per_run(suite, variant) for variant in suite.variants}
        evaluations = _evaluations(suite, workers, asked) if asked else []
    console.print(display.plan_table(suite, outcomes, seconds))
    lines = [display.plan_line(suite), *tuning_lines(suite)]
    lines.append(_missing(suite, outcomes, seconds, workers))
    lines += evaluations
    lines += detectable_lines(suite, noise_floor(collect(suite)))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _missing(
    suite: Suite, outcomes: dict[str, str], seconds: dict[str, float | None], workers: int | None
) -> str:
    found = suite.search()
    missing = [run.variant.name for run in suite.runs() if run.folder.id not in outcomes]
    if found and not found.choices:  # the reported runs, whose hyperparameters are not known yet
        missing += [variant.name for variant in suite.variants for _ in suite.seeds]
    if not missing:
        return "nothing is missing"
    count = min(workers, len(missing)) if workers else default_workers(suite, len(missing))
    times = [seconds[name] for name in missing]
    if None in times:
        return f"{len(missing)} runs are missing"
    rough = words.duration(sum(time for time in times if time) / max(count, 1))
    return f"{len(missing)} runs are missing: about {rough} of training with {count} at a time"


def _evaluations(suite: Suite, workers: int | None, asked: Asked) -> list[str]:
    """What is asked after the training, and how long that takes."""
    lines = display.evaluation_lines(suite, asked)
    lacking = [run.variant.name for run in asked.lacking]
    if not any(run.phase == "report" for run in suite.runs()):  # they are not known yet
        lacking = [variant.name for variant in suite.variants for _ in suite.seeds]
    if not lacking:
        return lines
    each = {one.name: seconds_per_evaluation(suite, one, asked) for one in suite.variants}
    times = [each[name] for name in lacking]
    if None not in times:
        count = min(workers, len(lacking)) if workers else default_workers(suite, len(lacking))
        rough = words.duration(sum(time for time in times if time) / max(count, 1))
        lines[-1] += f": about {rough} of reading with {count} at a time"
    return lines


def tuning_lines(suite: Suite) -> list[str]:
    """How many trials the tuning takes, or what it has chosen."""
    tune, found = suite.file.tune, suite.search()
    if tune is None or found is None:
        return []
    if found.choices:
        chosen = "; ".join(
            f"{name}: {words.point(choice.point)}{' (edge of the grid)' if choice.edge else ''}"
            for name, choice in found.choices.items()
        )
        return [f"tuned with {next(iter(found.choices.values())).trials} trials per variant: {chosen}"]
    trials = len(found.points) * len(suite.file.seeds.tune)
    widest = math.prod(len(values) + 2 * tune.widen for values in tune.grid.values())
    most = widest * len(suite.file.seeds.tune)
    more = f", up to {most} where the best lies at the edge" if tune.widen else ""
    keys = " × ".join(
        f"{key} in {', '.join(f'{value:g}' for value in values)}" for key, values in tune.grid.items()
    )
    return [
        f"tuning first, on seeds {', '.join(map(str, suite.file.seeds.tune))} and the tune-validation split: "
        f"{keys}; {trials} trials per variant{more}"
    ]


def detectable_lines(suite: Suite, floor: NoiseFloor) -> list[str]:
    """The smallest difference that the suite can detect, and the seeds that its margin needs."""
    analysis, n = suite.file.analysis, len(suite.seeds)
    unit, comparisons = METRICS[analysis.metric].unit, len(suite.variants) - 1
    if comparisons == 0:
        return ["one variant alone: there is nothing to compare"]
    level = f"{100 * POWER:g} % power at alpha = {analysis.alpha:g}"
    level += f" over {comparisons} comparisons (Holm)" if comparisons > 1 else ""
    if math.isnan(floor.sd):
        return [f"smallest detectable difference: not known, {floor.source}"]
    if floor.sd == 0:
        return [f"smallest detectable difference: not known, {floor.source} are all equal"]
    lines = ["smallest detectable difference: none with a single seed; 2 at least give an interval"]
    smallest = math.inf
    if n >= 2:
        smallest = detectable_difference(n, floor.sd, alpha=analysis.alpha, comparisons=comparisons)
        lines = [
            f"smallest detectable difference with {n} seeds: {smallest:.2g} {unit} ({level}; standard "
            f"deviation of a paired difference {floor.sd:.2g}, from {floor.source})"
        ]
    if analysis.margin is None:
        lines.append("no analysis.margin is set: variants may be found different, but never equivalent")
    elif smallest > analysis.margin:
        needed = pairs_needed(analysis.margin, floor.sd, alpha=analysis.alpha, comparisons=comparisons)
        count = f"about {needed}" if needed < MOST_PAIRS else f"more than {MOST_PAIRS:,}"
        lines.append(
            f"the margin {analysis.margin:g} {unit} lies below that: a difference of this size needs "
            f"{count} seeds"
        )
    return lines
