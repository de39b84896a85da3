"""`tnbench figures` on the command line; imported when it starts, so nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnbench.commands import leave

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Figures and tables (default: all); see --list."),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--records",
        metavar="DIR",
        help="Where the records are. Default: results/reference; with --run: results.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Where figures/ and report.html go. Default: beside the records."
    ),
]
Run = Annotated[
    bool, typer.Option("--run", help="Measure again on this machine first: says how long, and resumes.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Write nothing; say what is missing, stale or told otherwise.")
]
List = Annotated[bool, typer.Option("--list", help="List the figures and what measures them.")]


def figures(
    names: Names = None,
    records: From = None,
    out: Out = None,
    run: Run = False,
    check: Check = False,
    list_: List = False,
) -> None:
    """Rebuild the paper's tables and figures from records: ours beside the paper's, a verdict per claim."""
    from tnbench.console import console
    from tnbench.paper_figures.shared import command

    leave(
        command.figures(
            names or [], records=records, out=out, run=run, check=check, listing=list_, console=console()
        )
    )
