"""Times that others have published, as reference rows beside measured ones (published.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tnbench.profiling.kernels.cases import Case


class Published(NamedTuple):
    """One published time: what was measured, by whom, in seconds, on which GPU, and where it stands."""

    case: Case
    implementation: str
    seconds: float
    device: str
    source: str


def published() -> list[Published]:
    """All of them, in the order of the file."""
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
    rows = []
    for line in data["milliseconds"]:
        shape = {name: line[name] for name in ("batch", "length", "heads")}
        shape |= {"key_dim": line["dim"], "value_dim": line["dim"], "decay": "geometric"}
        for name in ("helion", "flash-linear-attention"):
            for mode, milliseconds in zip(("forward", "both"), line[name], strict=True):
                case = Case(data["operator"], mode, data["dtype"], shape)
                seconds = milliseconds / 1e3
                rows.append(Published(case, f"{name} (published)", seconds, data["device"], data["source"]))
    return rows
