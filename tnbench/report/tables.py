"""Tables of a suite: every run, one row per variant, and that row in Markdown, LaTeX and on the terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from tnbench.report import words
from tnbench.report.results import OUTCOMES, RUN_COLUMNS, Frame, SuiteResults, VariantSummary

COUNTS = (
    *("seed", "stopped_step", "steps", "tokens", "attempts", "peak_memory_bytes", "state_size"),
    *("parameters", "non_embedding_parameters"),
)
"""Columns of whole numbers, which a missing value would turn into floats."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its head and, where it has one, its unit."""

    head: str
    unit: str = ""
    numeric: bool = True

    @property
    def title(self) -> str:
        """`speed (tokens/s)`."""
        return f"{self.head} ({self.unit})" if self.unit else self.head


@dataclass(frozen=True)
class Cell:
    """What is printed, and what the column is sorted by."""

    text: str
    key: float | str


def runs(results: SuiteResults) -> pd.DataFrame:
    """Every planned run, sorted by variant, seed and run id: the content of `runs.csv`."""
    extra = [name for name in results.runs if name not in RUN_COLUMNS]
    frame = results.runs[[*RUN_COLUMNS, *extra]].sort_values(["variant", "seed", "run_id"], kind="stable")
    return _whole_numbers(frame)


def summary(results: SuiteResults) -> pd.DataFrame:
    """One row per variant, the base first: the content of `summary.csv`.

    `mean`, `low`, `high` and the differences are in `unit`; `difference_p` is the paired t-test's.
    """

    def row(one: VariantSummary) -> dict[str, object]:
        difference = one.difference
        return {
            "variant": one.variant,
            "diff": words.diff(one.diff, one.variant == results.base),
            "metric": results.metric,
            "unit": results.measured.unit,
            "planned": one.planned,
            **{name: one.outcomes[name] for name in OUTCOMES},
            "n": one.metric.n,
            "mean": one.metric.mean,
            "low": one.metric.low,
            "high": one.metric.high,
            "alpha": results.alpha,
            "difference": difference and difference.mean,
            "difference_low": difference and difference.low,
            "difference_high": difference and difference.high,
            "difference_pairs": difference and difference.n,
            "difference_p": difference and difference.p,
            "parameters": one.parameters,
            "non_embedding_parameters": one.non_embedding_parameters,
            "flops_per_token": one.flops_per_token,
            "state_size": one.state_size,
            "tokens_per_second": one.tokens_per_second,
            "speed_ratio": one.speed_ratio,
            "peak_memory_bytes": one.peak_memory_bytes,
        }

    frame = pd.DataFrame([row(one) for one in results.summaries])
    return _whole_numbers(frame.astype({"difference_pairs": "Int64"}))


def _whole_numbers(frame: Frame) -> pd.DataFrame:
    numbers = {name: frame[name].astype(float) for name in COUNTS if name in frame}
    whole = {name: "Int64" for name, column in numbers.items() if (column.dropna() % 1 == 0).all()}
    return frame.assign(**{name: numbers[name] for name in whole}).astype(whole)


def columns(results: SuiteResults) -> list[Column]:
    """The columns of the printed table."""
    unit = results.measured.unit
    return [
        Column("variant", numeric=False),
        Column("change", numeric=False),
        Column("parameters"),
        Column("n", numeric=False),
        Column(f"{results.measured.label} ↓", unit),
        Column("difference to base", unit),
        Column("speed", "tokens/s"),
        Column("memory"),
    ]


def cells(results: SuiteResults) -> list[list[Cell]]:
    """The printed table's rows, the base first, each with one cell per column."""

    def row(one: VariantSummary) -> list[Cell]:
        difference = 0.0 if one.difference is None else one.difference.mean
        change = words.diff(one.diff, one.variant == results.base)
        return [
            Cell(one.variant, one.variant),
            Cell(change, change),
            Cell(words.short(one.non_embedding_parameters), one.non_embedding_parameters),
            Cell(words.outcomes(one.outcomes), one.outcomes["finished"]),
            Cell(words.mean(one.metric), one.metric.mean),
            Cell(words.difference(one.difference, one.metric.n), difference),
            Cell(words.speed(one.tokens_per_second, one.speed_ratio), one.tokens_per_second),
            Cell(words.memory(one.peak_memory_bytes), one.peak_memory_bytes),
        ]

    return [row(one) for one in results.summaries]


def caption(results: SuiteResults) -> str:
    """What the numbers are, and what they hold for."""
    metric, coverage = results.measured, results.coverage
    lines = [
        f"{metric.label.capitalize()} in {metric.unit}, lower is better: mean ± half width of the "
        f"{coverage} t interval over finished runs.",
        f"Difference to the base {results.base}: paired by seed, with its {coverage} t interval, not "
        "corrected for the number of comparisons.",
        "n: finished runs of planned ones. Parameters: without embeddings. Speed and memory: medians over "
        "finished runs, the memory at its peak; in brackets, times the base's speed.",
    ]
    shown = ("corpus", "context", "tokens per run", "device")
    facts = "; ".join(f"{name}: {results.facts[name]}" for name in shown if results.facts.get(name))
    lines += [facts[0].upper() + facts[1:] + "."] if facts else []
    lines += [f"Holds only for: {results.fixed.rstrip('.')}."] if results.fixed else []
    return " ".join(lines)


def markdown(results: SuiteResults) -> str:
    """The table as GitHub-flavoured Markdown, with its caption below."""
    heads = columns(results)
    lines = [
        [escape_markdown(column.title) for column in heads],
        ["---:" if column.numeric else "---" for column in heads],
        *([escape_markdown(cell.text) for cell in row] for row in cells(results)),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{escape_markdown(results.title)}. {escape_markdown(caption(results))}\n"


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
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "–": "--",
    "…": r"\dots{}",
}


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    escaped = "".join(TEX.get(character, character) for character in " ".join(text.split()))
    return escaped.replace(r" \%", r"~\%")


def latex(results: SuiteResults) -> str:
    """The table as a LaTeX float over two columns, with booktabs rules."""
    heads = columns(results)
    wide = {"change": r"p{0.125\linewidth}", "n": r"p{0.07\linewidth}"}
    layout = "".join(wide.get(column.head, "r" if column.numeric else "l") for column in heads)

    def line(texts: list[str]) -> str:
        ragged = [
            r"\raggedright " if column.head in wide and text else ""
            for column, text in zip(heads, texts, strict=True)
        ]
        return (
            " & ".join(start + escape_tex(text) for start, text in zip(ragged, texts, strict=True)) + r" \\"
        )

    rows = [line([cell.text for cell in row]) for row in cells(results)]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_tex(results.title)}. {escape_tex(caption(results))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', results.name)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        line([column.head for column in heads]),
        line([column.unit and f"({column.unit})" for column in heads]),
        r"\midrule",
        *rows[:1],
        *([r"\midrule"] if len(rows) > 1 else []),
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def terminal_table(results: SuiteResults) -> Table:
    """The table for the terminal, 80 columns wide: changes and sizes are left out, intervals stand below."""
    table = Table(title=Text(results.title, style="bold"), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.caption, table.caption_justify = Text(caption(results)), "left"
    heads = columns(results)
    kept = [index for index, column in enumerate(heads) if column.head not in ("change", "parameters")]
    rows = [
        [row[0].text, *(re.sub(r"(,?) (?=\d+ [a-z]|[\[(±])", r"\1\n", row[index].text) for index in kept[1:])]
        for row in cells(results)
    ]
    for place, column in enumerate(heads[index] for index in kept):
        lines = [*column.title.split(), *(line for row in rows for line in row[place].split("\n"))]
        width = min(24, max(map(len, lines)))
        justify = "right" if column.numeric else "left"
        table.add_column(Text(column.title), justify=justify, width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
