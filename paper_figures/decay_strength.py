"""A fixed decay that is too strong or too weak: loss, recall, and loss beyond the trained length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from tnbench.paper_figures.shared import drawing
from tnbench.paper_figures.shared.ablation import of_suites
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.records import Records, SuiteRecords
from tnbench.paper_figures.shared.several_suites import drawn, finding, of_suite, outcomes, scale
from tnbench.paper_figures.shared.tables import NONE, Built
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding, Verdict
from tnbench.report import words
from tnbench.report.drawing import FONT, INK, PALETTE, style
from tnbench.report.results import Frame, Metric
from tnbench.statistics import Interval

TEXT, RECALL = "decay-strength", "recall-decay"
FALLBACK = "length"
"""Has three fixed decays of the same model, and shows them where `decay-strength` has not run."""
FIXED = "fixed-"
"""What the names of the variants begin with that have one λ in every head and layer."""
BEYOND = 8
"""Trained contexts before the first target that counts as beyond the trained length; to twice as many."""
ABOUT = About(
    "decay-strength",
    "How strong a decay may be: loss, recall, and length",
    "",
    Measure(suites=(TEXT, RECALL)),
)
PANELS = {
    "loss": "validation loss",
    "recall": "wrong answers, MQAR",
    "beyond": f"loss at {BEYOND} to {2 * BEYOND} contexts",
}
SUITE = {"loss": TEXT, "recall": RECALL, "beyond": TEXT}
"""What measures each panel."""
ENDS = {"strong": "the strongest", "weak": "the weakest"}


class Beyond(SuiteRecords):
    """The runs of a suite, by their loss beyond the trained length."""

    @property
    def measured(self) -> Metric:
        return Metric(PANELS["beyond"], "bits per byte", "")

    @cached_property
    def table(self) -> Frame:
        """Loss by seed and variant of the bin that begins at `BEYOND` trained contexts."""
        columns = ("kind", "variant", "seed", "trained_context", "begin", "value")
        found = drawn(self, "positions.csv", columns)
        return found[(found["kind"] == "seed") & (found["begin"] == BEYOND * found["trained_context"])]

    def values(self, variant: str) -> dict[int, float]:
        """Bits per byte by seed."""
        mine = self.table[self.table["variant"] == variant].sort_values("seed")
        return {int(seed): float(value) for seed, value in zip(mine["seed"], mine["value"], strict=True)}


def claims() -> dict[tuple[str, str], Claim]:
    """Panel and end → the open question."""
    return {
        (panel, end): Claim(
            f"{panel}-{end}",
            f"Open, {name}: {ENDS[end]} fixed decay that was tried, against the official slopes.",
            Expects.open,
        )
        for panel, name in PANELS.items()
        for end in ENDS
    }


def factor(variant: str) -> float:
    """λ of a variant.

    >>> factor("fixed-0.997")
    0.997
    """
    return float(variant.removeprefix(FIXED))


def fixed(one: SuiteRecords) -> list[str]:
    """The variants with one λ, the strongest decay first, that have a value."""
    names = [name for name in one.variants if name.startswith(FIXED) and one.values(name)]
    return sorted(names, key=factor)


def build(records: Records) -> Built:
    """Each quantity over the memory of the decay, 1/(1 − λ) tokens, with that of the official slopes."""
    text = records.suites(TEXT) or records.suites(FALLBACK)
    beyond = [Beyond(**{part.name: getattr(one, part.name) for part in fields(one)}) for one in text]
    panels: dict[str, Sequence[SuiteRecords]] = {
        "loss": text,
        "recall": records.suites(RECALL),
        "beyond": [one for one in beyond if one.values(one.base)],
    }
    rows, findings = [], []
    for panel, suites in panels.items():
        for one in suites:
            share = one.measured.unit == "share"
            found = of_suites([one], {one.base: "official", **{name: _line(name) for name in fixed(one)}})
            rows += [replace(row, relative=NONE) if share else row for row in found]
        findings += _findings(panel, suites)
    suites = [*text, *panels["recall"]]
    notes = [
        note
        for one in suites
        for note in outcomes(one, {name: name for name in one.variants if name.startswith(FIXED)})
    ]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    stamps = [stamp for one in suites for stamp in one.stamps]
    return Built(_figure(panels, findings, ids), rows, findings, stamps, notes)


def _line(variant: str) -> str:
    return f"λ = {factor(variant):g}"


def _findings(panel: str, suites: Sequence[SuiteRecords]) -> list[Finding]:
    """What the strongest and the weakest decay do, and where the best of those tried lies."""
    found = []
    for one in suites:
        names = fixed(one)
        if len(names) < 2:
            continue
        best = min(names, key=lambda name: one.mean(name).mean)
        for end, variant in zip(ENDS, (names[0], names[-1]), strict=True):
            said = finding(claims()[panel, end], one, variant)
            least = f"lowest of {words.counted(len(names), 'fixed decay')}: {_line(best)}"
            text = f"{_line(variant)}: {said.because}; {least}, {words.mean(one.mean(best))}"
            found.append(replace(said, because=text))
    command = of_suite(SUITE[panel])
    missing = [Finding(claims()[panel, end], Verdict.missing, command=command) for end in ENDS]
    return found or missing


@dataclass(frozen=True)
class Memories:
    """Where a decay stands on the axis of memories: λ = 1, which keeps all, a step after the longest."""

    factors: Sequence[float]

    @cached_property
    def places(self) -> Mapping[float, float]:
        """λ → tokens of memory, 1/(1 − λ)."""
        found = {value: 1 / (1 - value) for value in self.factors if value < 1}
        last = max(found.values(), default=1.0)
        return found | ({1.0: 4 * last} if 1 in self.factors else {})

    def draw(self, axes: Axes) -> None:
        """Ticks with λ, and the memory under it."""
        axes.set_xlim(min(self.places.values()) / 1.6, 1.6 * max(self.places.values()))
        axes.set_xscale("log")
        labels = [f"{value:g}\n{_tokens(value)}" for value in self.places]
        axes.set_xticks(list(self.places.values()), labels, fontsize=FONT - 2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("λ, and its memory 1/(1 − λ) in tokens", fontsize=FONT - 2)


def _tokens(value: float) -> str:
    return "all" if value == 1 else f"{1 / (1 - value):,.0f}"


def _figure(
    panels: Mapping[str, Sequence[SuiteRecords]], findings: Sequence[Finding], ids: Sequence[str]
) -> Figure:
    figure = drawing.canvas(3.0 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        under = (
            "One λ in every head and layer, strong decays on the left. Dots: means with 95 % t intervals; "
            "line and band: the official slopes, which differ by head and layer. The paper has no such test."
        )
        settings = {one.where: scale(one) for suites in panels.values() for one in suites}
        note = "; ".join(f"{where}: {text}" for where, text in settings.items())
        top = drawing.head(figure, ABOUT.title, under) + 0.2
        bottom = drawing.foot(figure, ids, note) + 0.55
        axes = drawing.band(figure, top, bottom, [1, 1, 1], left=0.06, right=0.985, wspace=0.24)
        for panel, (name, suites) in zip(axes, panels.items(), strict=True):
            mine = [one for one in findings if one.claim.name.startswith(name)]
            _panel(panel, PANELS[name], suites, mine)
    return figure


def _panel(axes: Axes, title: str, suites: Sequence[SuiteRecords], findings: Sequence[Finding]) -> None:
    unit = suites[0].measured.unit if suites else ""
    axes.set_title(f"{title} ({unit})" if unit else title, fontsize=FONT - 0.5)
    suites = [one for one in suites if len(fixed(one)) > 1]
    if not suites:
        drawing.unmeasured(axes)
        return
    memories = Memories(sorted({factor(name) for one in suites for name in fixed(one)}))
    for number, one in enumerate(suites):
        color = INK if number == 0 else PALETTE[number]
        names = fixed(one)
        xs = [memories.places[factor(name)] for name in names]
        means = [one.mean(name) for name in names]
        ys = [mean.mean for mean in means]
        axes.plot(xs, ys, "o", color=color, markersize=3.6)
        limited = sum(factor(name) < 1 for name in names)
        axes.plot(xs[:limited], ys[:limited], color=color, linewidth=1)
        for x, mean in zip(xs, means, strict=True):
            if mean.exists:
                axes.plot([x, x], [mean.low, mean.high], color=color, linewidth=0.9, alpha=0.6)
        _base(axes, one.mean(one.base))
    ends = [f"{text}: {one.verdict}" for text, one in zip(("strongest", "weakest"), findings, strict=False)]
    axes.text(
        0.5, 0.99, "\n".join(ends), transform=axes.transAxes, ha="center", va="top", fontsize=FONT - 1.5,
        color=drawing.QUIET,
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))
    drawing.plain_ticks(axes.yaxis)
    memories.draw(axes)


def _base(axes: Axes, mean: Interval) -> None:
    """The official slopes: a line with a band."""
    color = PALETTE[0]
    axes.axhline(mean.mean, color=color, linewidth=1)
    if mean.exists:
        axes.axhspan(mean.low, mean.high, color=color, alpha=0.13, linewidth=0)
    if math.isfinite(mean.mean):
        axes.annotate(
            "official slopes", (1, mean.mean), xycoords=axes.get_yaxis_transform(), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize=FONT - 1.5, color=color,
        )  # fmt: skip
