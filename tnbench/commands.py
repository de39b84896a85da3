"""How a command ends: its exit status, and one line where something was wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from tnbench.errors import INTERRUPTED, RequestError

WRONG_REQUEST = 2

_left: list[int] = []
"""The status with which a command has ended after saying how."""


def leave(status: int) -> NoReturn:
    """End a command that has said how it ended."""
    _left.append(status)
    raise typer.Exit(status)


def run(app: Callable[..., Any], arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0 done, 1 something failed, 2 a wrong request, 130 interrupted.

    Args:
        app: a Typer app.
        arguments: those of this process by default; `--debug` shows tracebacks.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = app(arguments, standalone_mode=False)
        if status == INTERRUPTED and not _left:  # the parser has caught Ctrl-C
            _fail("interrupted before anything was run", INTERRUPTED, debug)
        sys.exit(status if isinstance(status, int) else 0)
    except RequestError as error:
        _fail(str(error), WRONG_REQUEST, debug)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of a pipe has gone, as in `tnbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            _fail(error.format_message(), WRONG_REQUEST, debug)  # type: ignore[attr-defined]
        if type(error).__name__ == "Abort":
            _fail("interrupted", INTERRUPTED, debug)
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)


def run_alone(function: Callable[..., Any], arguments: list[str] | None = None) -> NoReturn:
    """Run a function of a module as the only command of its line: `python -m tnbench.…`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run(app, arguments)


def _fail(message: str, status: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    typer.echo(f"tnbench: {shown}", err=True)
    sys.exit(status)
