"""Tables of variants: Holm, verdicts, power and the number of pairs that it takes."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats

from tnbench.errors import RequestError
from tnbench.statistics import (
    MOST_PAIRS,
    Verdict,
    compare,
    detectable_difference,
    detection_power,
    equivalence_pairs_needed,
    equivalence_power,
    holm,
    noncentrality,
    outliers,
    pairs_needed,
    verdicts,
)
from tnbench.statistics.power import _detection_power

BASE = np.array([1.80, 1.83, 1.79, 1.82, 1.81])
NOISE = np.array([0.001, -0.002, 0.0, 0.002, -0.001])


def verdict(values, base=BASE, **options) -> Verdict:
    return compare([(values, base)], alpha=0.05, **options)[0].verdict


def test_holm_by_hand():
    # sorted 0.01 · 4, 0.02 · 3, 0.03 · 2 (not below the one before), 0.9
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == pytest.approx([0.03])
    assert holm([]).shape == (0,)


def test_holm_counts_what_could_not_be_tested():
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.03, 0.08])
    assert math.isnan(adjusted[1])


def test_holm_by_its_definition():
    """Adjusted p ≤ alpha exactly where the step-down procedure rejects at alpha."""
    generator = np.random.default_rng(0)
    p = generator.uniform(size=(200, 6)) ** 3
    adjusted = holm(p)
    for row, found in zip(p, adjusted, strict=True):
        rejected = np.zeros(6, dtype=bool)
        for step, index in enumerate(np.argsort(row)):
            if row[index] > 0.05 / (6 - step):
                break
            rejected[index] = True
        assert ((found <= 0.05) == rejected).all()
        assert found == pytest.approx(holm(row))


def test_significant_differences_decide_by_their_sign():
    assert verdict(BASE + 0.02 + NOISE) == Verdict.worse
    assert verdict(BASE - 0.02 + NOISE) == Verdict.better
    assert verdict(BASE - 0.02 + NOISE, lower_is_better=False) == Verdict.worse
    assert verdict(BASE + 0.02 + NOISE, lower_is_better=False) == Verdict.better


def test_verdicts_exist_from_two_pairs_on():
    assert verdict(BASE[:2] + np.array([0.0200, 0.0201]), BASE[:2]) == Verdict.worse
    assert verdict(BASE[:1] + 0.02, BASE[:1]) == Verdict.undecided


def test_equivalence_needs_a_margin():
    assert verdict(BASE + NOISE) == Verdict.undecided
    assert verdict(BASE + NOISE, margin=0.005) == Verdict.equivalent
    assert verdict(BASE + NOISE, margin=0.001) == Verdict.undecided


def test_equivalence_never_overrides_significance():
    within = compare([(BASE + 0.003 + NOISE, BASE)], alpha=0.05, margin=0.02)[0]
    assert (within.verdict, within.within_margin) == (Verdict.worse, True)
    assert within.equivalence_p < 0.05
    beyond = compare([(BASE + 0.03 + NOISE, BASE)], alpha=0.05, margin=0.02)[0]
    assert (beyond.verdict, beyond.within_margin) == (Verdict.worse, False)
    assert not compare([(BASE + NOISE, BASE)], alpha=0.05, margin=0.02)[0].within_margin


def test_a_larger_table_asks_for_more():
    weak = BASE + 0.0025 + NOISE
    alone = compare([(weak, BASE)], alpha=0.05)[0]
    assert alone.verdict == Verdict.worse
    in_table = compare([(weak, BASE)] + [(BASE - NOISE, BASE)] * 3, alpha=0.05)
    assert in_table[0].verdict == Verdict.undecided
    assert in_table[0].p_holm == pytest.approx(4 * alone.p_holm)
    assert in_table[0].difference == alone.difference, "intervals are not widened"
    assert in_table[0].detectable > alone.detectable
    assert {one.comparisons for one in in_table} == {4}


def test_variants_without_values_count_in_the_table():
    weak = BASE + 0.0025 + NOISE
    table = compare([(weak, BASE), ([], []), (BASE[:1], BASE[:1])], alpha=0.05, margin=0.01)
    assert table[0].p_holm == pytest.approx(3 * table[0].difference.p)
    for one in table[1:]:
        assert one.verdict == Verdict.undecided
        assert one.seeds_needed is None
        assert one.bca is None
        numbers = (one.p_holm, one.equivalence_p, one.detectable, one.correlation, one.pairing_gain)
        assert all(math.isnan(number) for number in numbers)
    assert math.isnan(table[1].improvement)
    assert (table[2].improvement, table[2].difference.mean) == (0.5, 0)
    assert compare([], alpha=0.05) == []


def test_identical_runs_are_equivalent():
    one = compare([(BASE, BASE)], alpha=0.05, margin=1e-9)[0]
    assert (one.verdict, one.difference.p, one.p_holm, one.equivalence_p) == (Verdict.equivalent, 1, 1, 0)
    assert (one.correlation, one.improvement) == (pytest.approx(1), 0.5)
    assert math.isnan(one.pairing_gain)
    assert verdict(BASE) == Verdict.undecided, "without a margin nothing is equivalent"
    assert verdict(BASE[:1], BASE[:1], margin=1.0) == Verdict.undecided


def test_equal_differences_are_undecided():
    one = compare([([0.5, 0.6, 0.7], [0.6, 0.7, 0.8])], alpha=0.05, margin=0.5)[0]
    assert (one.verdict, one.seeds_needed, one.bca) == (Verdict.undecided, None, None)
    numbers = (one.difference.p, one.p_holm, one.equivalence_p, one.detectable, one.pairing_gain)
    assert all(math.isnan(number) for number in numbers)


def test_what_pairing_bought():
    generator = np.random.default_rng(1)
    shared = generator.normal(size=1000)
    a, b = shared + generator.normal(size=(2, 1000)) * 0.5  # correlation 1 / 1.25
    one = compare([(a, b)], alpha=0.05)[0]
    assert one.correlation == pytest.approx(0.8, abs=0.03)
    assert one.pairing_gain == pytest.approx(1 / (1 - 0.8), rel=0.15)
    opposed = compare([([1.0, 2.0, 3.0], [3.0, 2.1, 1.0])], alpha=0.05)[0]
    assert opposed.pairing_gain < 1


def test_unpaired_sides_may_differ_in_size():
    one = compare([(BASE + 0.1, BASE[:3])], alpha=0.05, paired=False)[0]
    theirs = stats.ttest_ind(BASE + 0.1, BASE[:3], equal_var=False)
    assert one.difference.p == pytest.approx(theirs[1])
    assert (one.verdict, one.difference.n, one.paired) == (Verdict.worse, 3, False)
    assert math.isnan(one.correlation)
    assert math.isnan(one.sign_flip_p)


def test_sides_of_unequal_length_are_no_pairs():
    with pytest.raises(AssertionError, match="as many values"):
        compare([(BASE, BASE[:3])], alpha=0.05)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_is_a_positive_number(margin):
    with pytest.raises(RequestError, match="positive"):
        compare([(BASE, BASE)], alpha=0.05, margin=margin)


def test_informative_numbers_come_with_enough_pairs():
    a, b = np.random.default_rng(2).normal(size=(2, 8))
    eight, seven, five = (compare([(a[:n], b[:n])], alpha=0.05)[0] for n in (8, 7, 5))
    assert eight.bca is not None
    assert eight.bca.n == 8
    assert seven.bca is None
    assert seven.sign_flip_p > 0
    assert math.isnan(five.sign_flip_p)


def test_seeds_needed_with_a_margin_allow_either_answer():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 4))
    one = compare([(a, b), (a + 1, b)], alpha=0.05, margin=0.5)[0]
    sd = (a - b).std(ddof=1)
    detects = pairs_needed(0.5, sd, alpha=0.05, comparisons=2)
    shows = equivalence_pairs_needed(0.5, sd, alpha=0.05)
    assert one.verdict == Verdict.undecided
    assert one.seeds_needed == max(detects, shows) > 4


def test_seeds_needed_without_a_margin_are_those_of_the_observed_difference():
    a, b = np.random.default_rng(4).normal(size=(2, 4))
    one = compare([(a, b)], alpha=0.05)[0]
    sd = (a - b).std(ddof=1)
    assert one.seeds_needed == pairs_needed((a - b).mean(), sd, alpha=0.05)
    centred = compare([(a - a.mean(), b - b.mean())], alpha=0.05)[0]
    assert centred.seeds_needed == MOST_PAIRS


def test_seeds_needed_are_more_than_there_are():
    """The verdict is undecided although as many pairs would do more often than not."""
    differences = np.array([0.9, 1.1, -0.6, 2.4, 0.3, 1.2])
    one = compare([(differences, np.zeros(6))], alpha=0.05, margin=3.0)[0]
    assert one.verdict == Verdict.equivalent
    undecided = compare([(differences, np.zeros(6))], alpha=0.05, margin=1.7)[0]
    assert undecided.verdict == Verdict.undecided
    sd = differences.std(ddof=1)
    assert pairs_needed(1.7, sd, alpha=0.05) <= 6
    assert undecided.seeds_needed == 7


def test_detectable_is_that_of_the_spread_seen():
    a, b = np.random.default_rng(5).normal(size=(2, 6))
    paired = compare([(a, b)] * 3, alpha=0.05)[0]
    expected = detectable_difference(6, (a - b).std(ddof=1), alpha=0.05, comparisons=3)
    assert paired.detectable == pytest.approx(expected)
    swapped = compare([(a, a[::-1])], alpha=0.05, paired=False)[0]  # equal variances, so 2 (n - 1) degrees
    expected = detectable_difference(6, math.sqrt(2) * a.std(ddof=1), alpha=0.05, paired=False)
    assert swapped.detectable == pytest.approx(expected)


def test_verdicts_of_arrays_are_those_of_compare():
    generator = np.random.default_rng(6)
    tables = generator.normal(0, 0.4, size=(40, 5, 4)) + generator.choice([0, 0.8, -0.8], size=(40, 5, 1))
    base = np.zeros(4)
    seen = set()
    for table in tables:
        compared = compare([(row, base) for row in table], alpha=0.05, margin=0.6)
        expected = verdicts(
            table.mean(axis=-1),
            holm(np.asarray(stats.ttest_1samp(table, 0, axis=-1)[1])),
            [one.equivalence_p for one in compared],
            0.05,
        )
        assert [one.verdict for one in compared] == list(expected)
        seen |= set(expected)
    assert seen == set(Verdict)


def test_outliers():
    assert outliers([1.0, 1.1, 0.9, 1.05, 5.0]) == 1
    assert outliers([1.0, 1.1, 0.9, 1.05, 1.2]) == 0
    assert outliers([1.0, 1.1, 0.9, 5.0]) == 0, "four values say nothing about outliers"
    # median 0, MAD 1: the bound is 5.1891
    assert outliers([-1, 0, 0, 1, -1, 1, 5.1]) == 0
    assert outliers([-1, 0, 0, 1, -1, 1, 5.2]) == 1


SEEDS_NEEDED = """
    0.0007  117  56  60  26
    0.001    58  28  31  14
    0.002    16   8  10   6
    0.003     8   5   6   4
    0.005     4   3   4   3
"""


@pytest.mark.parametrize("row", SEEDS_NEEDED.strip().splitlines())
def test_seeds_needed_for_known_noise(row):
    """Seeds per arm of GPT-2 124M, whose loss varies by 0.0019 or 0.0013 nats (modded-nanogpt): unpaired,
    unpaired, paired with correlation 0.5, paired with correlation 0.8."""
    difference, *expected = (float(cell) for cell in row.split())
    columns = [(0.0019, 0.0, False), (0.0013, 0.0, False), (0.0019, 0.5, True), (0.0019, 0.8, True)]
    found = [
        pairs_needed(difference, sd * math.sqrt(2 * (1 - correlation)), alpha=0.05, paired=paired)
        for sd, correlation, paired in columns
    ]
    assert found == expected


def exact_power(noncentrality: float, freedom: float, level: float) -> float:
    """P(|Z + δ| > t R), R² = χ²(f) / f, integrated over R."""
    t, scale = float(stats.t.isf(level / 2, freedom)), math.sqrt(freedom)

    def density(r):
        rejects = stats.norm.cdf(noncentrality - t * r) + stats.norm.cdf(-noncentrality - t * r)
        return rejects * stats.chi.pdf(r * scale, freedom) * scale

    edge = noncentrality / t
    points = sorted(
        {0, max(0, edge - 8 / t), edge + 8 / t, max(0, 1 - 8 / scale), 1 + 8 / scale, 1 + 40 / scale}
    )
    pieces = pairwise(points)
    return sum(integrate.quad(density, a, b, epsabs=1e-10, limit=200)[0] for a, b in pieces)


@pytest.mark.parametrize("freedom", [1, 2, 3.5, 7, 99, 9999])
def test_power_of_the_t_test_is_exact(freedom):
    """Also where scipy's noncentral t has no answer: in its far tails."""
    for level in (0.05, 0.05 / 20):
        for nc in (0.0, 1.0, 3.0, 5.9, 12.7, 127.0):
            assert _detection_power(nc, freedom, level) == pytest.approx(
                exact_power(nc, freedom, level), abs=1e-7
            )


def test_detectable_difference_has_the_power():
    for n, comparisons in ((2, 1), (3, 20), (5, 6), (30, 1)):
        smallest = detectable_difference(n, 0.3, alpha=0.05, comparisons=comparisons)
        power = exact_power(smallest * math.sqrt(n) / 0.3, n - 1, 0.05 / comparisons)
        assert power == pytest.approx(0.8, abs=1e-6)
        assert detection_power(-smallest, n, 0.3, alpha=0.05, comparisons=comparisons) == pytest.approx(0.8)


def test_detectable_difference_scales_with_the_noise():
    one = detectable_difference(4, 1.0, alpha=0.05)
    assert detectable_difference(4, 0.002, alpha=0.05) == pytest.approx(0.002 * one)
    assert detectable_difference(4, 0.0, alpha=0.05) == 0
    assert math.isnan(detectable_difference(1, 1.0, alpha=0.05))
    assert detectable_difference(4, 1.0, alpha=0.05, power=0.9) > one
    assert noncentrality(3, 0.05, 0.8) == pytest.approx(2 * one)


def test_pairs_needed_is_the_smallest_number():
    for difference, comparisons in ((0.3, 1), (0.5, 6), (1.0, 20), (3.0, 1)):
        n = pairs_needed(difference, 1.0, alpha=0.05, comparisons=comparisons)
        level = {"alpha": 0.05, "comparisons": comparisons}
        assert detection_power(difference, n, 1.0, **level) >= 0.8
        assert n == 2 or detection_power(difference, n - 1, 1.0, **level) < 0.8
        assert detectable_difference(n, 1.0, **level) <= difference
        assert pairs_needed(-difference, 1.0, **level) == n


def test_sizes_beyond_reason_end():
    assert pairs_needed(0.0, 1.0, alpha=0.05) == MOST_PAIRS
    assert pairs_needed(1e-12, 1.0, alpha=0.05, comparisons=1000) == MOST_PAIRS
    assert pairs_needed(1e12, 1.0, alpha=0.05) == 2
    assert pairs_needed(1.0, 0.0, alpha=0.05) == 2
    assert equivalence_pairs_needed(1e-12, 1.0, alpha=0.05) == MOST_PAIRS
    assert equivalence_pairs_needed(1e12, 1.0, alpha=0.05) == 2
    assert equivalence_pairs_needed(1.0, 0.0, alpha=0.05) == 2


@pytest.mark.parametrize(("n", "margin"), [(2, 5.0), (3, 1.5), (6, 1.0), (200, 0.15), (9000, 0.03)])
def test_power_of_equivalence_is_exact(n, margin):
    reach, t, scale = margin * math.sqrt(n), stats.t.isf(0.05, n - 1), math.sqrt(n - 1)

    def density(r):
        return (2 * stats.norm.cdf(reach - t * r) - 1) * stats.chi.pdf(r * scale, n - 1) * scale

    points = sorted({0, *(min(reach / t, max(0, 1 + s / scale)) for s in (-8, -2, 0, 2, 8)), reach / t})
    pieces = pairwise(points)
    exact = sum(integrate.quad(density, a, b, epsabs=1e-10, limit=200)[0] for a, b in pieces)
    assert 0.01 < exact < 0.99
    assert equivalence_power(margin, n, 1.0, alpha=0.05) == pytest.approx(exact, abs=1e-6)


def test_equivalence_takes_the_smallest_number():
    for margin in (0.2, 1.0, 4.0):
        n = equivalence_pairs_needed(margin, 1.0, alpha=0.05)
        assert equivalence_power(margin, n, 1.0, alpha=0.05) >= 0.8
        assert n == 2 or equivalence_power(margin, n - 1, 1.0, alpha=0.05) < 0.8


@pytest.mark.parametrize("power", [0.05, 0.01, 1.0, math.nan])
def test_power_lies_between_alpha_and_one(power):
    with pytest.raises(RequestError, match="power"):
        pairs_needed(1.0, 1.0, alpha=0.05, power=power)
