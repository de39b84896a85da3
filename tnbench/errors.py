"""What is told to the user in one line, and how near names are found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
