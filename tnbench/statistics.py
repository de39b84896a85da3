"""Statistics of ablations: what may be said about a few runs, and with which interval.

*Unit.* A value is one number per run, such as the bits per byte of a trained model on held-out text. Runs of
one variant differ only in their seeds, so an interval speaks about training again with other seeds; it does
not speak about other corpora, sizes or learning rates.

*Interval of a mean.* For n values with mean m and standard deviation s (n - 1 in its denominator), the
interval is m ± t(1 - alpha/2, n - 1) · s / √n, Student's t (Student, 1908). It covers the true mean with
probability 1 - alpha when the values are normal, at every n from 2 on. One value has no interval.

*Difference.* Two variants are compared seed by seed: the same seed number gives both the same order of data,
and what that order does to both cancels in the difference. The interval and the test are those of the mean of
the n differences (paired t). A seed that only one of the two has finished is no pair and is left out.

Intervals are not widened for the number of variants compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from tnbench.errors import RequestError


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and its interval, in the unit of the values.

    `low` and `high` are NaN when n = 1; all three are NaN when n = 0.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the interval's width, NaN without an interval."""
        return (self.high - self.low) / 2

    @property
    def exists(self) -> bool:
        """Whether there is an interval: two values at least."""
        return self.n >= 2

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the interval, ends included; False without an interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of `n` paired differences, its interval, and the two-sided p of the paired t-test.

    `p` is NaN with fewer than two pairs, and when all differences are equal: no noise to test against.
    """

    p: float


def t_bounds(values: ArrayLike, alpha: float) -> tuple[NDArray, NDArray, NDArray]:
    """Mean and ends of the t interval over the last axis.

    Args:
        values: finite numbers, shape (..., n) with n ≥ 2.
        alpha: one minus the coverage, such as 0.05.

    Returns:
        mean, low and high, each of shape (...).

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    check_alpha(alpha)
    array = np.asarray(values, dtype=np.float64)
    n = array.shape[-1]
    assert n >= 2, "an interval needs two values"
    mean = array.mean(axis=-1)
    half = stdtrit(n - 1, 1 - alpha / 2) * _standard_error(array)
    return mean, mean - half, mean + half


def mean_interval(values: ArrayLike, alpha: float) -> Interval:
    """The mean of n values, shape (n,), with its t interval of coverage 1 - alpha.

    >>> interval = mean_interval([1.0, 2.0, 3.0], alpha=0.05)  # 2 ± 4.3027 / √3
    >>> interval.n, round(interval.low, 4), round(interval.high, 4)
    (3, -0.4841, 4.4841)

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    check_alpha(alpha)
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1, f"expected shape (n,), got {array.shape}"
    assert np.isfinite(array).all(), "runs without a finite value are shown, not averaged"
    if array.size < 2:
        return Interval(float(array[0]) if array.size else np.nan, np.nan, np.nan, array.size)
    mean, low, high = t_bounds(array, alpha)
    return Interval(float(mean), float(low), float(high), array.size)


def paired_difference(a: ArrayLike, b: ArrayLike, alpha: float) -> Difference:
    """The mean of a - b, with a[i] and b[i] from the same seed: interval and p of the paired t-test.

    Args:
        a, b: finite numbers, both of shape (n,), in the same order of seeds.
        alpha: one minus the coverage, such as 0.05.

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, f"pairs need as many values on both sides, got {a.shape} and {b.shape}"
    interval = mean_interval(a - b, alpha)
    error = float(_standard_error(a - b)) if interval.exists else 0.0
    p = 2 * float(stdtr(interval.n - 1, -abs(interval.mean) / error)) if error > 0 else np.nan
    return Difference(interval.mean, interval.low, interval.high, interval.n, p)


def _standard_error(array: NDArray) -> NDArray:
    return array.std(axis=-1, ddof=1) / np.sqrt(array.shape[-1])


def check_alpha(alpha: float) -> None:
    """Refuse an alpha that is no probability.

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise RequestError(f"alpha = {alpha}: expected a number between 0 and 1, for example 0.05")
