"""Runs of one kind compile once in a process, and are none the worse for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import manifest, same_run, tiny

from tnbench.data import TokenData
from tnbench.records import RunFolder
from tnbench.training import compilation
from tnbench.training.loop import run


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_kept", [])


def test_what_is_no_seed_is_another_kind(corpus: Path) -> None:
    assert compilation.begin(tiny(corpus, compile="blocks"), 97)
    assert not compilation.begin(tiny(corpus, compile="blocks", init_seed=1, learning_rate=0.01), 97)
    for other in ({"compile": True}, {"compile": "blocks", "batch_tokens": 512}):
        assert compilation.begin(tiny(corpus, **other), 97)
    assert compilation.begin(tiny(corpus, compile="blocks"), 98)


def test_few_kinds_are_kept(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(len(compilation._kept)))
    for vocabulary in range(100, 100 + compilation.MOST):
        compilation.begin(tiny(corpus), vocabulary)
    assert resets == []
    compilation.begin(tiny(corpus), 99)
    assert (resets, len(compilation._kept)) == ([compilation.MOST], 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [True, "blocks"])
def test_a_second_seed_compiles_nothing(
    how: bool | str, corpus: Path, data: TokenData, tmp_path: Path
) -> None:
    """Also where another kind of run came between; and what it computes is what it does by itself."""
    from torch._dynamo.utils import counters

    compilation.forget()
    counters.clear()
    graphs = []
    runs = {"first": (0, True), "other": (0, False), "second": (1, True), "alone": (1, True)}
    for name, (seed, gate) in runs.items():
        if name == "alone":
            compilation.forget()
        settings = tiny(corpus, compile=how, init_seed=seed)
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"gate": gate})})
        folder = RunFolder(tmp_path / name)
        assert run(settings, folder, data) == "finished", manifest(folder).get("traceback")
        graphs.append(counters["stats"]["unique_graphs"])
    first, other, second, alone = graphs
    assert 0 < first < other == second < alone
    assert same_run(RunFolder(tmp_path / "second"), RunFolder(tmp_path / "alone"))
