"""What the modules of speed and memory share: ratios of times over interleaved rounds, with verdicts.

Two times are compared by the logarithms of their rounds' medians, as everywhere in the project; a claim of
"at least k times as fast" is tested against k, and p-values are corrected over the claim's points (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tnbench.paper_figures.shared.tables import OURS, Row
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict, judged, together
from tnbench.profiling.speedups import ALPHA, speedup
from tnbench.report import words
from tnbench.statistics import Interval, compare

RATIO = "speed"
TIMES = "times as fast"


@dataclass(frozen=True)
class Pair:
    """Two implementations or models at one point: medians of the same rounds, seconds."""

    at: str
    """The point: a length, a width, a context."""
    own: Sequence[float]
    other: Sequence[float]
    own_name: str
    other_name: str
    where: str
    setting: str
    runs: Sequence[str]
    command: str
    mode: str = ""
    """What was timed: forward, training, decoding."""


def judge(
    claim: Claim, pairs: Sequence[Pair], least: float = 1.0, command: str = ""
) -> tuple[Finding, list[Row]]:
    """The verdict on "own is at least `least` times as fast as other at every point", and a row per point.

    An open claim counts the points at which own is faster, slower, or neither.

    Args:
        command: what would measure it, where there are no pairs.
    """
    if not pairs:
        return Finding(claim, Verdict.missing, command=command), []
    logs = [([math.log(least * x) for x in pair.own], [math.log(x) for x in pair.other]) for pair in pairs]
    logs = [(own[: len(other)], other[: len(own)]) for own, other in logs]
    compared = compare(logs, alpha=ALPHA)
    expects = claim.expects if claim.expects is Expects.open else Expects.lower  # of the time
    verdicts = [judged(expects, one) for one in compared]
    rows = []
    for pair, one, verdict in zip(pairs, compared, verdicts, strict=True):
        both = min(len(pair.own), len(pair.other))
        found = speedup(pair.own[:both], pair.other[:both])
        rows.append(
            Row(
                pair.own_name,
                OURS,
                f"{RATIO}, {pair.mode}" if pair.mode else RATIO,
                TIMES,
                against=pair.other_name,
                setting=pair.setting,
                at=pair.at,
                value=Interval(found.ratio, found.low, found.high, found.rounds),
                p_holm=one.p_holm,
                verdict=found.verdict,
                claim="" if claim.expects is Expects.open else str(verdict),
                where=pair.where,
                runs=pair.runs,
                command=pair.command,
            )
        )
    ratios = [row.value.mean for row in rows]
    low, high = min(ratios), max(ratios)
    because = f"{_times(low)} to {_times(high)} times as fast" if len(rows) > 1 else _one(rows[0])
    because += (
        f" at {words.counted(len(rows), 'point')} ({rows[0].at} to {rows[-1].at})" if len(rows) > 1 else ""
    )
    counts = [sum(row.verdict == word for row in rows) for word in ("faster", "slower", "undecided")]
    because += f"; faster at {counts[0]}, slower at {counts[1]}, undecided at {counts[2]}"
    verdict: Verdict | str = together(verdicts)
    if claim.expects is Expects.open:
        verdict = _word(counts)
    runs = tuple(dict.fromkeys(run for row in rows for run in row.runs))
    first = pairs[0]
    return Finding(claim, verdict, because, first.setting, first.where, first.command, runs), rows


def _word(counts: Sequence[int]) -> str:
    """The verdict over all points of an open question."""
    faster, slower, neither = counts
    if faster and not slower and not neither:
        return "faster"
    if slower and not faster and not neither:
        return "slower"
    return "undecided" if not faster and not slower else "mixed"


def _one(row: Row) -> str:
    return f"{_times(row.value.mean)} [{_times(row.value.low)}, {_times(row.value.high)}] times as fast"


def _times(ratio: float) -> str:
    """Three significant digits.

    >>> _times(1.0128), _times(12.34), _times(123.4)
    ('1.01', '12.3', '123')
    """
    return f"{ratio:.{max(0, 2 - math.floor(math.log10(ratio)))}f}" if ratio > 0 else words.NOTHING


def exactly(claim: Claim, holds: bool, because: str, row: Row) -> Finding:
    """A verdict on numbers that repeat exactly, such as allocated bytes: no test is needed."""
    verdict = Verdict.confirmed if holds else Verdict.contradicted
    return Finding(claim, verdict, because, row.setting, row.where, row.command, row.runs)
