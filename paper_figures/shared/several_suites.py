"""What figures share whose records come from several suites: findings on one variant, tables of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tnbench.errors import RequestError
from tnbench.paper_figures.shared.ablation import because
from tnbench.paper_figures.shared.records import SuiteRecords
from tnbench.paper_figures.shared.tables import NONE
from tnbench.paper_figures.shared.verdicts import Claim, Finding, judged
from tnbench.report.results import Frame


def of_suite(name: str) -> str:
    """The command that runs a suite."""
    return f"tnbench ablate {name}"


def finding(claim: Claim, one: SuiteRecords, variant: str, more: str = "") -> Finding:
    """What a suite's own table says of a variant against the base; of shares, absolutely alone.

    Args:
        more: what follows the numbers behind it.
    """
    found = one.comparisons[variant]
    relative = NONE if one.measured.unit == "share" else one.relative(variant)
    text = because(found, one, relative) + more
    ids = one.ids(variant, one.base)
    return Finding(claim, judged(claim.expects, found), text, one.setting, one.where, one.command, ids)


def drawn(one: SuiteRecords, name: str, columns: Sequence[str]) -> Frame:
    """A table of a suite's report, of what one of its plots shows; empty where the report has none.

    Raises:
        RequestError: it cannot be read.
    """
    path = one.folder / name
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        return pd.read_csv(path)[list(columns)]
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} cannot be read; {again(one.folder)} writes it again") from error


def again(folder: Path) -> str:
    """The command that writes a suite's report once more."""
    return f"{of_suite(folder.name)} --report"


def scale(one: SuiteRecords) -> str:
    """The setting without the parameters of examples in parentheses, which the table has."""
    return re.sub(r" \(.*?\)(?=,)", "", one.setting)


def outcomes(one: SuiteRecords, lines: dict[str, str]) -> list[str]:
    """Notes on the variants of which not all runs have finished.

    Args:
        lines: variant → how the figure calls it; others are left out.
    """
    return [
        f"{one.where}, {name}: {lost}"
        for variant, name in lines.items()
        if variant in one.variants and (lost := one.outcomes(variant))
    ]
