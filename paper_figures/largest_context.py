"""The largest context that can be trained (v2 table 14)."""

from __future__ import annotations

import math
from typing import Any

from tnbench.paper_figures.shared import published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.bars import bars
from tnbench.paper_figures.shared.models import OURSELVES, RIVAL
from tnbench.paper_figures.shared.records import Records
from tnbench.paper_figures.shared.speed import exactly
from tnbench.paper_figures.shared.tables import OURS, Built, Row, Stamp, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.profiling.lines import canonical
from tnbench.statistics import Interval

ABOUT = About(
    "largest-context",
    "The largest context that can be trained",
    "largest-context",
    Measure(
        models=True,
        axes={"mode": "train", "preset": [OURSELVES, RIVAL], "size": "385m", "largest": "context"},
    ),
)
LONGER = Claim(
    "longer",
    "In the same memory TransNormerLLM is trained with a longer context (at 7B 48K against 37K).",
    Expects.higher,
)
MODELS = ("Transformer", "TransNormerLLM")
CALLED = {RIVAL: "Transformer", OURSELVES: "TransNormerLLM"}


def build(records: Records) -> Built:
    """The printed contexts, and ours by search on one GPU."""
    table = published.efficiency("largest-context")
    rows = [
        of_paper(
            model, f"paper {table['source']}", "largest context", table["unit"], values[place],
            setting=table["setting"], at=size, where=f"v1 {table['where']['v1']}",
            **({"base": values[0], "against": "Transformer"} if place else {}),
        )
        for size, values in table["rows"].items()
        for place, model in enumerate(MODELS)
    ]  # fmt: skip
    stamps: list[Stamp] = []
    findings: list[Finding] = []
    for where, found in records.models():
        mine = _of(where, found, stamps)
        rows += mine
        for row in mine:
            if row.subject == CALLED[OURSELVES] and math.isfinite(row.base.mean):
                because = f"{row.value.mean:,.0f} against {row.base.mean:,.0f} tokens, {row.setting}"
                findings.append(exactly(LONGER, row.value.mean > row.base.mean, because, row))
    if not findings:
        findings = [Finding(LONGER, Verdict.missing, command=ABOUT.measure.command)]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    groups, panels = (
        list(table["rows"]),
        {m: [v[p] for v in table["rows"].values()] for p, m in enumerate(MODELS)},
    )
    ours = [row for row in rows if row.ours]
    shown = {"paper, 64 A100-80G (tokens)": panels}
    for size in dict.fromkeys(row.at for row in ours):
        values = {row.subject: row.value.mean for row in ours if row.at == size}
        for model, printed in panels.items():
            printed.append(values.get(model, math.nan))
        groups.append(f"{size} ours, one GPU")
    settings = "; ".join(dict.fromkeys(row.setting for row in ours)) or "not measured yet"
    under = f"{table['setting']}. Ours: {settings}."
    return Built(bars(ABOUT.title, under, shown, groups, ids), rows, findings, stamps)


def _of(where: str, found, stamps: list[Stamp]) -> list[Row]:
    """The searches along the context of one machine, in training."""
    from tnbench.profiling.models.store import code_hash

    lines = [
        line
        for line in found.searched()
        if line["case"]["mode"] == "train"
        and line["case"].get("axis") == "context"
        and line["status"] == "ok"
        and line["variant"] in CALLED
        and not line["case"].get("suite")
    ]
    stamps += [
        Stamp(where, "models", code, code_hash()) for code in dict.fromkeys(line["code"] for line in lines)
    ]
    largest = {(canonical(line["case"]), line["variant"]): line["value"] for line in lines}
    rows = []
    for line in lines:
        size, variant, value = line["case"]["size"], line["variant"], float(line["value"])
        base = largest.get((canonical(line["case"]), RIVAL)) if variant == OURSELVES else None
        device = found.sessions.get(line["session"], {}).get("device")
        pair: dict[str, Any] = {"base": Interval(float(base), math.nan, math.nan, 1)} if base else {}
        if base:
            pair |= {
                "difference": Interval(value - base, math.nan, math.nan, 1),
                "relative": Interval(value / base - 1, math.nan, math.nan, 1),
            }
        rows.append(
            Row(
                CALLED[variant], OURS, "largest context", "tokens", at=size, where=where,
                against=CALLED[RIVAL] if base else "", setting=f"{device}, {size}, one sequence",
                value=Interval(value, math.nan, math.nan, 1), runs=(f"{line['session']}/{line['config']}",),
                command=ABOUT.measure.command, note="found by search; repeats exactly: no interval", **pair,
            )
        )  # fmt: skip
    return rows
