"""What all figures of a report share: colours, fonts, sizes, and how they are saved.

A variant has one colour everywhere: the base is drawn in ink, the others in Okabe and Ito's palette
(Color Universal Design, 2008), which most colour-blind readers can tell apart. After six the
colours return, dashed and with square marks; the names stand beside the lines in any case.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from tnbench.report.results import SuiteResults

INK = "#1a1a1a"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WIDTH = 7.0
"""Width in inches: both columns of a two-column page."""
FONT = 7.0
"""Font size in points."""
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": FONT,
    **dict.fromkeys(("axes.labelsize", "axes.titlesize"), FONT),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), FONT - 0.5),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.5),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "tnbench",
    "savefig.dpi": 300,
}


@contextmanager
def style() -> Iterator[None]:
    """The settings under which figures are drawn and saved."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def looks(results: SuiteResults) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of every variant."""
    rounds = [
        {"linestyle": "-", "marker": "o"},
        {"linestyle": (0, (4, 1.2)), "marker": "s"},
        {"linestyle": (0, (1, 1)), "marker": "^"},
        {"linestyle": (0, (6, 1, 1, 1)), "marker": "D"},
    ]
    found = {results.base: {"color": INK, **rounds[0]}}
    for index, variant in enumerate(results.variants[1:]):
        again, color = divmod(index, len(PALETTE))
        found[variant] = {"color": PALETTE[color], **rounds[again % len(rounds)]}
    return found


def elided(name: str, longest: int = 20) -> str:
    """A name of at most so many letters; a long one loses its middle."""
    return name if len(name) <= longest else f"{name[: longest - 9]}…{name[-8:]}"


def inches(text: str) -> float:
    """Width of a text in the figures' font."""
    font = FontProperties(family=STYLE["font.family"], size=FONT)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def save(figure: Figure, format: str, **options) -> bytes:
    """The figure as a png, pdf or svg file, without dates: the same figure, the same bytes."""
    metadata: dict[str, None] = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    }[format]
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=format, metadata=metadata, **options)
    return buffer.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as an SVG element for a page: transparent, its ink in the page's text colour."""
    source = save(figure, "svg", transparent=True).decode()
    source = source[source.index("<svg") :].replace(INK, "currentColor")
    source = re.sub(r"<metadata>.*?</metadata>\s*", "", source, flags=re.DOTALL)
    source = re.sub(r"<!--.*?-->\s*", "", source, flags=re.DOTALL)
    head, rest = source.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest
