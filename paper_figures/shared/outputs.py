"""The files of a figure: PNG, PDF, CSV and LaTeX, each as a whole or not at all, and the same bytes again."""

from __future__ import annotations

from pathlib import Path

from tnbench.errors import RequestError
from tnbench.paper_figures.shared.about import About
from tnbench.paper_figures.shared.printing import latex
from tnbench.paper_figures.shared.tables import Built, frame
from tnbench.records import write_atomic
from tnbench.report.drawing import save

FOLDER = "figures"
"""Of the figures, in the folder that the page stands in."""
DRAWN = ("png", "pdf")


def texts(about: About, built: Built) -> dict[str, str]:
    """The CSV and LaTeX files by ending: they depend on the records alone."""
    csv = frame(built.rows).to_csv(index=False, lineterminator="\n", float_format="%.10g")
    return {"csv": csv, "tex": latex(about.name, about.title, built)}


def write(about: About, built: Built, folder: Path) -> list[Path]:
    """Write a figure's four files.

    Raises:
        RequestError: one cannot be written, as on a full disk.
    """
    contents: dict[str, str | bytes] = {
        "png": save(built.figure, "png", dpi=200),
        "pdf": save(built.figure, "pdf"),
        **texts(about, built),
    }
    paths = [folder / f"{about.name}.{ending}" for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        put(path, content)
    return paths


def put(path: Path, content: str | bytes) -> None:
    """Write a file atomically.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
