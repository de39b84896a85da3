"""Two models on the same items: evaluation results, where one item is one question.

Runs say how training varies; items say how much the choice of questions does. An interval over items speaks
about other items of the same kind, for these two models as they are trained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from tnbench.errors import RequestError
from tnbench.statistics.intervals import Difference, Estimate, check_alpha, finite, paired_estimate


def compare_items(
    a: ArrayLike, b: ArrayLike, *, alpha: float, clusters: ArrayLike | None = None
) -> Difference:
    """The mean of a - b over items, with the standard error of paired, clustered items.

    Items of one cluster, such as questions about one text, are not independent. With e_i the difference of an
    item minus the mean difference, and G clusters, the squared error is G/(G-1) · Σ_clusters (Σ_i e_i)² / n²
    (Miller, 2024, arXiv 2411.00640, there without the correction for few clusters), and t has G - 1 degrees
    of freedom. When each item is its own cluster this is the paired t-test. One cluster has no interval.

    Args:
        a, b: scores of the two models, both of shape (n,), in the same order of items.
        alpha: one minus the coverage, such as 0.05.
        clusters: label of each item, shape (n,); None: the items are independent.

    Raises:
        RequestError: alpha is not between 0 and 1, or there are not as many scores and labels on all sides.
    """
    check_alpha(alpha)
    a, b = finite(a), finite(b)
    if a.size != b.size:
        raise RequestError(f"items need both scores: {a.size} and {b.size} were given")
    estimate = paired_estimate(a, b)
    if clusters is None or a.size < 2:
        return estimate.difference(a.size, alpha)
    labels = np.asarray(clusters)
    if labels.shape != a.shape:
        raise RequestError(f"items need a cluster each: {labels.size} for {a.size} items were given")
    _, members = np.unique(labels, return_inverse=True)
    sums = np.bincount(members, weights=a - b - estimate.mean)
    groups = sums.size
    if groups < 2:
        return Estimate(estimate.mean, np.asarray(np.nan), 0).difference(a.size, alpha)
    error = np.sqrt(groups / (groups - 1) * (sums**2).sum()) / a.size
    return Estimate(estimate.mean, np.where(estimate.error == 0, 0.0, error), groups - 1).difference(
        a.size, alpha
    )


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p that two models are right equally often (McNemar, 1947).

    Only items that one of them gets right and the other wrong count: under no difference each falls to either
    with probability 1/2. 1 where there is no such item.

    Args:
        a, b: 1 or True where right, else 0 or False, both of shape (n,), in the same order of items.

    Raises:
        RequestError: the scores are not all 0 or 1, or not as many on both sides.
    """
    a, b = finite(a), finite(b)
    if a.size != b.size:
        raise RequestError(f"items need both scores: {a.size} and {b.size} were given")
    if not np.isin(np.concatenate((a, b)), (0, 1)).all():
        raise RequestError("McNemar's test is for scores of 0 and 1; compare_items takes any")
    wins, losses = int((a > b).sum()), int((a < b).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
