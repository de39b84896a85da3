"""The method does what it says, by simulation: 20,000 tables a cell, with fixed random numbers.

With p the true share, a simulated one has the standard error √(p (1 - p) / 20,000): 0.15 points at 5 %.
Bounds allow for three of them, so that a method that is wrong by a point fails.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tnbench.statistics import (
    BCA_COVERAGE,
    compare_items,
    detectable_difference,
    equivalence_pairs_needed,
    holm,
    paired_estimate,
    pairs_needed,
    verdicts,
    welch_estimate,
)
from tnbench.statistics.simulation import (
    NOISES,
    SIMULATIONS,
    bootstrap_coverage,
    called_equivalent,
    detected,
    false_verdicts,
    false_verdicts_on_the_way,
    interval_coverage,
    markdown,
    simulate,
)

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "results/reference/statistics/simulations.json"


def rng(*cell: int) -> np.random.Generator:
    return np.random.default_rng(cell)


def error(share: float, simulations: int = SIMULATIONS) -> float:
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(share * (1 - share) / simulations)


def test_as_many_simulations_as_promised():
    assert SIMULATIONS == 20_000


@pytest.mark.parametrize("n", [3, 4, 5, 8, 16])
def test_t_intervals_cover(n):
    assert 0.945 <= interval_coverage(n, rng(1, n)) <= 0.955


@pytest.mark.parametrize("variants", [1, 6, 20])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_false_verdicts_are_rare_in_a_table_of_any_size(variants, n):
    share = false_verdicts(variants, n, rng(2, variants, n))
    assert share <= 0.05 + error(0.05)
    assert share >= 0.03, "a test that never rejects is none"


def test_variants_that_differ_do_not_raise_the_error_of_the_others():
    """Holm holds the error of a whole table whichever of its variants differ: here four of six."""
    generator = rng(17)
    base, own = generator.normal(size=(2, SIMULATIONS, 1, 4))
    variants = base + generator.normal(size=(SIMULATIONS, 6, 4)) + np.array([0, 0, 9, 9, -9, -9])[:, None]
    estimate = paired_estimate(variants, base + own)
    verdict = verdicts(estimate.mean, holm(estimate.p), np.nan, 0.05)
    assert (verdict[:, 2:] != "undecided").mean() > 0.9
    share = (verdict[:, :2] != "undecided").any(axis=-1).mean()
    assert 0.03 <= share <= 0.05 + error(0.05)


def test_a_table_that_is_read_again_is_wrong_more_often():
    """Which is why the page on the method asks for the number of seeds beforehand."""
    assert false_verdicts_on_the_way((5,), 1, rng(16)) <= 0.05 + error(0.05)
    assert 0.07 <= false_verdicts_on_the_way((3, 5, 8), 1, rng(16)) <= 0.12


@pytest.mark.parametrize(("margin", "n"), [(0.5, 3), (1.0, 5), (3.0, 3), (3.0, 8)])
def test_equivalence_is_rarely_claimed_at_the_margin(margin, n):
    for side in (margin, -margin):
        assert called_equivalent(side, margin, n, rng(3, n)) <= 0.05 + error(0.05)


def test_the_equivalence_test_has_its_size_where_the_margin_is_wide():
    assert called_equivalent(3.0, 3.0, 8, rng(4)) >= 0.05 - error(0.05)


@pytest.mark.parametrize(("n", "variants"), [(2, 1), (3, 1), (5, 6), (8, 20), (16, 6)])
def test_power_at_the_smallest_detectable_difference(n, variants):
    smallest = detectable_difference(n, 1.0, alpha=0.05, comparisons=variants)
    assert 0.77 <= detected(smallest, variants, n, rng(5, n)) <= 0.83


@pytest.mark.parametrize(("difference", "variants"), [(0.5, 1), (1.0, 6), (2.0, 1)])
def test_power_with_the_pairs_needed(difference, variants):
    n = pairs_needed(difference, 1.0, alpha=0.05, comparisons=variants)
    assert detected(difference, variants, n, rng(6, n)) >= 0.8 - error(0.8)
    assert detected(difference, variants, n - 1, rng(7, n)) < 0.8 + error(0.8)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_power_to_show_equivalence(margin):
    n = equivalence_pairs_needed(margin, 1.0, alpha=0.05)
    assert called_equivalent(0.0, margin, n, rng(8, n)) >= 0.8 - error(0.8)
    assert called_equivalent(0.0, margin, n - 1, rng(9, n)) < 0.8 + error(0.8)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_mean_0_and_variance_1(noise):
    values = NOISES[noise](rng(10), (2_000_000,))
    assert values.mean() == pytest.approx(0, abs=0.004)
    assert values.var() == pytest.approx(1, rel=0.1)  # that of t with 3 degrees of freedom converges slowly


BANDS = {"t, 3 df": (0.95, 0.97), "contaminated": (0.95, 0.97), "skewed": (0.87, 0.92)}


@pytest.mark.parametrize("noise", BANDS)
@pytest.mark.parametrize("n", [3, 5, 16])
def test_what_heavy_tails_do_to_intervals(noise, n):
    """Symmetric tails make them cautious; differences that are skewed make them too narrow."""
    low, high = BANDS[noise]
    assert low <= interval_coverage(n, rng(11, n), noise) <= high


@pytest.mark.parametrize("noise", BANDS)
@pytest.mark.parametrize("variants", [1, 6])
def test_heavy_tails_of_runs_give_no_more_false_verdicts(noise, variants):
    """Variant and base have the same noise, so that differences are symmetric even where runs are skewed."""
    share = false_verdicts(variants, 5, rng(12, variants), noise)
    assert 0.015 <= share <= 0.05


@pytest.mark.parametrize(("n", "simulations"), [(8, 3_000), (20, 1_500)])
def test_stated_coverage_of_the_bootstrap(n, simulations):
    stated = BCA_COVERAGE[n]
    assert bootstrap_coverage(n, rng(13, n), simulations) == pytest.approx(
        stated, abs=error(stated, simulations)
    )


def test_welch_intervals_cover():
    """With unequal sizes and spreads; Satterthwaite's degrees of freedom are an approximation."""
    generator = rng(14)
    a, b = generator.normal(0, 1, size=(SIMULATIONS, 4)), generator.normal(0, 3, size=(SIMULATIONS, 7))
    low, high = welch_estimate(a, b).bounds(0.05)
    assert 0.94 <= ((low <= 0) & (high >= 0)).mean() <= 0.96


def test_clustered_intervals_cover():
    """And unclustered ones do not, where the items of a text share its difficulty."""
    generator, simulations = rng(15), 1_500
    texts = np.repeat(np.arange(25), generator.integers(2, 9, size=25))
    covered = np.zeros(2)
    for _ in range(simulations):
        differences = generator.normal(size=25)[texts] + generator.normal(size=texts.size)
        zeros = np.zeros(texts.size)
        covered += [
            compare_items(differences, zeros, alpha=0.05, clusters=labels).contains(0)
            for labels in (texts, None)
        ]
    clustered, plain = covered / simulations
    assert clustered == pytest.approx(0.95, abs=0.025)
    assert plain < 0.8


def test_simulations_repeat():
    """The whole program, with few simulations; its numbers depend on the seed alone."""
    few = simulate(60)
    assert few == simulate(60)
    recorded = json.loads(RECORD.read_text())
    assert recorded["simulations"] == SIMULATIONS
    assert {title: list(rows[0]) for title, rows in few.items()} == {
        title: list(rows[0]) for title, rows in recorded["tables"].items()
    }


def test_method_page_shows_the_recorded_numbers():
    recorded, page = (
        json.loads(RECORD.read_text())["tables"],
        (ROOT / "docs/method.md").read_text(encoding="utf-8"),
    )
    for title, rows in recorded.items():
        assert markdown(rows) in page, title
    coverage = {
        row["values"]: round(row["coverage"], 3) for row in recorded["Coverage of the 95 % BCa interval"]
    }
    assert coverage == BCA_COVERAGE
