"""Where a campaign of measurements stands, and how that is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tnbench.report.words import counted, duration


@dataclass
class Progress:
    """Where a campaign stands."""

    points: int
    done: int = 0
    skipped: int = 0
    first: float | None = None
    """When the first point was measured, on the monotonic clock."""
    point: str = ""
    """The one in hand or, after it, the last one."""
    doing: str = ""
    result: str = ""
    """Of the last finished point."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows measured now, by status."""
    stopped: str = ""
    """Why it ended early: `interrupted`, `time limit` or empty."""

    def seconds_left(self) -> float | None:
        """From the points measured after the first, which pays for the start; None before there is one."""
        measured = self.done - self.skipped
        if self.first is None or measured < 2:
            return None
        return (time.monotonic() - self.first) / (measured - 1) * (self.points - self.done)


class TimeIsUp(Exception):
    """The time limit has been reached inside a point, which is given up."""


class Watcher:
    """Shows a campaign: one line that changes on a terminal, a line per point elsewhere."""

    def __init__(self, console: Console, each_step: bool = False) -> None:
        """`each_step`: what is done within a point is told elsewhere too, where a step may take minutes."""
        self.console, self.each_step = console, each_step
        self.told = -1
        self.told_step = ""
        self.status: Any = console.status("starting") if console.is_terminal else None

    def __enter__(self) -> Watcher:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status:
            self.status.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the campaign stands."""
        left = progress.seconds_left()
        rest = f", about {duration(left)} left" if left else ""
        head = f"[{progress.done}/{progress.points}]"
        if self.status:
            self.status.update(f"{head} {progress.point}: {progress.doing}{rest}")
            return
        if self.each_step and progress.doing != self.told_step:
            self.told_step = progress.doing
            self.console.print(f"{head} {progress.point}: {progress.doing}", highlight=False, soft_wrap=True)
        if progress.done != self.told and progress.done > progress.skipped:
            self.told = progress.done
            line = f"{head} {progress.point}: {progress.result}{rest}"
            self.console.print(line, highlight=False, soft_wrap=True)


def conclude(progress: Progress, folder: Path | None, hidden: int, kind: str, console: Console) -> None:
    """The closing lines of a campaign.

    Args:
        folder: where tables and plots are, None if none were written.
        hidden: points measured now that the tables leave out.
        kind: of what the tables show the measurement with most: implementations, variants.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    if hidden:
        say(
            f"note: of what was measured now, {counted(hidden, 'point')} can be found in the records alone: "
            f"the tables above show the measurement of most {kind}; another --results folder shows them"
        )
    counts = ", ".join(f"{count} {status}" for status, count in sorted(progress.rows.items()))
    measured = f"{progress.done - progress.skipped} measured ({counts})" if counts else "none measured"
    written = f" Tables and plots: {folder}" if folder else ""
    say(f"{counted(progress.points, 'point')}: {measured}, {progress.skipped} there already.{written}")
    if progress.stopped:
        left = progress.points - progress.done
        say(
            f"{progress.stopped}: finished points are kept, {left} {'is' if left == 1 else 'are'} left; "
            "the same command goes on from there"
        )
