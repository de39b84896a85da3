"""Numbers and diffs as they are printed: rounded by their interval, with their unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tnbench.report.results import OUTCOMES
from tnbench.statistics import Interval

MINUS = "−"
NOTHING = "–"


def decimals(half_width: float) -> int:
    """Decimal places that leave two significant digits of the half width.

    >>> decimals(0.0123), decimals(0.0996), decimals(12.0)
    (3, 2, 0)
    """
    if not half_width > 0:
        return 4
    return max(0, 1 - int(f"{half_width:.1e}".partition("e")[2]))


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
    places = places_of(interval)
    low, high = number(interval.low, places, sign=True), number(interval.high, places, sign=True)
    pairs = f" ({interval.n} pairs)" if n not in (None, interval.n) else ""
    return f"{number(interval.mean, places, sign=True)} [{low}, {high}]{pairs}"


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
    """Bytes in MiB or GiB.

    >>> memory(432 * 2**20), memory(3 * 2**30)
    ('432 MiB', '3 GiB')
    """
    if not math.isfinite(size):
        return NOTHING
    mebibytes = float(f"{size / 2**20:.3g}")
    return f"{mebibytes:g} MiB" if mebibytes < 1000 else f"{size / 2**30:.3g} GiB"


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
    """`model.position = none, model.decay = none`.

    >>> diff({"model.decay.name": "printed", "model.gate": False}, is_base=False)
    'model.decay = printed, model.gate = false'
    """
    if not changes:
        return "base" if is_base else "repeat of the base"
    return ", ".join(f"{key.removesuffix('.name')} = {value(item)}" for key, item in changes.items())


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
