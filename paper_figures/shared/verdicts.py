"""Verdicts on the paper's claims, by rule.

A claim says that a variant's number is higher or lower than the base's, or that the two are on a par.

| the paper claims | confirmed | contradicted |
|---|---|---|
| higher or lower | the same sign, significant after Holm's correction | the opposite sign, significant |
| parity | equivalent within the margin (two one-sided tests) | a significant difference |

A significant difference contradicts parity also where it lies within the margin, which the reason then says:
as in a suite's own table, better and worse are decided before equivalence. All else is undecided, and what no
record speaks of is not measured yet. "At this scale" is that of the records: size, text and run length stand
beside every verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from tnbench.statistics import Comparison


class Verdict(StrEnum):
    """What the records say of a claim."""

    confirmed = "confirmed at this scale"
    contradicted = "contradicted at this scale"
    undecided = "undecided"
    missing = "not measured yet"


class Expects(Enum):
    """What the paper claims of a variant's number against the base's."""

    higher = "higher"
    lower = "lower"
    parity = "parity"
    open = "open"
    """Nothing: the paper leaves the question open."""


OPPOSITE = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper that records can speak for or against."""

    name: str
    """Within its figure."""
    text: str
    expects: Expects
    variant: str = ""
    """Of the suite that tests it."""
    row: str = ""
    """Of the paper's table."""

    def about(self, subject: str) -> bool:
        """Whether a line of the figure is what it speaks of."""
        return subject == (self.row or self.variant)


@dataclass(frozen=True)
class Finding:
    """What one set of records says of a claim."""

    claim: Claim
    verdict: Verdict | str
    """Of an open question, the words of the comparison: better, worse, equivalent, undecided."""
    because: str = ""
    """The numbers behind it, in a sentence."""
    setting: str = ""
    """The scale: size, text, run length, machine."""
    records: str = ""
    """Folder of the records, relative to their root."""
    command: str = ""
    """What measures it, or measured it."""
    runs: Sequence[str] = field(default_factory=tuple)


def judged(expects: Expects, found: Comparison) -> Verdict | str:
    """The verdict on a claim about values of which lower is better.

    Args:
        expects: what the paper says of the variant's value against the base's.
        found: the variant against the base, corrected for its table.
    """
    verdict = str(found.verdict)
    if expects is Expects.open:
        return verdict
    if expects is Expects.parity:
        if verdict == "equivalent":
            return Verdict.confirmed
        return Verdict.contradicted if verdict in OPPOSITE else Verdict.undecided
    wanted = "worse" if expects is Expects.higher else "better"
    if verdict == wanted:
        return Verdict.confirmed
    return Verdict.contradicted if verdict == OPPOSITE[wanted] else Verdict.undecided


def together(verdicts: Iterable[Verdict | str]) -> Verdict:
    """The verdict on a claim that has to hold at every point: contradicted by one, confirmed by all."""
    found = list(verdicts)
    if not found:
        return Verdict.missing
    if Verdict.contradicted in found:
        return Verdict.contradicted
    return Verdict.confirmed if set(found) == {Verdict.confirmed} else Verdict.undecided
