"""Numbers as they are typed in a request and printed in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tnbench.errors import RequestError, nearest
from tnbench.report.words import NOTHING


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """`1k,2k,4096` as numbers; None if the option is not given.

    >>> numbers("--length", "1k, 4096")
    (1024, 4096)

    Raises:
        RequestError: something that is no positive whole number.
    """
    if text is None:
        return None
    return tuple(dict.fromkeys(one_number(option, word) for word in text.split(",")))


def one_number(option: str, word: str) -> int:
    digits, factor = word.strip().lower(), 1
    if digits.endswith("k"):
        digits, factor = digits[:-1], 1024
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18 or int(digits) == 0:
        raise RequestError(f"{option}: {word.strip()!r} is no size; write whole numbers, as 1k,2k,4096")
    return int(digits) * factor


def names(option: str, text: str | None, known: Sequence[str]) -> tuple[str, ...] | None:
    """`forward,both` as names; None if the option is not given.

    Raises:
        RequestError: a name that is not known.
    """
    if text is None:
        return None
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if "" in found:
        raise RequestError(f"{option}: an empty name; write {','.join(known[:2])}, …")
    for name in found:
        if name not in known:
            raise RequestError(f"{option} {name}: {nearest(name, known)}")
    return found


def number(value: float | None) -> str:
    """Three significant digits, never as a power of ten.

    >>> number(0.01234), number(1234.5), number(None)
    ('0.0123', '1234', '–')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


def signed_percent(share: float) -> str:
    """A share as a whole per cent with its sign.

    >>> signed_percent(0.021), signed_percent(-0.051), signed_percent(-0.0001)
    ('+2 %', '−5 %', '0 %')
    """
    percent = round(100 * share)
    return f"{'+' if percent > 0 else '−' if percent < 0 else ''}{abs(percent)} %"


def place(value: int) -> str:
    """A length as it is typed: 4096 is `4k`.

    >>> place(4096), place(131072), place(1000)
    ('4k', '128k', '1000')
    """
    return f"{value // 1024}k" if value % 1024 == 0 else str(value)


def markdown_table(heads: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])
