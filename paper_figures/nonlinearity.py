"""Too little nonlinearity: is the activation of the channel mixer missed more in a deep model?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.ablation import because
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records, SuiteRecords
from tnbench.paper_figures.shared.tables import OURS, Built, Row
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict, judged
from tnbench.report import words
from tnbench.statistics import Interval, compare, mean_interval, paired_difference

ABOUT = About(
    "nonlinearity", "Too little nonlinearity: SGLU against SwiGLU at two depths", "", Measure("nonlinearity")
)
DEPTHS = {"shallow": ("shallow-swiglu", "shallow-sglu"), "deep": ("deep-swiglu", "deep-sglu")}
LINES = {
    "shallow": "SwiGLU, shallow",
    "deep": "SwiGLU, deep",
    "both": "deep less shallow",
}
CLAIMS = {
    "shallow": Claim(
        "shallow", "Open: SwiGLU against SGLU in a shallow model.", Expects.open, row=LINES["shallow"]
    ),
    "deep": Claim("deep", "Open: SwiGLU against SGLU in a deep model.", Expects.open, row=LINES["deep"]),
    "both": Claim(
        "both",
        "Open: is the activation missed more in the deep model? The difference of the two differences.",
        Expects.open,
        row=LINES["both"],
    ),
}


def build(records: Records) -> Built:
    """SwiGLU less SGLU at each depth, and how the two differ, paired by seed, Holm over the three."""
    suites = [one for one in records.suites(ABOUT.measure.suite) if _whole(one)]
    rows, findings = [], []
    for one in suites:
        for row, finding in _lines(one):
            rows.append(row)
            findings.append(finding)
    if not suites:
        command = ABOUT.measure.command
        findings = [Finding(claim, Verdict.missing, command=command) for claim in CLAIMS.values()]
    under = (
        "Validation loss with SwiGLU less that with SGLU, which has no activation: below zero, it is missed."
    )
    subjects = list(LINES.values())
    figure = drawing.forest(ABOUT.title, under, subjects, rows, findings)
    notes = [
        f"{one.where}, {variant}: {lost}"
        for one in suites
        for variant in one.variants
        if (lost := one.outcomes(variant))
    ]
    return Built(figure, rows, findings, [stamp for one in suites for stamp in one.stamps], notes)


def _whole(one: SuiteRecords) -> bool:
    return all(variant in one.variants for pair in DEPTHS.values() for variant in pair)


def _lines(one: SuiteRecords) -> Iterator[tuple[Row, Finding]]:
    """Row and finding of each depth, and of both together."""
    values = {variant: one.values(variant) for pair in DEPTHS.values() for variant in pair}
    compared: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for depth, (swish, plain) in DEPTHS.items():
        compared[depth] = _at(values[swish], values[plain])
    both = [seed for seed in values["deep-sglu"] if all(seed in mine for mine in values.values())]
    gaps = {
        depth: np.array([values[swish][seed] - values[plain][seed] for seed in both])
        for depth, (swish, plain) in DEPTHS.items()
    }
    compared["both"] = gaps["deep"], gaps["shallow"]
    found = compare(list(compared.values()), alpha=one.alpha, margin=one.margin)
    for (name, (own, base)), comparison in zip(compared.items(), found, strict=True):
        variants = DEPTHS.get(name, tuple(variant for pair in DEPTHS.values() for variant in pair))
        relative = _relative(own, base, one.alpha) if name in DEPTHS else Interval(np.nan, np.nan, np.nan, 0)
        runs = one.ids(*variants)
        shared: dict[str, Any] = {"setting": one.setting, "where": one.where, "command": one.command}
        yield (
            Row(
                LINES[name],
                OURS,
                one.measured.label,
                one.measured.unit,
                against="SGLU" if name in DEPTHS else LINES["shallow"],
                value=mean_interval(own, one.alpha),
                base=mean_interval(base, one.alpha),
                difference=comparison.difference,
                relative=relative,
                p_holm=comparison.p_holm,
                margin=np.nan if one.margin is None else one.margin,
                verdict=words.verdict(comparison),
                runs=runs,
                at=_layers(one, variants),
                **shared,
            ),
            Finding(
                CLAIMS[name],
                judged(Expects.open, comparison),
                because(comparison, one, relative),
                one.setting,
                one.where,
                one.command,
                runs,
            ),
        )


def _at(own: dict[int, float], base: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    seeds = [seed for seed in own if seed in base]
    return np.array([own[seed] for seed in seeds]), np.array([base[seed] for seed in seeds])


def _relative(own: np.ndarray, base: np.ndarray, alpha: float) -> Interval:
    if not own.size:
        return Interval(np.nan, np.nan, np.nan, 0)
    found = paired_difference(np.log(own), np.log(base), alpha)
    return Interval(np.expm1(found.mean), np.expm1(found.low), np.expm1(found.high), found.n)


def _layers(one: SuiteRecords, variants: tuple[str, ...]) -> str:
    """`2 layers`, or `2 and 8 layers`."""
    found = dict.fromkeys(
        str(record.config["model.layers"])
        for variant in variants
        for record in one.variants[variant]
        if record.manifest
    )
    return " and ".join(found) + " layers"
