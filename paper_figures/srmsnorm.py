"""SRMSNorm in Triton against torch, over the number of tokens and over the width (v1 figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tnbench.paper_figures.shared import drawing, published
from tnbench.paper_figures.shared.about import About, Measure
from tnbench.paper_figures.shared.kernels import Machine, machines
from tnbench.paper_figures.shared.records import Records, stamps_of_kernels
from tnbench.paper_figures.shared.speed import judge
from tnbench.paper_figures.shared.tables import Built, Row, of_paper
from tnbench.paper_figures.shared.verdicts import Claim, Expects, Finding
from tnbench.profiling.kernels.store import Block
from tnbench.report.drawing import INK, PALETTE, style

ABOUT = About(
    "srmsnorm",
    "SRMSNorm: Triton against torch",
    "srmsnorm",
    Measure(
        kernels=("norm",),
        axes={
            "form": "srmsnorm",
            "mode": "forward,backward",
            "dtype": "bfloat16",
            "rows": "1k,4k,16k,64k",
            "width": "1k,2k,4k,8k,16k",
        },
    ),
)
FORM = "srmsnorm"
CURVES: dict[str, tuple[str, str, str]] = {
    "torch": ("torch, eager", PALETTE[1], "-"),
    "torch-compiled": ("torch, compiled", PALETTE[0], "-"),
    "triton": ("Triton, ours", INK, "-"),
    "copy": ("copy", PALETTE[2], "--"),
}
COPY = "copy"
PANELS = (("forward", "rows"), ("forward", "width"), ("backward", "rows"), ("backward", "width"))


def _claims() -> dict[str, tuple[Claim, str, str]]:
    """Name → claim, mode, and what Triton is compared with."""
    found = {}
    for mode in ("forward", "backward"):
        found[f"eager-{mode}"] = (
            Claim(
                f"eager-{mode}", f"Triton is faster than eager torch, {mode}, at every size.", Expects.lower
            ),
            mode,
            "torch",
        )
        found[f"compiled-{mode}"] = (
            Claim(
                f"compiled-{mode}",
                f"Not in the paper: Triton against compiled torch, {mode}.",
                Expects.open,
            ),
            mode,
            "torch-compiled",
        )
    return found


def build(records: Records) -> Built:
    """Times over tokens at one width and over the width at one number of tokens."""
    found = machines(records, "norm")
    rows, findings = list(_printed()), []
    for claim, mode, other in _claims().values():
        measured = [one for one in found if _points(one, mode)]
        for machine in measured or [None]:
            finding, more = _judged(claim, machine, mode, other)
            rows, findings = rows + more, [*findings, finding]
    for machine in found:
        for mode in ("forward", "backward"):
            rows += machine.rows(_points(machine, mode), "time", _setting(machine), list(CURVES))
    stamps = [stamp for one in found for stamp in stamps_of_kernels(one.where, one.records, "norm")]
    return Built(_figure(rows), rows, findings, stamps)


def _judged(claim: Claim, machine: Machine | None, mode: str, other: str) -> tuple[Finding, list[Row]]:
    if machine is None:
        return judge(claim, [], command=ABOUT.measure.command)
    pairs = machine.pairs(_points(machine, mode), "triton", other, _setting(machine))
    return judge(claim, pairs, command=ABOUT.measure.command)


def _setting(machine: Machine) -> str:
    return f"{machine.device}, bf16"


def _points(machine: Machine, mode: str) -> dict[str, Block]:
    """`tokens × width` → block."""
    blocks = [
        block
        for block in machine.blocks
        if block.case["mode"] == mode
        and block.case["dtype"] == "bfloat16"
        and block.case["shape"].get("form", FORM) == FORM
    ]
    ordered = sorted(blocks, key=lambda block: (block.case["shape"]["width"], block.case["shape"]["rows"]))
    return {f"{one.case['shape']['rows']} × {one.case['shape']['width']}": one for one in ordered}


def _printed() -> list[Row]:
    table = published.efficiency("srmsnorm")
    log = table["log"]
    return [
        of_paper(
            column.split()[0], "code", f"time, {column.split()[1]}", log["unit"], value,
            setting=f"batch {log['batch']}, bf16, GPU not named",
            at=f"{log['batch'] * length} × {log['width']}",
            where="official log",
        )
        for length, values in log["rows"].items()
        for column, value in zip(log["columns"], values, strict=True)
    ]  # fmt: skip


def _figure(rows: Sequence[Row]) -> Figure:
    ours = [row for row in rows if row.ours and row.measure.startswith("time")]
    ids = list(dict.fromkeys(run for row in rows for run in row.runs))
    figure = drawing.canvas(3.0 + 0.085 * len(drawing.id_lines(ids)))
    with style():
        device = ours[0].setting if ours else "not measured yet"
        under = (
            f"Ours: {device}. Shown: the time over that of a copy, which reads and writes the same bytes. "
            "The paper prints no numbers; the official log has 8 to 10 times the speed of eager torch."
        )
        top = drawing.head(figure, ABOUT.title, under)
        bottom = drawing.foot(figure, ids) + 0.4
        axes = drawing.band(figure, top + 0.2, bottom, [1] * 4, left=0.06, right=0.9, wspace=1.3)
        for panel, (mode, along) in zip(axes, PANELS, strict=True):
            _panel(panel, mode, along, [row for row in ours if row.measure == f"time, {mode}"])
        figure.draw_without_rendering()
        for panel in axes:
            drawing.spread(panel)
    return figure


def _panel(axes: Axes, mode: str, along: str, rows: Sequence[Row]) -> None:
    """Over tokens at the width in the middle of those measured, or over the width at the fewest tokens."""
    axes.set_xlabel("tokens" if along == "rows" else "width")
    sizes = {row.at: tuple(map(int, row.at.split(" × "))) for row in rows}
    copies = {row.at: row.value.mean for row in rows if row.subject == COPY}
    if not copies:
        axes.set_title(mode, fontsize=6.5)
        drawing.unmeasured(axes)
        return
    place = 0 if along == "rows" else 1
    values = sorted({sizes[at][1 - place] for at in copies})
    held = values[len(values) // 2] if along == "rows" else values[0]
    shown = {at: sizes[at][place] for at in copies if sizes[at][1 - place] == held}
    name = "width" if along == "rows" else "tokens"
    axes.set_title(f"{mode}, {name} {drawing.thousands(held)} (× copy)", fontsize=6.5)
    axes.set_xscale("log", base=2)
    for subject, (label, color, line) in CURVES.items():
        mine = sorted(
            (shown[row.at], row.value.mean / copies[row.at])
            for row in rows
            if row.subject == subject and row.at in shown
        )
        if mine:
            xs, ys = zip(*mine, strict=True)
            drawing.curve(axes, xs, ys, label, color=color, linestyle=line, marker="o")
    axes.margins(y=0.25)
    drawing.powers(axes.xaxis, sorted(shown.values()))
    drawing.plain_ticks(axes.yaxis)
