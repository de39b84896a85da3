"""Intervals against hand computations, scipy, and their promised coverage."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from tnbench import statistics
from tnbench.errors import RequestError
from tnbench.statistics import mean_interval, paired_difference, t_bounds


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
    assert (ours.low, ours.high, ours.p) == pytest.approx((bounds.low, bounds.high, theirs.pvalue))


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


def test_equal_differences_leave_nothing_to_test_against():
    difference = paired_difference([1.0, 2.0], [1.0, 2.0], alpha=0.05)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert math.isnan(difference.p)
    assert math.isnan(paired_difference([1.0], [2.0], alpha=0.05).p)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_coverage_is_as_promised(n):
    true_mean = 1.8
    values = np.random.default_rng(n).normal(true_mean, 0.02, size=(20_000, n))
    _, low, high = t_bounds(values, alpha=0.05)
    covered = ((low <= true_mean) & (true_mean <= high)).mean()
    assert 0.945 <= covered <= 0.955


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0, float("nan")])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(RequestError, match="between 0 and 1"):
        mean_interval([1.0], alpha)


def test_unpaired_and_nonfinite_values_are_refused():
    with pytest.raises(AssertionError, match="as many values"):
        paired_difference([1.0, 2.0], [1.0], alpha=0.05)
    with pytest.raises(AssertionError, match="finite"):
        mean_interval([1.0, math.nan], alpha=0.05)


def test_examples_in_docstrings():
    assert doctest.testmod(statistics).failed == 0
