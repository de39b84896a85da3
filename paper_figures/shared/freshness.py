"""Whether records are still those of the code: by the hash of the source behind them.

Another hash makes records stale. Where a change is known to have left the numbers as they were, `code.yaml`
in the folder of the records says so, and how that was seen; the check then takes one hash for the other.
`repeating` sees to it, by training runs again:

    - {kind: training, records: 45badbb18ee1, code: 4f9657f3bf9d, seen: "tnbench train --from …: the same"}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from tnbench.errors import RequestError
from tnbench.paper_figures.shared.tables import Stamp

FILE = "code.yaml"
KEYS = {"kind", "records", "code", "seen"}


def read(root: Path) -> list[dict[str, str]]:
    """The entries of `code.yaml`; none where there is no such file.

    Raises:
        RequestError: the file is not such a list.
    """
    path = root / FILE
    if not path.exists():
        return []
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not all(set(line) == KEYS and line["seen"] for line in lines):
            raise ValueError
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RequestError(
            f"{path}: expected a list of entries with the keys {', '.join(sorted(KEYS))}"
        ) from error
    return lines


def stale(stamps: Iterable[Stamp], root: Path) -> list[Stamp]:
    """The records that other code made, each folder and hash once.

    Raises:
        RequestError: as `read`.
    """
    known = {tuple(str(line[name]) for name in ("kind", "records", "code")) for line in read(root)}
    return [
        stamp
        for stamp in dict.fromkeys(stamps)
        if stamp.stale and (stamp.kind, stamp.code, stamp.present) not in known
    ]
