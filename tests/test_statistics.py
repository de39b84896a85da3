"""Intervals, resampling and item-level comparisons against hand computations and scipy."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tnbench.errors import RequestError
from tnbench.statistics import (
    BCA_COVERAGE,
    bca_bounds,
    bca_coverage,
    bca_interval,
    compare_items,
    comparison,
    intervals,
    items,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_estimate,
    power,
    probability_of_improvement,
    resampling,
    sign_flip_p,
    welch_estimate,
)


def test_mean_interval_by_hand():
    # mean 5, s = sqrt((9 + 1 + 1 + 9) / 3) = 2.5820, t(0.975, 3) = 3.182446, half = t s / 2
    interval = mean_interval([2.0, 4.0, 6.0, 8.0], alpha=0.05)
    assert interval.mean == 5.0
    assert interval.n == 4
    assert interval.half_width == pytest.approx(3.182446 * math.sqrt(20 / 3) / 2, rel=1e-6)
    assert interval.contains(1.0)
    assert not interval.contains(0.5)


def test_smaller_alpha_gives_a_wider_interval():
    # t(0.995, 2) = 9.924843
    assert mean_interval([1.0, 2.0, 3.0], alpha=0.01).half_width == pytest.approx(9.924843 / math.sqrt(3))


def test_one_value_has_no_interval():
    interval = mean_interval([1.5], alpha=0.05)
    assert (interval.mean, interval.n, interval.exists) == (1.5, 1, False)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.contains(1.5)


def test_no_value_has_no_mean():
    interval = mean_interval([], alpha=0.05)
    assert interval.n == 0
    assert math.isnan(interval.mean)


def test_paired_difference_by_hand():
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.4641, 2 degrees of freedom, p = 0.0741799
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], alpha=0.05)
    assert difference.mean == 2.0
    assert difference.n == 3
    assert difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert difference.p == pytest.approx(0.0741799, rel=1e-5)


def test_paired_difference_agrees_with_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 6))
    ours, theirs = paired_difference(a, b, alpha=0.1), stats.ttest_rel(a, b)
    bounds = theirs.confidence_interval(0.9)
    assert (ours.low, ours.high, ours.p) == pytest.approx((bounds.low, bounds.high, theirs[1]))


def test_pairing_cancels_what_the_seeds_share():
    shared = np.array([0.0, 10.0, 20.0, 30.0])
    noise = np.array([0.01, -0.01, 0.02, 0.0])
    paired = paired_difference(shared + 1 + noise, shared, alpha=0.05)
    assert paired.low > 0.95
    assert mean_interval(shared, alpha=0.05).half_width > 10


def test_p_and_interval_tell_the_same():
    generator = np.random.default_rng(1)
    for a in generator.normal(0.8, 1.0, size=(200, 5)):
        difference = paired_difference(a, np.zeros(5), alpha=0.05)
        assert (difference.p > 0.05) == difference.contains(0.0)


def test_identical_values_have_p_1():
    difference = paired_difference([1.0, 2.0], [1.0, 2.0], alpha=0.05)
    assert (difference.mean, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)
    rounded = paired_difference([0.1 + 0.2, 1.0], [0.3, 1.0], alpha=0.05)  # 0.1 + 0.2 is not quite 0.3
    assert (rounded.mean, rounded.p) == (0.0, 1.0)


def test_equal_differences_leave_nothing_to_test_against():
    assert math.isnan(paired_difference([1.0], [2.0], alpha=0.05).p)
    exact = paired_difference([1.5, 2.5], [1.0, 2.0], alpha=0.05)
    assert exact.mean == 0.5
    assert math.isnan(exact.p)
    steps = np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.6, 0.7])
    assert np.ptp(steps[0] - steps[1]) > 0, "the differences are equal but for their rounding"
    assert math.isnan(paired_difference(*steps, alpha=0.05).p)


def test_small_noise_on_large_values_is_noise():
    a = 1.8 + np.array([1e-9, -2e-9, 3e-9])
    assert paired_difference(a, np.full(3, 1.8), alpha=0.05).p == pytest.approx(
        stats.ttest_1samp(a - 1.8, 0)[1]
    )


def test_estimates_are_vectorised():
    a, b = np.random.default_rng(2).normal(size=(2, 3, 4, 6))
    for estimate, one_by_one in (
        (paired_estimate(a, b), lambda i: paired_estimate(a[i], b[i])),
        (paired_estimate(a, b[:, :1]), lambda i: paired_estimate(a[i], b[i[0], 0])),
        (welch_estimate(a, b[..., :5]), lambda i: welch_estimate(a[i], b[i][:5])),
    ):
        low, high = estimate.bounds(0.05)
        for i in np.ndindex(3, 4):
            single = one_by_one(i)
            assert (low[i], high[i]) == pytest.approx(single.bounds(0.05))
            assert (estimate.p[i], estimate.equivalence_p(0.5)[i]) == pytest.approx(
                (float(single.p), float(single.equivalence_p(0.5)))
            )


def test_welch_agrees_with_scipy():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=6), generator.normal(0.5, 3, size=4)
    ours, theirs = welch_estimate(a, b).difference(4, 0.1), stats.ttest_ind(a, b, equal_var=False)
    bounds = theirs.confidence_interval(0.9)
    assert (ours.low, ours.high, ours.p) == pytest.approx((bounds.low, bounds.high, theirs[1]))


def test_welch_without_spread():
    assert welch_estimate([1.0, 1.0], [1.0, 1.0, 1.0]).p == 1
    assert math.isnan(welch_estimate([1.0, 1.0], [2.0, 2.0, 2.0]).p)
    assert math.isnan(welch_estimate([1.0], [2.0, 2.5]).p)
    assert welch_estimate([1.0], [2.0, 2.5]).mean == -1.25
    assert math.isnan(welch_estimate([], [2.0, 2.5]).mean)


def test_equivalence_agrees_with_two_tests_of_scipy():
    generator = np.random.default_rng(4)
    for shift in (-0.9, -0.2, 0.0, 0.3, 1.2):
        a, b = generator.normal(size=(2, 7)) * 0.3
        above: Any = stats.ttest_1samp(a - b + shift, -0.8, alternative="greater")[1]
        below: Any = stats.ttest_1samp(a - b + shift, 0.8, alternative="less")[1]
        assert paired_estimate(a + shift, b).equivalence_p(0.8) == pytest.approx(max(above, below))


@pytest.mark.parametrize("n", [6, 9, 12])
def test_sign_flip_agrees_with_scipy(n):
    generator = np.random.default_rng(n)
    differences = generator.normal(0.5, 1, size=n).round(1)  # with ties
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=2**n, vectorized=False
    )
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue)


def test_sign_flip_by_hand():
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 2 / 2**6
    assert sign_flip_p(np.zeros(6)) == 1
    assert math.isnan(sign_flip_p(np.ones(5)))
    assert sign_flip_p(np.ones(20)) == 2 / 2**20
    assert math.isnan(sign_flip_p(np.ones(21)))


def test_bca_by_hand():
    """The definition of Efron (1987), for a mean, with scipy's own resamples."""
    values = np.random.default_rng(5).exponential(size=12)
    n = values.size
    draws = np.random.default_rng(0).integers(0, n, (resampling.BCA_RESAMPLES, n))
    means = np.sort(values[draws].mean(axis=1))
    bias = stats.norm.ppf(
        (np.count_nonzero(means < values.mean()) + (means == values.mean()).sum() / 2) / len(means)
    )
    left_out = (values.sum() - values) / (n - 1)
    deviations = left_out.mean() - left_out
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    interval = bca_interval(values, alpha=0.05)
    assert interval is not None
    assert (interval.mean, interval.n) == (pytest.approx(values.mean()), 12)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, levels)), abs=2e-3)


def test_bca_is_the_same_for_many_as_for_one():
    values = np.random.default_rng(6).normal(size=(5, 8))
    low, high = bca_bounds(values, alpha=0.1)
    one = bca_interval(values[3], alpha=0.1)
    assert one is not None
    assert (one.low, one.high) == pytest.approx((low[3], high[3]), abs=2e-3), "sums are rounded otherwise"


def test_bca_of_two_samples():
    generator = np.random.default_rng(7)
    a, b = generator.normal(1, 1, size=30), generator.normal(0, 2, size=40)
    interval = bca_interval(a, b, alpha=0.05)
    assert interval is not None
    assert interval.n == 30
    assert interval.mean == pytest.approx(a.mean() - b.mean())
    low, high = welch_estimate(a, b).bounds(0.05)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1)


def test_no_bca_interval_of_few_or_equal_values():
    assert bca_interval(np.arange(7.0), alpha=0.05) is None
    assert bca_interval(np.ones(8), alpha=0.05) is None


def test_bca_coverage_is_that_of_the_largest_number_not_above():
    assert math.isnan(bca_coverage(7))
    assert bca_coverage(8) == BCA_COVERAGE[8]
    assert bca_coverage(11) == BCA_COVERAGE[10]
    assert bca_coverage(10_000) == BCA_COVERAGE[max(BCA_COVERAGE)]


def test_probability_of_improvement():
    assert probability_of_improvement([1, 2, 3], [2, 2, 2]) == 0.5
    assert probability_of_improvement([1, 1, 3, 1], [2, 2, 2, 2]) == 0.75
    assert probability_of_improvement([1, 1, 3, 1], [2, 2, 2, 2], lower_is_better=False) == 0.25
    a, b = np.random.default_rng(8).integers(0, 5, size=(2, 9)).astype(float)
    theirs = stats.mannwhitneyu(a, b[:6]).statistic / (9 * 6)
    assert probability_of_improvement(a, b[:6], lower_is_better=False, paired=False) == pytest.approx(theirs)
    assert math.isnan(probability_of_improvement([], []))


def test_items_without_clusters_are_a_paired_t_test():
    a, b = np.random.default_rng(9).normal(size=(2, 40))
    assert compare_items(a, b, alpha=0.05) == paired_difference(a, b, alpha=0.05)
    each_alone = compare_items(a, b, alpha=0.05, clusters=np.arange(40))
    plain = paired_difference(a, b, alpha=0.05)
    assert (each_alone.low, each_alone.p, each_alone.n) == pytest.approx((plain.low, plain.p, 40))


def test_clustered_items_by_hand():
    # differences 1, 3 | 2 | 0, -1: mean 1; sums of their deviations 2, 1, -3
    # squared error 3/2 · (4 + 1 + 9) / 25 = 0.84, t(0.975, 2) = 4.302653
    difference = compare_items([1, 3, 2, 0, -1], np.zeros(5), alpha=0.05, clusters=["a", "a", "b", "c", "c"])
    assert (difference.mean, difference.n) == (1, 5)
    assert difference.half_width == pytest.approx(4.302653 * math.sqrt(0.84), rel=1e-6)
    assert difference.p == pytest.approx(2 * stats.t.sf(1 / math.sqrt(0.84), 2))


def test_copies_of_items_add_nothing_when_clustered():
    a, b = np.random.default_rng(10).normal(size=(2, 12))
    once = compare_items(a, b, alpha=0.05)
    copied = compare_items(np.repeat(a, 3), np.repeat(b, 3), alpha=0.05, clusters=np.repeat(np.arange(12), 3))
    assert (copied.low, copied.high, copied.p) == pytest.approx((once.low, once.high, once.p))


def test_one_cluster_has_no_interval():
    difference = compare_items([1, 2, 3], [0, 0, 1], alpha=0.05, clusters=[7, 7, 7])
    assert (difference.mean, difference.exists) == (pytest.approx(5 / 3), False)
    assert math.isnan(difference.p)


def test_identical_items_have_p_1_in_clusters_too():
    assert compare_items([1, 0, 1], [1, 0, 1], alpha=0.05, clusters=[0, 0, 1]).p == 1


def test_mcnemar_is_the_exact_binomial_test_of_discordant_items():
    a, b = np.random.default_rng(11).integers(0, 2, size=(2, 60))
    wins, losses = ((a > b).sum(), (a < b).sum())
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(int(wins), int(wins + losses)).pvalue)
    assert mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]) == pytest.approx(2 / 2**6)
    assert mcnemar([True, False], [True, False]) == 1
    assert mcnemar([1, 0], [0, 1]) == 1


def test_items_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match="3 and 2"):
        compare_items([1, 2, 3], [1, 2], alpha=0.05)
    with pytest.raises(RequestError, match="2 for 3 items"):
        compare_items([1, 2, 3], [1, 2, 3], alpha=0.05, clusters=[1, 2])
    with pytest.raises(RequestError, match="0 and 1"):
        mcnemar([0.5, 1], [1, 1])
    with pytest.raises(RequestError, match="2 and 1"):
        mcnemar([0, 1], [1])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0, float("nan")])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(RequestError, match="between 0 and 1"):
        mean_interval([1.0], alpha)


def test_unpaired_and_nonfinite_values_are_refused():
    with pytest.raises(AssertionError, match="as many values"):
        paired_difference([1.0, 2.0], [1.0], alpha=0.05)
    with pytest.raises(AssertionError, match="finite"):
        mean_interval([1.0, math.nan], alpha=0.05)


@pytest.mark.parametrize("module", [comparison, intervals, items, power, resampling])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
