"""`tnbench figures NAME --run`: the project's own commands, first for their plan, then for their records.

They are started as processes of their own, so that Ctrl-C, resuming and progress are theirs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tnbench.errors import INTERRUPTED, RequestError
from tnbench.paper_figures.shared.about import About


def require_measurable(abouts: Sequence[About]) -> None:
    """Refuse what no command measures.

    Raises:
        RequestError: a figure needs several GPUs, or a model that only the user can name.
    """
    for about in abouts:
        if about.measure.arithmetic:
            raise RequestError(f"{about.name} needs no measurement: it follows from the paper's own numbers")
        if about.measure.later:
            raise RequestError(f"{about.name} cannot be measured: {about.measure.later}")
        if about.measure.evaluation:
            raise RequestError(
                f"{about.name}: which models are asked, only you can say: tnbench eval RUN --tasks paper"
            )


def measure(abouts: Sequence[About], results: Path, console: Console) -> int:
    """Say how long the commands behind figures will take, then run them, each once.

    Args:
        results: where the records go.

    Returns:
        The exit status: 0, or that of the first command that failed or was interrupted.
    """
    takes = {one: about.measure.takes for about in abouts for one in about.measure.command.split("; ")}
    commands = list(takes)
    for command in commands:
        console.print(f"to be measured: {command}", highlight=False, soft_wrap=True)
        if command.startswith("tnbench"):
            if status := _run([*_words(command), "--plan", "--results", str(results)]):
                return status
        else:
            console.print(takes[command], highlight=False)
    for command in commands:
        if status := _run([*_words(command), "--results", str(results)]):
            console.print(
                f"{command} ended with status {status}; what it recorded is kept, the same command goes on",
                highlight=False,
                soft_wrap=True,
            )
            return status
    return 0


def _words(command: str) -> list[str]:
    """A command as this Python runs it."""
    first, *rest = shlex.split(command)
    return [sys.executable, "-m", "tnbench.cli", *rest] if first == "tnbench" else [sys.executable, *rest]


def _run(words: Sequence[str]) -> int:
    try:
        return subprocess.run(words, check=False).returncode
    except KeyboardInterrupt:
        return INTERRUPTED
