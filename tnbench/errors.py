"""What is told to the user in one line, and how near names are found."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has ended."""


class RequestError(ValueError):
    """The request was wrong: nothing has been run. The CLI prints the message as one line, exit status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` for a misspelt `name`, else the list of what is known.

    >>> nearest("srmsnrom", ["srmsnorm", "rmsnorm"])
    'did you mean srmsnorm?'
    >>> nearest("q", ["b", "a"])
    'known: a, b'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "known: " + ", ".join(known) if known else "none is known"


class _Quote(reprlib.Repr):
    """`repr` of a few elements, so that what refers to itself over and over, as YAML may, ends."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 3, 12, 12, 12, 12
        self.maxstring = self.maxother = 130

    def repr_int(self, x: int, level: int) -> str:
        """Python itself refuses to print integers of thousands of digits."""
        return repr(x) if abs(x) < 10**40 else f"an integer of about {round(0.30103 * x.bit_length())} digits"


def shortened(value: Any) -> str:
    """A value as it is quoted in a message, at most 60 characters of it."""
    text = _Quote().repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown(name: Any) -> str:
    """A key or name as it stands in a message: quoted and shortened only where it has to be."""
    plain = isinstance(name, str) and len(name) <= 60 and name.isprintable()
    return name if plain else shortened(name)


def first_line(error: BaseException) -> str:
    """`ValueError: what it says first`."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
