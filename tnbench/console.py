"""Where commands print: a terminal, or a file or pipe."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class _Quiet(Console):
    """Goes on without output where the reader of a pipe has gone: a suite is not stopped by `| head`."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """A console on stdout; to a file or pipe, plain and wide enough for a table's rows. A closed one shows
    nothing."""
    if sys.stdout is None:
        return _Quiet(markup=False, file=open(os.devnull, "w"))
    if sys.stdout.isatty():
        return _Quiet(markup=False)
    columns = os.environ.get("COLUMNS", "")
    return _Quiet(markup=False, width=int(columns) if columns.isdigit() else 160)
