"""A progress bar for what turns out to take long."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PATIENCE = 2.0  # seconds


class Meter:
    """A bar on stderr that appears after two seconds, and only on a terminal."""

    def __init__(self, title: str, total: int, *, quiet: bool) -> None:
        self._title, self._total = title, total
        self._done, self._start = 0, time.monotonic()
        console = Console(stderr=True)
        self._console = None if quiet or not console.is_terminal else console
        self._bar: Progress | None = None

    def advance(self, amount: int) -> None:
        """Count `amount` of the total as done."""
        self._done += amount
        if self._console is None or time.monotonic() - self._start < PATIENCE:
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=self._done)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
