"""A suite that evaluates its runs: its files, a working folder, and what is read of its records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from small_suite import SUITE, LocalWorker, prepare_folder, stop_all
from texts import write_task

from tnbench import report
from tnbench.ablation.suite import Suite, load_suite
from tnbench.evaluation import study
from tnbench.evaluation.study import Store
from tnbench.report import html

EVALS: dict[str, Any] = {
    "tasks": ["cloze", "mine"],
    "limit": 12,
    "include_path": "tasks",
    "by_position": "2x",
}


def write_suite(folder: Path, evals: dict[str, Any] | None) -> None:
    """small.yaml with these evaluations, whatever they are."""
    text = SUITE.format(steps=8)
    (folder / "small.yaml").write_text(text + (yaml.safe_dump({"evals": evals}) if evals is not None else ""))


def prepare(folder: Path) -> None:
    """A corpus, a suite that evaluates, and a task of its own."""
    prepare_folder(folder)
    write_suite(folder, EVALS)
    documents = [
        {"q": f"{n} is the square of", "choices": [f" {n * n}", f" {n}", " it"], "label": n % 3}
        for n in range(9)
    ]
    write_task(folder / "tasks", documents)


@contextmanager
def working_in(folder: Path, drawn: str | None = None) -> Iterator[None]:
    """The suite's files in a folder, and work in it: workers of this process, figures of one format or none.

    Drawing takes longer than all else.
    """
    plain = report.save
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tnbench.ablation.execute.Worker", LocalWorker)
        patch.setattr(report, "save", lambda figure, form: plain(figure, form) if form == drawn else b"")
        patch.setattr(html, "inline_svg", lambda figure: "<svg></svg>")
        prepare(folder)
        yield
        stop_all()


def suite(seeds: int | None = None) -> Suite:
    settings = {"training.device": "cpu"}
    return load_suite("small.yaml", Path("results"), settings=settings, seeds=seeds, quiet=True)


def records(results: Path, kind: str = "task") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    Store(results / study.FOLDER).each(lambda line: found.append(line) if line["kind"] == kind else None)
    return found


def weights() -> list[Path]:
    return sorted(Path("results").glob("small/runs/*/checkpoint/model.safetensors"))


def outcomes() -> dict[str, int]:
    frame: Any = pd.read_csv("results/small/evals.csv")
    return (
        frame[(frame["measure"] == "score") & (frame["task"] == "cloze")]["outcome"].value_counts().to_dict()
    )
