"""Numbers and diffs as they are printed: rounded by their interval, with their unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tnbench.report.results import OUTCOMES, Choice, VariantSummary
from tnbench.statistics import MOST_PAIRS, Comparison, Interval

MINUS = "−"
NOTHING = "–"
BELOW = "below resolution at this size"
"""What a score is that is not above chance."""


def decimals(half_width: float) -> int:
    """Decimal places that leave two significant digits of the half width.

    >>> decimals(0.0123), decimals(0.0996), decimals(12.0)
    (3, 2, 0)
    """
    if not half_width > 0:
        return 4
    return max(0, 1 - int(f"{half_width:.1e}".partition("e")[2]))


def counted(count: int, noun: str, several: str = "") -> str:
    """A number of things: `several` is the noun's plural where that is no plain s.

    >>> counted(1, "row"), counted(2, "row"), counted(0, "search", "searches")
    ('1 row', '2 rows', '0 searches')
    """
    return f"{count} {noun if count == 1 else several or noun + 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`, `3.2 days`.

    >>> duration(200), duration(7500)
    ('3 min 20 s', '2 h 5 min')
    """
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:.1f} days"


def places_of(interval: Interval) -> int:
    """Decimal places of a difference: those of its half width, or more where an end would look like zero.

    >>> places_of(Interval(0.0162, 0.0004, 0.0320, n=3))
    4
    """
    places = decimals(interval.half_width)
    ends = [abs(end) for end in (interval.low, interval.high) if end != 0]
    while places < 9 and any(round(end, places) == 0 for end in ends):
        places += 1
    return places


def number(value: float, places: int, sign: bool = False) -> str:
    """A number with a true minus sign, and a plus sign if asked for."""
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", MINUS)


def mean(interval: Interval) -> str:
    """`1.834 ± 0.012`, or the mean alone with the reason why it has no interval.

    >>> from tnbench.statistics import mean_interval
    >>> mean(mean_interval([1.80, 1.81, 1.82], 0.05)), mean(mean_interval([1.8], 0.05))
    ('1.810 ± 0.025', '1.800 (n = 1: no interval)')
    """
    if interval.n == 0:
        return NOTHING
    if not interval.exists:
        return f"{number(interval.mean, 3)} (n = 1: no interval)"
    places = decimals(interval.half_width)
    return f"{number(interval.mean, places)} ± {number(interval.half_width, places)}"


def difference(interval: Interval | None, n: int | None = None) -> str:
    """`+0.021 [+0.008, +0.034]`: a difference with its interval, and its pairs where they are not `n`."""
    if interval is None or interval.n == 0:
        return NOTHING
    if not interval.exists:
        return f"{number(interval.mean, 3, sign=True)} (1 pair: no interval)"
    pairs = f" ({interval.n} pairs)" if n not in (None, interval.n) else ""
    return f"{number(interval.mean, places_of(interval), sign=True)} {ends(interval)}{pairs}"


def ends(interval: Interval) -> str:
    """`[+0.008, +0.034]`: the interval of a difference."""
    places = places_of(interval)
    return f"[{number(interval.low, places, sign=True)}, {number(interval.high, places, sign=True)}]"


def p(value: float, alpha: float = 0.05) -> str:
    """A p-value for a column of such: two significant digits, or more where rounding would cross alpha.

    >>> p(0.0004), p(0.0321), p(0.0504), p(1.0), p(float("nan"))
    ('< 0.001', '0.032', '0.0504', '1.0', '–')
    """
    if not math.isfinite(value):
        return NOTHING
    if value < 0.001:
        return "< 0.001"
    places = decimals(value)
    while places < 9 and (round(value, places) <= alpha) != (value <= alpha):
        places += 1
    return number(value, places)


def p_is(value: float, alpha: float = 0.05) -> str:
    """A p-value for a sentence: `p < 0.001`, `p = 0.032`."""
    text = p(value, alpha)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def verdict(comparison: Comparison, unit: str = "") -> str:
    """`worse`, `equivalent within ±0.005`, `undecided (needs about 12 seeds)`: a verdict and what limits it.

    Args:
        comparison: one variant against the base.
        unit: of the margin; named where it is given.
    """
    margin = f"±{comparison.margin:g} {unit}".rstrip() if comparison.margin is not None else ""
    match comparison.verdict:
        case "equivalent":
            return f"equivalent within {margin}"
        case "better" | "worse" as word:
            return f"{word}, but within {margin}" if comparison.within_margin else word
    return f"undecided ({_lacking(comparison)})"


def _lacking(comparison: Comparison) -> str:
    """What a verdict would have needed."""
    n, needed = comparison.difference.n, comparison.seeds_needed
    if n < 2 and comparison.paired:
        return "one pair" if n else "no pair"
    if n < 2:
        return "too few runs"
    if needed is None:
        return "no spread to test against"
    return f"needs {seeds(needed)} seeds"


def seeds(needed: int) -> str:
    """How many seeds a decision takes: `about 12`, `more than 10,000`."""
    return f"about {needed:,}" if needed < MOST_PAIRS else f"more than {MOST_PAIRS:,}"


def short(value: float) -> str:
    """Three significant digits with k, M, G or T.

    >>> short(107_984), short(12_345), short(950), short(float("nan"))
    ('108k', '12.3k', '950', '–')
    """
    if not math.isfinite(value):
        return NOTHING
    rounded = float(f"{value:.3g}")
    power = min(4, max(0, int(math.log10(abs(rounded))) // 3)) if rounded else 0
    return f"{rounded / 1000**power:.4g}" + " kMGT"[power].strip()


def memory(size: float) -> str:
    """Bytes in the unit that suits them.

    >>> memory(432 * 2**20), memory(3 * 2**30), memory(1000), memory(0)
    ('432 MiB', '3 GiB', '1000 bytes', '0 bytes')
    """
    if not math.isfinite(size):
        return NOTHING
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = 0
    while index < len(units) - 1 and float(f"{size / 1024**index:.3g}") >= (1000 if index > 1 else 1024):
        index += 1
    value = size / 1024**index
    return f"{value:.0f} {units[index]}" if index == 0 else f"{float(f'{value:.3g}'):g} {units[index]}"


def speed(tokens_per_second: float, ratio: float) -> str:
    """`12.3k (0.91×)`: tokens per second, and how many times those of the base."""
    if not math.isfinite(tokens_per_second):
        return NOTHING
    return short(tokens_per_second) + (f" ({ratio:.2f}×)" if math.isfinite(ratio) else "")


def outcomes(counts: Counter[str]) -> str:
    """`2/3, 1 diverged`: finished of planned runs, and what became of the others.

    >>> outcomes(Counter(finished=2, diverged=1))
    '2/3, 1 diverged'
    """
    others = [
        f"{counts[name]} {word}" for name, word in OUTCOMES.items() if counts[name] and name != "finished"
    ]
    return ", ".join([f"{counts['finished']}/{counts.total()}", *others])


def diff(changes: Mapping[str, Any], is_base: bool) -> str:
    """`model.position = none, model.decay = none`; a variant without a change is an A/A row.

    >>> diff({"model.decay.name": "printed", "model.gate": False}, is_base=False)
    'model.decay = printed, model.gate = false'
    """
    if not changes:
        return "base" if is_base else "A/A: the base again"
    return ", ".join(f"{key.removesuffix('.name')} = {value(item)}" for key, item in changes.items())


def change(one: VariantSummary, repeat: bool = False) -> str:
    """A variant's diff, and the widths that matching set: `model.gate = false; matched: model.width = 136`.

    Args:
        one: the variant.
        repeat: whether it repeats a configuration with fresh initialisation seeds.
    """
    text = diff(one.diff, is_base=one.comparison is None)
    text += ", once more (A/A)" if repeat and one.diff else ""
    if one.matching and one.matching.changed:
        text += "; matched: " + ", ".join(f"{key} = {size}" for key, size in one.matching.changed.items())
    return text


def point(values: Mapping[str, float]) -> str:
    """A point of the tuning grid: `training.learning_rate = 0.002`."""
    return ", ".join(f"{key} = {number:g}" for key, number in values.items())


def key(name: str) -> str:
    """The last part of a dotted key, in words.

    >>> key("training.learning_rate")
    'learning rate'
    """
    return name.rpartition(".")[2].replace("_", " ")


def chosen(choice: Choice) -> str:
    """What tuning chose, for a column that is headed by the key: `0.002`, `0.004 (edge)`."""
    if not math.isfinite(choice.value):
        return "none finished"
    values = ", ".join(f"{number:g}" for number in choice.point.values())
    return f"{values} (edge)" if choice.edge else values


def fixed(value: float) -> str:
    """One value of the metric, which has no interval: four decimal places."""
    return number(value, 4) if math.isfinite(value) else NOTHING


def percent(share: float) -> str:
    """`+0.31 %`: a share with its sign.

    >>> percent(-0.00312), percent(0.0)
    ('−0.31 %', '0 %')
    """
    if not math.isfinite(share):
        return NOTHING
    return f"{number(100 * share, 2, sign=True)} %" if round(share, 4) else "0 %"


def plain(value: float, unit: str = "") -> str:
    """A number that has no interval of its own, such as a sensitivity: two significant digits.

    >>> plain(0.01234, "bits per byte"), plain(3.4567)
    ('0.012 bits per byte', '3.5')
    """
    if not math.isfinite(value):
        return NOTHING
    return f"{number(value, decimals(abs(value)) if value else 0)} {unit}".rstrip()


def value(item: Any) -> str:
    """A value as it would be typed in a suite."""
    match item:
        case None:
            return "none"
        case bool():
            return str(item).lower()
        case Mapping() if "name" in item:
            rest = ", ".join(f"{key} = {value(inner)}" for key, inner in item.items() if key != "name")
            return f"{value(item['name'])} ({rest})" if rest else value(item["name"])
        case Mapping():
            return "{" + ", ".join(f"{key}: {value(inner)}" for key, inner in item.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(value, item)) + "]"
        case _:
            return str(item)
