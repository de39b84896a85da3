"""Shown beside the t-test, for information: sign flips, the BCa bootstrap, the probability of improvement.

None of these decides a verdict. Training allows few seeds: the smallest possible p of a sign-flip test is
2^(1-n), above 0.05 up to n = 5, and bootstrap intervals of few values are too narrow (`BCA_COVERAGE`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tnbench.statistics.intervals import Interval, finite

SIGN_FLIP_FROM, SIGN_FLIP_TO = 6, 20
"""Numbers of pairs with an exact sign-flip test: below, no outcome is significant at 5 %; above, the 2^n
assignments of signs are too many to go through, and the t-test hardly differs."""

BCA_FROM = 8
"""Smallest number of values with a BCa interval."""

BCA_RESAMPLES = 9_999
"""Drawn with a fixed seed, so that equal values give equal ends."""

BCA_COVERAGE: Mapping[int, float] = {8: 0.885, 10: 0.903, 12: 0.91, 16: 0.922, 20: 0.926, 30: 0.937}
"""Simulated coverage of the nominal 95 % BCa interval of a mean, by n, for normal noise (`simulation`;
standard error 0.002)."""


def sign_flip_p(differences: ArrayLike) -> float:
    """Exact two-sided p of no difference, by flipping the signs of paired differences (Fisher, 1935).

    The share of all 2^n assignments of signs whose sum is at least as far from 0 as the observed one. It
    presumes that a difference is distributed symmetrically, not that it is normal. NaN unless
    `SIGN_FLIP_FROM` ≤ n ≤ `SIGN_FLIP_TO`.

    Args:
        differences: finite numbers, shape (n,).
    """
    array = finite(differences)
    if not SIGN_FLIP_FROM <= array.size <= SIGN_FLIP_TO:
        return np.nan
    sums = array[:1]  # the first sign stays: flipping all of them changes no |sum|
    for value in array[1:]:
        sums = np.concatenate((sums + value, sums - value))
    tie = 1e-12 * np.abs(array).sum()
    return float((np.abs(sums) >= abs(array.sum()) - tie).mean())


def bca_bounds(*samples: ArrayLike, alpha: float) -> tuple[NDArray, NDArray]:
    """Ends of the BCa bootstrap interval (Efron, 1987) of a mean or of mean(a) - mean(b), over the last axis.

    Args:
        samples: one array of shape (..., n), or two that are resampled independently.
        alpha: one minus the nominal coverage.

    Returns:
        low and high, each of shape (...).
    """
    from scipy.stats import bootstrap  # takes a second to import

    def statistic(a: NDArray, b: NDArray | None = None, axis: int = -1) -> NDArray:
        return a.mean(axis=axis) - (0 if b is None else b.mean(axis=axis))

    interval = bootstrap(
        [np.asarray(sample, dtype=np.float64) for sample in samples],
        statistic,
        vectorized=True,
        axis=-1,
        n_resamples=BCA_RESAMPLES,
        confidence_level=1 - alpha,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def bca_interval(*samples: ArrayLike, alpha: float) -> Interval | None:
    """The BCa interval of a mean of n values, or of a difference of two means.

    None with fewer than `BCA_FROM` values in a sample, and where nothing varies.

    Args:
        samples: one array of shape (n,), or two that are resampled independently.
        alpha: one minus the nominal coverage; for the real one see `bca_coverage`.
    """
    arrays = [finite(sample) for sample in samples]
    if min(array.size for array in arrays) < BCA_FROM or all(np.ptp(array) == 0 for array in arrays):
        return None
    low, high = bca_bounds(*arrays, alpha=alpha)
    mean = arrays[0].mean() - (arrays[1].mean() if len(arrays) == 2 else 0)
    return Interval(float(mean), float(low), float(high), min(array.size for array in arrays))


def bca_coverage(n: int) -> float:
    """Simulated coverage of the nominal 95 % BCa interval at n values, or at the largest tabulated number
    below n; NaN where there is no interval."""
    below = [size for size in BCA_COVERAGE if size <= n]
    return BCA_COVERAGE[max(below)] if below else np.nan


def probability_of_improvement(
    variant: ArrayLike, base: ArrayLike, *, lower_is_better: bool = True, paired: bool = True
) -> float:
    """The share of pairs in which the variant is better, ties counting half (Bouthillier et al., 2021).

    Without pairing, of all combinations of a value of each: the Mann-Whitney statistic. NaN without values.

    Args:
        variant, base: finite numbers, shapes (n,) and (m,); n = m when paired.

    >>> probability_of_improvement([1.0, 2.0, 3.0, 4.0], [1.5, 2.5, 3.0, 3.0])
    0.625
    """
    a, b = finite(variant), finite(base)
    if not a.size or not b.size:
        return np.nan
    differences = a - b if paired else a[:, None] - b
    wins = differences < 0 if lower_is_better else differences > 0
    return float((wins + (differences == 0) / 2).mean())
