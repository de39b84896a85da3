"""The table of a suite in Markdown, in LaTeX and on the terminal."""

from __future__ import annotations

import math
import re
from functools import reduce

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from tnbench.report import captions, eval_captions, eval_tables, tables, words
from tnbench.report.results import SuiteResults, VariantSummary
from tnbench.report.tables import Grid


def markdown(results: SuiteResults) -> str:
    """The table as GitHub-flavoured Markdown, with its caption below, and below that the evaluations."""
    whole = reduce(Grid.beside, eval_tables.parts(results))
    caption = f"{escape_markdown(results.title)}. {escape_markdown(captions.caption(results))}"
    texts = [_markdown(whole), caption]
    if eval_tables.shown(results):
        texts += [_markdown(grid) for grid in eval_tables.evaluations(results)]
        texts.append(escape_markdown(" ".join(eval_captions.caption(results))))
    return "\n\n".join(texts) + "\n"


def _markdown(grid: Grid) -> str:
    lines = [
        [escape_markdown(column.title) for column in grid.columns],
        ["---:" if column.numeric else "---" for column in grid.columns],
        *([escape_markdown(cell.text) for cell in row] for row in grid.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    """Text in which Markdown and HTML mean nothing; underscores inside words already do."""
    text = re.sub(r"([\\`*\[\]<>&|#~$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "σ": "sigma",
    "φ": "phi",
}
TEX = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    **{character: f"{{{character}}}" for character in "[]*"},  # \\ would take them for its own arguments
    **{character: rf"$\{name}$" for character, name in GREEK.items()},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "–": "--",
    "…": r"\dots{}",
}


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    escaped = "".join(TEX.get(character, character) for character in " ".join(text.split()))
    return escaped.replace(r" \%", r"~\%")


TEX_WIDTHS = {"change": 0.14, "n": 0.075, "verdict": 0.125, "task": 0.115, "chance": 0.085}
"""Widths of the columns whose texts may wrap, as shares of the line."""


def latex(results: SuiteResults) -> str:
    """The table as a LaTeX float over two columns, with booktabs rules.

    The metric with its verdict stands above the costs: side by side they would not fit on a page. Evaluations
    stand between them.
    """
    caption = " ".join([captions.caption(results), *eval_captions.caption(results)])
    evaluated = eval_tables.evaluations(results) if eval_tables.shown(results) else []
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_tex(results.title)}. {escape_tex(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', results.name)}}}",
        *_tabular(tables.quality(results)),
        *(line for grid in evaluated for line in (r"\par\medskip", *_tabular(grid))),
        r"\par\medskip",
        *_tabular(tables.costs(results)),
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _tabular(grid: Grid) -> list[str]:
    def line(texts: list[str]) -> str:
        ragged = [
            r"\raggedright " if column.wraps and text else ""
            for column, text in zip(grid.columns, texts, strict=True)
        ]
        return (
            " & ".join(start + escape_tex(text) for start, text in zip(ragged, texts, strict=True)) + r" \\"
        )

    layout = "".join(
        rf"p{{{TEX_WIDTHS.get(column.head, 0.12)}\linewidth}}"
        if column.wraps
        else "r"
        if column.numeric
        else "l"
        for column in grid.columns
    )
    rows = [line([cell.text for cell in row]) for row in grid.rows]
    return [
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        line([column.head for column in grid.columns]),
        line([column.unit and f"({column.unit})" for column in grid.columns]),
        r"\midrule",
        *rows[:1],
        *([r"\midrule"] if len(rows) > 1 else []),
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


def terminal_table(results: SuiteResults) -> Table:
    """The table for the terminal, 80 columns wide: what has no column of its own stands in further lines."""
    table = Table(title=Text(results.title, style="bold"), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.caption, table.caption_justify = Text(captions.brief(results)), "left"
    unit = results.measured.unit
    names = f"variant, {' and '.join(map(words.key, results.grid))}" if results.choices else "variant"
    heads: dict[str, JustifyMethod] = {
        names: "left",
        "n": "left",
        f"{results.measured.label} ↓ ({unit})": "right",
        f"difference to base ({unit})": "right",
        "verdict, p (Holm)": "left",
        "tokens/s, memory": "right",
    }
    rows = [_stacked(results, one) for one in results.summaries]
    most = dict(zip(heads, (80, 8, 12, 20, 14, 9), strict=True))
    widths = {
        head: min(most[head], max(map(len, [*head.split(), *(line for row in rows for line in row[place])])))
        for place, head in enumerate(heads)
    }
    others = sum(widths.values()) - widths[names] + len(widths)
    widths[names] = min(widths[names], 80 - others)
    for head, justify in heads.items():
        table.add_column(Text(head), justify=justify, width=widths[head], overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(lines)) for lines in row))
    return table


def _stacked(results: SuiteResults, one: VariantSummary) -> list[list[str]]:
    """The cells of a row, each as its lines."""
    name, verdict = [one.variant], [words.NOTHING]
    if one.variant in results.repeats:
        name.append("(A/A)")
    if one.choice:
        name += [words.chosen(one.choice), f"{one.choice.trials} trials"]
    if one.comparison:
        verdict = re.split(r" (?=\(|but)|(?<=about) |(?<=equivalent) ", words.verdict(one.comparison))
        p = one.comparison.p_holm
        verdict += [words.p_is(p, results.alpha)] if math.isfinite(p) else []
    return [
        name,
        _broken(words.outcomes(one.outcomes)),
        _broken(words.mean(one.metric)),
        _broken(words.difference(one.difference, one.metric.n)),
        verdict,
        [
            *_broken(words.speed(one.tokens_per_second, one.speed_ratio)),
            words.memory(one.peak_memory_bytes),
        ],
    ]


def _broken(text: str) -> list[str]:
    """A number, and in lines of their own its interval and what else stands beside it."""
    return re.sub(r"(,?) (?=\d+ [a-z]|[\[(±])", r"\1\n", text).split("\n")
