"""Pages that give numbers of committed records: what they say is compared with what the records give."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "results" / "reference" / "kernels" / "nvidia-h100-80gb-hbm3"


def section(page: str, heading: str) -> str:
    """A section in one line, without links, commands and names of files."""
    text = re.sub(r"<!--.*?-->", "", (ROOT / page).read_text()).split(f"## {heading}\n")[1].split("\n## ")[0]
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(
        re.sub(r"`tnbench[^`]*`|`lightning2`|float64|bf16|fp32|1k to 128k|\|[-|]+\|", "", text).split()
    )


def assert_says(text: str, parts: list[str]) -> None:
    """Every part stands in the text, and no number outside of them."""
    rest = text
    for part in sorted(parts, key=len, reverse=True):
        assert part in text, part
        rest = rest.replace(part, "")
    assert not re.search(r"\d", rest), re.findall(r".{0,40}\d.{0,20}", rest)
