"""`tnbench figures --check`: whether figures, records, code and pages still say the same.

| what is told | where |
|---|---|
| records that a committed figure rests on are gone | `figures/NAME.csv` names them |
| records were made by other code | `freshness` |
| a figure's table is not what its records give | `figures/NAME.csv`, `figures/NAME.tex`, `report.html` |
| a span says otherwise than its record | README.md, docs/reproduction.md |
| a number with a unit stands in no span | README.md, docs/reproduction.md |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from tnbench.paper_figures.shared import outputs, spans
from tnbench.paper_figures.shared.about import About
from tnbench.paper_figures.shared.freshness import stale
from tnbench.paper_figures.shared.tables import Built, Stamp

REFERENCE = Path("results") / "reference"
"""Where a checkout keeps the records that its pages speak of."""
PAGES = (Path("README.md"), Path("docs") / "reproduction.md")
REPORT = "report.html"
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
"""What another version of matplotlib may draw otherwise."""


def pages(root: Path) -> list[Path]:
    """The pages of the checkout that has these records as its reference; none for other records."""
    whole = root.resolve()
    if whole.parts[-2:] != REFERENCE.parts:
        return []
    return [path for page in PAGES if (path := whole.parents[1] / page).is_file()]


def render_pages(root: Path) -> list[Path]:
    """Write the spans of the pages anew; the pages that changed.

    Raises:
        RequestError: a page cannot be written.
    """
    changed = []
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        now, _ = spans.rendered(text, root)
        if now != text:
            outputs.put(path, now)
            changed.append(path)
    return changed


def problems(built: Mapping[str, tuple[About, Built]], out: Path, root: Path, page: str = "") -> list[str]:
    """All that is wrong, a line each.

    Args:
        built: figure → what its module makes of the records now.
        out: the folder of the committed page and figures.
        root: the folder of the records.
        page: the report as it would be written now; empty where only some figures are checked.
    """
    found = [line for about, one in built.values() for line in _of_figure(about, one, out)]
    found += _stale(built, root)
    if page and (committed := out / REPORT).exists():
        if DRAWING.sub("", committed.read_text(encoding="utf-8")) != DRAWING.sub("", page):
            found.append(f"{committed} is not what the records give: run tnbench figures")
    elif page:
        found.append(f"{committed} is missing: run tnbench figures")
    for path in pages(root) if page else ():
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}, {line}" for line in spans.differences(text, root)]
        found += [f"{path.name}, {line}" for line in spans.outside(text)]
    return found


def _of_figure(about: About, built: Built, out: Path) -> Iterator[str]:
    folder = out / outputs.FOLDER
    table = folder / f"{about.name}.csv"
    if not table.exists():
        yield f"{about.name}: {table} is missing: run tnbench figures {about.name}"
        return
    gone = _named(table) - set(built.runs)
    if gone:
        some = ", ".join(sorted(gone)[:4]) + (f" and {len(gone) - 4} more" if len(gone) > 4 else "")
        again = f": {about.measure.command} measures again" if about.measure.command else ""
        yield f"{about.name}: its records are missing ({some}){again}"
    else:
        for ending, text in outputs.texts(about, built).items():
            path = folder / f"{about.name}.{ending}"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                yield f"{about.name}: {path} is not what the records give: run tnbench figures {about.name}"
    for ending in outputs.DRAWN:
        if not (folder / f"{about.name}.{ending}").exists():
            yield f"{about.name}: {folder / about.name}.{ending} is missing: run tnbench figures {about.name}"


def _stale(built: Mapping[str, tuple[About, Built]], root: Path) -> Iterator[str]:
    """Records of other code, each folder once, with the figures that rest on them."""
    figures: dict[Stamp, list[str]] = {}
    for name, (_, one) in built.items():
        for stamp in stale(one.stamps, root):
            figures.setdefault(stamp, []).append(name)
    for stamp, names in figures.items():
        yield (
            f"{', '.join(names)}: {stamp.folder} is stale: its {stamp.kind} code was {stamp.code}, now it is "
            f"{stamp.present}; measure again ({stamp.command}), or see that the numbers are still the same "
            "(python -m tnbench.paper_figures.shared.repeating)"
        )


def _named(table: Path) -> set[str]:
    """Ids of the records that a committed table rests on."""
    runs = pd.read_csv(table, dtype=str, keep_default_na=False)["runs"]
    return {run for cell in runs for run in cell.split()}
