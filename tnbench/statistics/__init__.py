"""Statistics of ablations: what may be said about a few runs, and by which rule.

*Unit.* A value is one number per run, such as the bits per byte of a trained model on held-out text. Runs of
one variant differ only in their seeds, so an interval speaks about training again with other seeds; it does
not speak about other corpora, sizes or learning rates.

*Interval of a mean.* For n values with mean m and standard deviation s (n - 1 in its denominator), the
interval is m ± t(1 - alpha/2, n - 1) · s / √n, Student's t (Student, 1908). It covers the true mean with
probability 1 - alpha when the values are normal, at every n from 2 on. One value has no interval.

*Difference.* Two variants are compared seed by seed: the same seed number gives both the same order of data,
and what that order does to both cancels in the difference. The interval and the test are those of the mean of
the n differences (paired t). A seed that only one of the two has finished is no pair and is left out. Where
seeds cannot be paired, Welch's test takes the place of the paired one.

*Table.* The p-values of all variants of a table are adjusted together (Holm, 1979), so that the probability
of any false *better* or *worse* in a table is at most alpha. Intervals are not widened for the table: each
describes one variant, and the verdict is the adjusted p's.

*Equivalence.* A difference that is not significant is not thereby absent. With a margin set beforehand, two
one-sided t-tests (Schuirmann, 1987) ask whether the difference lies within ±margin.

*Verdict.* Better or worse where Holm's p ≤ alpha; else equivalent where both one-sided tests reject; else
undecided, with the number of seeds that would decide (`compare`).

*Power.* Before anything is run, and after: the smallest difference that n pairs detect with 80 % probability
at the level alpha / comparisons, from the noncentral t distribution (`power`).

*For information.* Sign-flip test, BCa bootstrap, probability of improvement (`resampling`) stand beside the
verdict and never decide it.

*Items.* Evaluation results of two models are compared question by question, with clustered errors (`items`).

`docs/method.md` explains the whole to a reviewer; `simulation` measures that it does what it says.
"""

from tnbench.statistics.comparison import Comparison, Verdict, compare, holm, outliers, verdicts
from tnbench.statistics.intervals import (
    Difference,
    Estimate,
    Interval,
    check_alpha,
    mean_interval,
    paired_difference,
    paired_estimate,
    t_bounds,
    welch_estimate,
)
from tnbench.statistics.items import compare_items, mcnemar
from tnbench.statistics.power import (
    MOST_PAIRS,
    POWER,
    detectable_difference,
    detection_power,
    equivalence_pairs_needed,
    equivalence_power,
    noncentrality,
    pairs_needed,
)
from tnbench.statistics.resampling import (
    BCA_COVERAGE,
    bca_bounds,
    bca_coverage,
    bca_interval,
    probability_of_improvement,
    sign_flip_p,
)

__all__ = [
    "BCA_COVERAGE",
    "MOST_PAIRS",
    "POWER",
    "Comparison",
    "Difference",
    "Estimate",
    "Interval",
    "Verdict",
    "bca_bounds",
    "bca_coverage",
    "bca_interval",
    "check_alpha",
    "compare",
    "compare_items",
    "detectable_difference",
    "detection_power",
    "equivalence_pairs_needed",
    "equivalence_power",
    "holm",
    "mcnemar",
    "mean_interval",
    "noncentrality",
    "outliers",
    "paired_difference",
    "paired_estimate",
    "pairs_needed",
    "probability_of_improvement",
    "sign_flip_p",
    "t_bounds",
    "verdicts",
    "welch_estimate",
]
