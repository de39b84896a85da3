"""Power: which difference a number of pairs detects, and how many pairs a difference needs.

A difference counts as detected when its test rejects at the level alpha / comparisons, two-sided: the first
step of Holm's procedure, and the only one that a variant may count on before the others are known. Under a
true difference d the t statistic follows the noncentral t distribution with noncentrality d √n / sd.
Equivalence is tested at alpha itself.

Here sd is that of *one difference*. Of pairs with spread s on both sides and correlation ρ it is
s √(2 (1 - ρ)). Without pairing ρ is 0 and each side has n values, which leaves 2 (n - 1) degrees of freedom
instead of n - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtr, nctdtr, stdtrit

from tnbench.errors import RequestError
from tnbench.statistics.intervals import check_alpha

MOST_PAIRS = 10_000
"""No answer is larger: it stands for this many pairs or more."""

POWER = 0.8
"""Probability of seeing what there is to see, by convention (Cohen, 1988)."""


def detection_power(
    difference: float, n: int, sd: float, *, alpha: float, comparisons: int = 1, paired: bool = True
) -> float:
    """Probability that n pairs detect a true difference.

    Args:
        difference: the true difference, of either sign.
        n: number of pairs, 2 at least; without pairing, of values on each side.
        sd: standard deviation of one difference, in the unit of the difference, above 0.
        alpha: level of the whole table, two-sided.
        comparisons: size of the table.

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    check_alpha(alpha)
    noncentrality = abs(difference) * sqrt(n) / sd
    return _detection_power(noncentrality, _freedom(n, paired), alpha / comparisons)


def detectable_difference(
    n: int, sd: float, *, alpha: float, comparisons: int = 1, power: float = POWER, paired: bool = True
) -> float:
    """The smallest true difference that n pairs detect with the given power.

    NaN with n < 2. Arguments and errors are those of `detection_power`; power above alpha.

    >>> round(detectable_difference(4, sd=1.0, alpha=0.05), 3)
    2.128
    """
    _check(alpha, power, sd)
    if n < 2:
        return np.nan
    return noncentrality(_freedom(n, paired), alpha / comparisons, power) * sd / sqrt(n)


def pairs_needed(
    difference: float,
    sd: float,
    *,
    alpha: float,
    comparisons: int = 1,
    power: float = POWER,
    paired: bool = True,
) -> int:
    """The smallest number of pairs that detects a true difference with the given power.

    At least 2 and at most `MOST_PAIRS`, which stands for "this many or more". Arguments and errors are those
    of `detection_power`.

    >>> pairs_needed(0.002, sd=0.0019, alpha=0.05)
    10
    """
    _check(alpha, power, sd)
    if sd == 0:
        return 2
    return _smallest(
        lambda n: detection_power(difference, n, sd, alpha=alpha, comparisons=comparisons, paired=paired),
        power,
    )


def equivalence_power(margin: float, n: int, sd: float, *, alpha: float, paired: bool = True) -> float:
    """Probability that n pairs show equivalence within ±margin when there is no difference at all.

    The two one-sided tests both reject where |Z| + t R ≤ k, with Z standard normal, k = margin √n / sd,
    t the one-sided quantile at alpha and R² = χ²(f) / f: the probability is 2 ∫₀ᵏ φ(z) F(f ((k - z) / t)²) dz
    with F the distribution function of χ²(f) (Phillips, 1990, writes the same as a bivariate noncentral t).

    Arguments and errors are those of `detection_power`.
    """
    check_alpha(alpha)
    freedom = _freedom(n, paired)
    reach = margin * sqrt(n) / sd
    t = -stdtrit(freedom, alpha)
    z = np.linspace(0, min(reach, 9), 4001)
    inside = np.exp(-(z**2) / 2) * chdtr(freedom, freedom * ((reach - z) / t) ** 2)
    return float(sqrt(2 / np.pi) * np.trapezoid(inside, z))


def equivalence_pairs_needed(
    margin: float, sd: float, *, alpha: float, power: float = POWER, paired: bool = True
) -> int:
    """The smallest number of pairs that shows equivalence within ±margin with the given power, if there is no
    difference.

    At least 2 and at most `MOST_PAIRS`, as `pairs_needed`.
    """
    _check(alpha, power, sd)
    if sd == 0:
        return 2
    return _smallest(lambda n: equivalence_power(margin, n, sd, alpha=alpha, paired=paired), power)


@lru_cache(maxsize=1024)
def noncentrality(freedom: float, level: float, power: float) -> float:
    """The true difference, in standard errors, that a two-sided t-test detects with the given power."""
    assert level < power < 1, f"power {power} at level {level}"
    high = 1.0
    while _detection_power(high, freedom, level) < power:
        high *= 2
    return brentq(lambda d: _detection_power(d, freedom, level) - power, 0, high)  # pyright: ignore[reportReturnType]


def _detection_power(noncentrality: float, freedom: float, level: float) -> float:
    t = -stdtrit(freedom, level / 2)
    # nctdtr gives NaN for tails that are too small for it: the missing part of a rejection is then nil
    below, far_side = np.nan_to_num(nctdtr(freedom, noncentrality, [t, -t]))
    return float(1 - below + far_side)


def _smallest(power_of: Callable[[int], float], power: float) -> int:
    """The smallest n from 2 to `MOST_PAIRS` whose power suffices; power grows with n."""
    high = 2
    while high < MOST_PAIRS and power_of(high) < power:
        high = min(2 * high, MOST_PAIRS)
    low = high // 2
    while high - low > 1 and high > 2:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _freedom(n: int, paired: bool) -> int:
    assert n >= 2, f"{n} pairs have no spread"
    return (n - 1) * (1 if paired else 2)


def _check(alpha: float, power: float, sd: float) -> None:
    check_alpha(alpha)
    assert 0 <= sd < np.inf, f"sd = {sd}"
    if not alpha < power < 1:
        raise RequestError(f"power = {power}: expected a number between alpha ({alpha}) and 1, such as 0.8")
