"""The table of a figure as it is read: a few columns, numbers rounded by their intervals; and as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tnbench.paper_figures.shared.tables import Built, Row
from tnbench.report import words
from tnbench.report.formats import escape_tex
from tnbench.report.tables import Cell, Column, Grid
from tnbench.statistics import Interval

LONG = 32
"""Rows of a LaTeX table from which on it may break across pages."""
WIDTHS = {
    "what": 0.14,
    "against": 0.135,
    "source": 0.08,
    "measure": 0.12,
    "difference": 0.1,
    "relative": 0.1,
    "verdict": 0.11,
}
"""Columns of the LaTeX table whose texts wrap, and their share of the line."""


def grid(rows: Sequence[Row]) -> Grid:
    """The rows under the columns that a reader needs; columns that say nothing are left out."""
    columns = [
        Column("what", numeric=False, wraps=True),
        Column("at", numeric=False),
        Column("against", numeric=False),
        Column("source", numeric=False, wraps=True),
        Column("measure", numeric=False, wraps=True),
        Column("value"),
        Column("n"),
        Column("difference"),
        Column("relative"),
        Column("verdict", numeric=False, wraps=True),
    ]
    cells = [
        [
            Cell.word(row.subject),
            Cell(row.at or words.NOTHING, _leading(row.at)),
            Cell.word(row.against or words.NOTHING),
            Cell.word(row.source if row.ours else row.where),
            Cell.word(f"{row.measure} ({row.unit})"),
            Cell(value(row), row.value.mean),
            Cell(str(row.value.n), row.value.n),
            Cell(difference(row.difference), row.difference.mean),
            Cell(relative(row.relative), row.relative.mean),
            Cell.word(verdict(row)),
        ]
        for row in rows
    ]
    kept = [
        place
        for place in range(len(columns))
        if any(line[place].text != words.NOTHING for line in cells) or columns[place].head == "value"
    ]
    return Grid([columns[place] for place in kept], [[line[place] for place in kept] for line in cells])


def _leading(at: str) -> float | str:
    """What a column of lengths and sizes is sorted by."""
    found = re.match(r"[\d.]+", at)
    return float(found.group()) if found else at


def value(row: Row) -> str:
    """`2.543 ± 0.014`, `9.45 [9.30, 9.61]` for a ratio, or a printed number as it was printed."""
    found = row.value
    if not math.isfinite(found.mean):
        return "out of memory" if row.note == "out of memory" else words.NOTHING
    if not found.exists:
        return plain(found.mean)
    if row.unit == "times as fast":
        places = words.decimals(found.half_width)
        ends = ", ".join(words.number(end, places) for end in (found.low, found.high))
        return f"{words.number(found.mean, places)} [{ends}]"
    if row.unit == "steps":
        return f"{found.low:.0f} to {found.high:.0f}"
    return words.mean(found)


def plain(number: float) -> str:
    """A number without an interval: four significant digits, or all of a printed one.

    >>> plain(2.248), plain(38615.0), plain(0.03326399)
    ('2.248', '38,615', '0.03326')
    """
    if abs(number) >= 1000:
        return f"{number:,.0f}".replace("-", words.MINUS)
    return f"{number:.4g}".replace("-", words.MINUS)


def difference(found: Interval) -> str:
    """`+0.114` printed, `−0.10 [−0.30, +0.11]` with an interval."""
    if not math.isfinite(found.mean):
        return words.NOTHING
    return words.difference(found) if found.exists else f"{found.mean:+.4g}".replace("-", words.MINUS)


def relative(found: Interval) -> str:
    """`+5.1 %`, `−4.0 % [−11.5, +4.1]`."""
    if not math.isfinite(found.mean):
        return words.NOTHING
    percent = f"{100 * found.mean:+.2g} %" if abs(found.mean) < 0.1 else f"{100 * found.mean:+.3g} %"
    if found.exists:
        places = words.decimals(100 * found.half_width)
        ends = ", ".join(words.number(100 * end, places, sign=True) for end in (found.low, found.high))
        percent = f"{words.number(100 * found.mean, places, sign=True)} % [{ends}]"
    return percent.replace("-", words.MINUS)


def verdict(row: Row) -> str:
    """The comparison's words, and the claim's verdict."""
    parts = [text for text in (row.verdict, row.claim and f"claim {row.claim}", row.note) if text]
    return "; ".join(parts) or words.NOTHING


def latex(name: str, title: str, built: Built) -> str:
    """The table as LaTeX with booktabs rules; a long one as a longtable. The run ids stand in comments."""
    table = grid(built.rows)
    layout = "".join(
        rf"p{{{WIDTHS[column.head]}\linewidth}}" if column.head in WIDTHS else "r" if column.numeric else "l"
        for column in table.columns
    )
    heads = _line([Cell.word(column.head) for column in table.columns], table.columns)
    body = [_line(row, table.columns) for row in table.rows]
    count = f"Records: {len(built.runs)}, named in the source." if built.runs else "Not measured yet."
    caption = rf"{escape_tex(title)}. Differences are to what is named; intervals cover 95~\%. {count}"
    label = rf"\label{{tab:{name}}}"
    comments = [
        r"% needs \usepackage{booktabs,longtable}",
        *(f"% record {run}" for run in built.runs),
    ]
    if len(body) > LONG:
        return "\n".join(
            [
                *comments,
                r"{\scriptsize\setlength{\tabcolsep}{3pt}",
                rf"\begin{{longtable}}{{{layout}}}",
                rf"\caption{{{caption}}}{label}\\",
                r"\toprule", heads, r"\midrule", r"\endhead",
                *body,
                r"\bottomrule", r"\end{longtable}}",
            ]
        ) + "\n"  # fmt: skip
    return "\n".join(
        [
            *comments,
            r"\begin{table*}[t]",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{caption}}}{label}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule", heads, r"\midrule",
            *body,
            r"\bottomrule", r"\end{tabular}", r"\end{table*}",
        ]
    ) + "\n"  # fmt: skip


def _line(row: Sequence[Cell], columns: Sequence[Column]) -> str:
    """A row of the LaTeX table."""
    texts = []
    for cell, column in zip(row, columns, strict=True):
        ragged = r"\raggedleft " if column.numeric else r"\raggedright "
        texts.append((ragged if column.head in WIDTHS else "") + escape_tex(cell.text))
    return " & ".join(texts) + r" \tabularnewline"
