"""Variants against their base: one test each, Holm over the table, equivalence, and a verdict by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tnbench.errors import RequestError
from tnbench.statistics.intervals import (
    Difference,
    Estimate,
    Interval,
    check_alpha,
    finite,
    paired_estimate,
    welch_estimate,
)
from tnbench.statistics.power import POWER, equivalence_pairs_needed, noncentrality, pairs_needed
from tnbench.statistics.resampling import bca_interval, probability_of_improvement, sign_flip_p


class Verdict(StrEnum):
    """What may be said about a variant against its base."""

    better = "better"
    worse = "worse"
    equivalent = "equivalent"
    undecided = "undecided"


@dataclass(frozen=True)
class Comparison:
    """One variant against the base. A difference is variant minus base, in the unit of the values."""

    difference: Difference
    """With its t interval of coverage 1 - alpha, not widened for the size of the table, and its own p."""
    p_holm: float
    """p adjusted for the table (Holm, 1979); NaN where there is no test."""
    comparisons: int
    """Size of the table: all its comparisons, those without a test too."""
    alpha: float
    margin: float | None
    """Differences within ±margin do not matter; None: equivalence is not tested."""
    equivalence_p: float
    """The larger p of two one-sided tests; NaN without a margin, with n < 2, or where all differences are
    equal and not 0."""
    verdict: Verdict
    seeds_needed: int | None
    """Pairs in all for a decision with 80 % power, where undecided and a spread is known (see `compare`);
    `power.MOST_PAIRS` stands for this many or more."""
    detectable: float
    """The true difference that as many pairs with this spread detect with 80 % power, at the level
    alpha / comparisons; NaN with n < 2 or without spread."""
    sign_flip_p: float
    """Exact, not adjusted; NaN unless paired with 6 to 20 pairs."""
    bca: Interval | None
    """BCa bootstrap interval of nominal coverage 1 - alpha, from n = 8."""
    improvement: float
    """Probability that the variant is better in a pair; NaN with n = 0."""
    correlation: float
    """Pearson's, of the pairs; NaN without pairing, with n < 3 or where a side does not vary."""
    pairing_gain: float
    """How many times the seeds an unpaired comparison would need, (var a + var b) / var(a - b): 1 says that
    pairing bought nothing, less that it cost. NaN as the correlation, or where all differences are equal."""
    paired: bool

    @property
    def within_margin(self) -> bool:
        """Whether a difference is significant and yet shown to lie within ±margin: worse, but not by much."""
        decided = self.verdict in (Verdict.better, Verdict.worse)
        return decided and self.equivalence_p <= self.alpha


def compare(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    alpha: float,
    margin: float | None = None,
    lower_is_better: bool = True,
    paired: bool = True,
) -> list[Comparison]:
    """Compare every variant of a table with its base.

    The rule, at every n from 2 on: *better* or *worse*, by sign, where p_holm ≤ alpha; this decides first.
    Else *equivalent* where a margin is given and both one-sided tests reject at alpha. Else *undecided*.
    Identical values in every pair have p = 1 and are equivalent within any margin. Differences that are all
    equal and not 0 leave no noise to test against and are undecided: values of a metric that comes in steps,
    such as an accuracy, agree by chance too often to call it certainty.

    `seeds_needed` takes the observed spread for the true one. With a margin it is the number at which a true
    difference of the margin is detected and equivalence is shown if there is no difference, each with 80 %
    power; without a margin, at which the observed difference is detected if it is the true one. It is always
    more than there are.

    Args:
        pairs: (values of the variant, values of its base) per comparison, each of shape (n,), finite, in the
            same order of seeds. They may be empty: such a comparison counts in the table with p = 1.
        alpha: level of the table, and one minus the coverage of each interval.
        margin: largest difference that does not matter, in the unit of the values.
        lower_is_better: whether a negative difference is an improvement.
        paired: False compares with Welch's test, and the two sides may differ in size.

    Raises:
        RequestError: alpha is not between 0 and 1, or the margin is not a positive number.
    """
    check_alpha(alpha)
    if margin is not None and not 0 < margin < np.inf:
        raise RequestError(
            f"margin = {margin}: expected a positive number in the unit of the metric, or none"
        )
    sides = [(finite(variant), finite(base)) for variant, base in pairs]
    estimates = [paired_estimate(*side) if paired else welch_estimate(*side) for side in sides]
    p_holm = holm(np.array([float(estimate.p) for estimate in estimates]))
    compared = []
    for (variant, base), estimate, adjusted in zip(sides, estimates, p_holm, strict=True):
        n = min(variant.size, base.size)
        equivalence_p = np.nan if margin is None else float(estimate.equivalence_p(margin))
        verdict = Verdict(str(verdicts(estimate.mean, adjusted, equivalence_p, alpha, lower_is_better)))
        correlation, gain = _pairing(variant, base, estimate) if paired else (np.nan, np.nan)
        compared.append(
            Comparison(
                difference=estimate.difference(n, alpha),
                p_holm=float(adjusted),
                comparisons=len(pairs),
                alpha=alpha,
                margin=margin,
                equivalence_p=equivalence_p,
                verdict=verdict,
                seeds_needed=_seeds_needed(estimate, n, alpha, margin, len(pairs), paired)
                if verdict == Verdict.undecided
                else None,
                detectable=_detectable(estimate, alpha / len(pairs)),
                sign_flip_p=sign_flip_p(variant - base) if paired else np.nan,
                bca=_bca(variant, base, alpha, paired) if estimate.error > 0 else None,
                improvement=probability_of_improvement(
                    variant, base, lower_is_better=lower_is_better, paired=paired
                ),
                correlation=correlation,
                pairing_gain=gain,
                paired=paired,
            )
        )
    return compared


def holm(p: ArrayLike) -> NDArray:
    """p-values adjusted for their number by Holm's step-down procedure (1979), over the last axis.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the one before. A variant is
    significant at alpha if its adjusted p is at most alpha; then any false rejection in the table has a
    probability of at most alpha, whatever the dependence between the variants, which share their base. NaN,
    no test, counts as 1 in the table and stays NaN.

    Args:
        p: shape (..., m).

    Returns:
        adjusted p, shape (..., m).

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p, dtype=np.float64)
    family = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(family, axis=-1)
    stepped = np.take_along_axis(family, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(family)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(stepped, axis=-1), 1), axis=-1)
    return np.where(np.isnan(p), np.nan, adjusted)


def verdicts(
    mean: ArrayLike, p_holm: ArrayLike, equivalence_p: ArrayLike, alpha: float, lower_is_better: bool = True
) -> NDArray:
    """The verdict of each comparison by the rule of `compare`: an array of the words of `Verdict`.

    Args:
        mean, p_holm, equivalence_p: shapes (...) that broadcast.
    """
    improved = np.asarray(mean) < 0 if lower_is_better else np.asarray(mean) > 0
    sign = np.where(improved, Verdict.better.value, Verdict.worse.value)
    otherwise = np.where(
        np.asarray(equivalence_p) <= alpha, Verdict.equivalent.value, Verdict.undecided.value
    )
    return np.where(np.asarray(p_holm) <= alpha, sign, otherwise)


def outliers(values: ArrayLike) -> int:
    """How many values lie more than 3.5 robust standard deviations, 1.4826 · MAD, from the median.

    For information: they are counted and never dropped. 0 with fewer than five values.

    Args:
        values: finite numbers, shape (n,).
    """
    array = finite(values)
    if array.size < 5:
        return 0
    distances = np.abs(array - np.median(array))
    return int((distances > 3.5 * 1.4826 * np.median(distances)).sum())


def _seeds_needed(
    estimate: Estimate, n: int, alpha: float, margin: float | None, comparisons: int, paired: bool
) -> int | None:
    if not estimate.error > 0:
        return None
    sd = float(estimate.error) * np.sqrt(n)
    sought = abs(float(estimate.mean)) if margin is None else margin
    needed = pairs_needed(sought, sd, alpha=alpha, comparisons=comparisons, paired=paired)
    if margin is not None:
        needed = max(needed, equivalence_pairs_needed(margin, sd, alpha=alpha, paired=paired))
    return max(needed, n + 1)


def _detectable(estimate: Estimate, level: float) -> float:
    if not estimate.error > 0:
        return np.nan
    return noncentrality(float(np.asarray(estimate.freedom)), level, POWER) * float(estimate.error)


def _bca(variant: NDArray, base: NDArray, alpha: float, paired: bool) -> Interval | None:
    return bca_interval(*([variant - base] if paired else [variant, base]), alpha=alpha)


def _pairing(a: NDArray, b: NDArray, estimate: Estimate) -> tuple[float, float]:
    """Correlation of the pairs, and how many unpaired seeds one pair is worth."""
    if a.size < 3:
        return np.nan, np.nan
    varies = np.ptp(a) > 0 and np.ptp(b) > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if varies else np.nan
    gain = float((a.var(ddof=1) + b.var(ddof=1)) / (a - b).var(ddof=1)) if estimate.error > 0 else np.nan
    return correlation, gain
