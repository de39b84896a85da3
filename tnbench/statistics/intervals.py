"""Means and differences with Student's t: intervals, tests of no difference, tests of equivalence.

`Estimate` is the common core: a mean difference, its standard error and its degrees of freedom, of one
comparison or of an array of them. `compare` and the simulations that check it both go through it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from tnbench.errors import RequestError

ROUNDING = 4 * np.finfo(np.float64).eps
"""Differences whose range is below this, relative to the largest value, differ by rounding alone: 0.6 - 0.5
and 0.7 - 0.6 are the same difference."""


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and its interval, in the unit of the values.

    `low` and `high` are NaN without an interval, as with n = 1; all three are NaN when n = 0.
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
        """Whether there is an interval: two values at least (of a clustered mean, two clusters)."""
        return not math.isnan(self.low)

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the interval, ends included; False without an interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference, its t interval, and the two-sided p of the t-test that belongs to it.

    `n` counts pairs; without pairing it is the number of values on the smaller side. `p` is 1 when the two
    sides are identical. It is NaN with n < 2, and when all differences are equal and not 0 (up to rounding):
    there is no noise to test against, although there may well be some. Metrics that come in steps, such as
    accuracies over few items, do so.
    """

    p: float


@dataclass(frozen=True)
class Estimate:
    """Mean differences, each of shape (...), with what Student's t needs to know about them.

    `error` is the standard error: 0 where no noise was seen, NaN where none could be (n < 2).
    """

    mean: NDArray
    error: NDArray
    freedom: ArrayLike
    """Degrees of freedom."""

    def bounds(self, alpha: float) -> tuple[NDArray, NDArray]:
        """Ends of the interval of coverage 1 - alpha: mean ± t(1 - alpha/2) · error."""
        half = -stdtrit(self.freedom, alpha / 2) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> NDArray:
        """Two-sided p of no difference; where no noise was seen, 1 for a mean of 0 and else NaN."""
        return self._where_noisy(2 * stdtr(self.freedom, -np.abs(self._in_errors(0))), identical=1)

    def equivalence_p(self, margin: float) -> NDArray:
        """The larger p of two one-sided t-tests, of a difference ≤ -margin and of one ≥ margin (TOST;
        Schuirmann, 1987); where no noise was seen, 0 for a mean of 0 and else NaN."""
        return self._where_noisy(stdtr(self.freedom, self._in_errors(margin)), identical=0)

    def _in_errors(self, margin: float) -> NDArray:
        """How far |mean| lies beyond the margin, in standard errors."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (np.abs(self.mean) - margin) / self.error

    def _where_noisy(self, p: NDArray, identical: float) -> NDArray:
        return np.where(self.error == 0, np.where(self.mean == 0, identical, np.nan), p)

    def difference(self, n: int, alpha: float) -> Difference:
        """A single estimate as it is reported."""
        low, high = self.bounds(alpha)
        return Difference(float(self.mean), float(low), float(high), n, float(self.p))


def paired_estimate(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The mean of a - b over the last axis: error s / √n, with n - 1 degrees of freedom (Student, 1908).

    Args:
        a, b: finite numbers of shapes (..., n) that broadcast over the leading axes; n may be 0 or 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = a.shape[-1]
    assert n == b.shape[-1], f"pairs need as many values on both sides, got {n} and {b.shape[-1]}"
    differences = a - b
    if n < 2:
        unknown = np.full(differences.shape[:-1], np.nan)
        return Estimate(differences[..., 0] if n else unknown, unknown, 0)
    rounding = ROUNDING * np.maximum(np.abs(a).max(axis=-1), np.abs(b).max(axis=-1))
    error = np.where(np.ptp(differences, axis=-1) <= rounding, 0.0, _standard_error(differences))
    mean = differences.mean(axis=-1)
    return Estimate(np.where((error == 0) & (np.abs(mean) <= rounding), 0.0, mean), error, n - 1)


def welch_estimate(a: ArrayLike, b: ArrayLike) -> Estimate:
    """mean(a) - mean(b) over the last axis, unpaired, with unequal variances (Welch, 1947).

    The squared error is s_a²/n_a + s_b²/n_b; the degrees of freedom are Satterthwaite's.

    Args:
        a, b: finite numbers of shapes (..., n_a) and (..., n_b); n_a and n_b may be 0 or 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sizes = a.shape[-1], b.shape[-1]
    mean = a.mean(axis=-1) - b.mean(axis=-1) if min(sizes) else np.full(a.shape[:-1], np.nan)
    if min(sizes) < 2:
        return Estimate(mean, np.full(mean.shape, np.nan), 0)
    squares = [side.var(axis=-1, ddof=1) / side.shape[-1] for side in (a, b)]
    error = np.sqrt(squares[0] + squares[1])
    rounding = ROUNDING * np.maximum(np.abs(a).max(axis=-1), np.abs(b).max(axis=-1))
    error = np.where(error <= rounding, 0.0, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [square / (squares[0] + squares[1]) for square in squares]
        freedom = 1 / sum(share**2 / (n - 1) for share, n in zip(shares, sizes, strict=True))
        freedom = np.where(error > 0, freedom, 1.0)
    return Estimate(np.where((error == 0) & (np.abs(mean) <= rounding), 0.0, mean), error, freedom)


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
    assert array.shape[-1] >= 2, "an interval needs two values"
    estimate = Estimate(array.mean(axis=-1), _standard_error(array), array.shape[-1] - 1)
    return estimate.mean, *estimate.bounds(alpha)


def mean_interval(values: ArrayLike, alpha: float) -> Interval:
    """The mean of n values, shape (n,), with its t interval of coverage 1 - alpha.

    >>> interval = mean_interval([1.0, 2.0, 3.0], alpha=0.05)  # 2 ± 4.3027 / √3
    >>> interval.n, round(interval.low, 4), round(interval.high, 4)
    (3, -0.4841, 4.4841)

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    check_alpha(alpha)
    array = finite(values)
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
    check_alpha(alpha)
    a, b = finite(a), finite(b)
    return paired_estimate(a, b).difference(a.size, alpha)


def finite(values: ArrayLike) -> NDArray:
    """The values of runs as an array of shape (n,)."""
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1, f"expected shape (n,), got {array.shape}"
    assert np.isfinite(array).all(), "runs without a finite value are shown, not averaged"
    return array


def check_alpha(alpha: float) -> None:
    """Refuse an alpha that is no probability.

    Raises:
        RequestError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise RequestError(f"alpha = {alpha}: expected a number between 0 and 1, for example 0.05")


def _standard_error(array: NDArray) -> NDArray:
    return array.std(axis=-1, ddof=1) / np.sqrt(array.shape[-1])
