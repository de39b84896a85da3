"""Simulations of the method: does it cover, reject and detect as often as it says?

Every function draws tables of runs without a true difference, or with a known one, and sends them through
the code that decides real verdicts. Differences between runs have a standard deviation of 1. With p the true
rate, a share of N simulations has the standard error √(p (1 - p) / N): 0.15 points at 5 % of 20,000.

`python -m tnbench.statistics.simulation` prints the tables of docs/method.md; `--json FILE` also
writes the numbers. It takes a few minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tnbench.records import command_line, now, provenance, write_json
from tnbench.statistics.comparison import Verdict, holm, verdicts
from tnbench.statistics.intervals import Estimate, paired_estimate, t_bounds
from tnbench.statistics.power import detectable_difference, equivalence_pairs_needed, pairs_needed
from tnbench.statistics.resampling import BCA_COVERAGE, bca_bounds

SIMULATIONS = 20_000
SEED = 2307_14995
ALPHA = 0.05
BATCH = 50
"""Bootstraps at a time, for the sake of memory."""
SHARED = 1.0
"""Variance that runs of one seed share, over that of a difference: pairing takes it out."""

Row = dict[str, float | int | str]
"""One row of a table of results: column → value. Shares are between 0 and 1."""


def _contaminated(rng: Generator, shape: Sequence[int]) -> NDArray:
    """One value in ten comes from a normal distribution five times as wide."""
    wide = np.where(rng.random(shape) < 0.1, 5.0, 1.0)
    return wide * rng.standard_normal(shape) / np.sqrt(0.9 + 0.1 * 25)


NOISES: Mapping[str, Callable[[Generator, Sequence[int]], NDArray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t, 3 df": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "contaminated": _contaminated,
    "skewed": lambda rng, shape: rng.standard_exponential(shape) - 1,
}
"""Noise of mean 0 and standard deviation 1, by name: normal; Student's t with 3 degrees of freedom; a normal
in which one value in ten is five times as wide; the exponential distribution, whose skewness is 2."""


SHARES = {*NOISES, "any false verdict", "detected", "called equivalent", "coverage"}
"""Columns that hold shares of simulations."""


def interval_coverage(n: int, rng: Generator, noise: str = "normal", simulations: int = SIMULATIONS) -> float:
    """How often the t interval of n differences holds the true one; the noise is that of the differences."""
    _, low, high = t_bounds(NOISES[noise](rng, (simulations, n)), ALPHA)
    return float(((low <= 0) & (high >= 0)).mean())


def false_verdicts(
    variants: int, n: int, rng: Generator, noise: str = "normal", simulations: int = SIMULATIONS
) -> float:
    """How often a table of variants that equal their base calls any of them better or worse.

    The noise is that of the runs. All variants share one base, and runs of one seed share the noise of its
    data.
    """
    estimate = _table(np.zeros(variants), n, rng, noise, simulations)
    verdict = verdicts(estimate.mean, holm(estimate.p), np.nan, ALPHA)
    return float((verdict != Verdict.undecided).any(axis=-1).mean())


def false_verdicts_on_the_way(
    looks: Sequence[int], variants: int, rng: Generator, simulations: int = SIMULATIONS
) -> float:
    """As `false_verdicts`, where the table is read at each of these numbers of seeds and a verdict stays."""
    variant, base = _runs(np.zeros(variants), max(looks), rng, "normal", simulations)
    found = np.zeros(simulations, dtype=bool)
    for n in looks:
        estimate = paired_estimate(variant[..., :n], base[..., :n])
        found |= (verdicts(estimate.mean, holm(estimate.p), np.nan, ALPHA) != Verdict.undecided).any(axis=-1)
    return float(found.mean())


def detected(
    difference: float, variants: int, n: int, rng: Generator, simulations: int = SIMULATIONS
) -> float:
    """How often a variant that is worse by `difference` is called so, when all others equal the base."""
    estimate = _table(np.r_[difference, np.zeros(variants - 1)], n, rng, "normal", simulations)
    verdict = verdicts(estimate.mean, holm(estimate.p), np.nan, ALPHA)
    return float((verdict[:, 0] == Verdict.worse).mean())


def called_equivalent(
    difference: float,
    margin: float,
    n: int,
    rng: Generator,
    noise: str = "normal",
    simulations: int = SIMULATIONS,
) -> float:
    """How often the two one-sided tests show equivalence within ±margin under a true difference."""
    estimate = _table(np.array([difference]), n, rng, noise, simulations)
    return float((estimate.equivalence_p(margin) <= ALPHA).mean())


def bootstrap_coverage(n: int, rng: Generator, simulations: int = SIMULATIONS) -> float:
    """How often the BCa interval of n normal values holds their true mean."""
    covered = 0
    for start in range(0, simulations, BATCH):
        low, high = bca_bounds(rng.standard_normal((min(BATCH, simulations - start), n)), alpha=ALPHA)
        covered += int(((low <= 0) & (high >= 0)).sum())
    return covered / simulations


def _table(differences: NDArray, n: int, rng: Generator, noise: str, simulations: int) -> Estimate:
    """Variants against one base, with true `differences` of shape (variants,): (simulations, variants)."""
    return paired_estimate(*_runs(differences, n, rng, noise, simulations))


def _runs(
    differences: NDArray, n: int, rng: Generator, noise: str, simulations: int
) -> tuple[NDArray, NDArray]:
    """Values of the variants, (simulations, variants, n), and of their base, (simulations, 1, n)."""
    draw, own = NOISES[noise], np.sqrt(0.5)
    seeds = np.sqrt(SHARED) * rng.standard_normal((simulations, 1, n))
    base = seeds + own * draw(rng, (simulations, 1, n))
    variants = seeds + own * draw(rng, (simulations, differences.size, n)) + differences[:, None]
    return variants, base


def simulate(simulations: int = SIMULATIONS) -> dict[str, list[Row]]:
    """All tables, by title. Each cell has random numbers of its own, drawn from `SEED`."""
    seeds = np.random.SeedSequence(SEED)
    many: dict[str, Any] = {"simulations": simulations}

    def rng() -> Generator:
        return np.random.default_rng(seeds.spawn(1)[0])

    coverage = [
        {"pairs": n, **{noise: interval_coverage(n, rng(), noise, **many) for noise in NOISES}}
        for n in (2, 3, 4, 5, 8, 16)
    ]
    false = [
        {
            "variants": variants,
            "pairs": n,
            **{noise: false_verdicts(variants, n, rng(), noise, **many) for noise in NOISES},
        }
        for variants in (1, 6, 20)
        for n in (3, 5, 8)
    ]
    looks = [
        {
            "variants": variants,
            "read at": ", ".join(map(str, read)),
            "any false verdict": false_verdicts_on_the_way(read, variants, rng(), **many),
        }
        for variants in (1, 6)
        for read in ((3, 5), (3, 5, 8), (3, 5, 8, 16))
    ]
    size = [
        {
            "margin": margin,
            "pairs": n,
            **{noise: called_equivalent(margin, margin, n, rng(), noise, **many) for noise in NOISES},
        }
        for margin in (0.5, 1.0, 3.0)
        for n in (3, 5, 8)
    ]
    power: list[Row] = []
    for variants in (1, 6, 20):
        for n in (3, 5, 8, 16):
            smallest = detectable_difference(n, 1, alpha=ALPHA, comparisons=variants)
            power.append(
                {
                    "variants": variants,
                    "pairs": n,
                    "detectable": round(smallest, 3),
                    "detected": detected(smallest, variants, n, rng(), **many),
                }
            )
    needed: list[Row] = []
    for variants in (1, 6):
        for margin in (0.5, 1.0, 2.0):
            detects = pairs_needed(margin, 1, alpha=ALPHA, comparisons=variants)
            shows = equivalence_pairs_needed(margin, 1, alpha=ALPHA)
            needed.append(
                {
                    "variants": variants,
                    "margin": margin,
                    "pairs to detect it": detects,
                    "detected": detected(margin, variants, detects, rng(), **many),
                    "pairs to show equivalence": shows,
                    "called equivalent": called_equivalent(0, margin, shows, rng(), **many),
                }
            )
    bootstrap = [{"values": n, "coverage": bootstrap_coverage(n, rng(), **many)} for n in BCA_COVERAGE]
    return {
        "Coverage of the 95 % t interval": coverage,
        "Any false better or worse in a table": false,
        "Any false better or worse in a table that is read again with more seeds": looks,
        "Called equivalent at a true difference of the margin": size,
        "Power at the smallest detectable difference": power,
        "Power with the number of pairs needed": needed,
        "Coverage of the 95 % BCa interval": bootstrap,
    }


def markdown(rows: Sequence[Row]) -> str:
    """A table of results; shares in per cent."""

    def cell(column: str, value: float | int | str) -> str:
        return f"{100 * value:.1f} %" if column in SHARES else f"{value}"

    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[cell(column, value) for column, value in row.items()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print all tables, and write the numbers if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tnbench.statistics.simulation", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    file = parser.parse_args().json
    tables = simulate()
    for title, rows in tables.items():
        print(f"{title}\n\n{markdown(rows)}\n")
    if file:
        made = {"command": command_line(), "measured": now(), "provenance": provenance()}
        write_json(file, {"simulations": SIMULATIONS, "seed": SEED, "alpha": ALPHA, "tables": tables, **made})


if __name__ == "__main__":
    main()
