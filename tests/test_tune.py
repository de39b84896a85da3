"""The tuner, on an operator whose times are made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tnbench.kernels import compiled, tune


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Row `a` has two cases: candidate 1 is the best of one, 2 of both together; 4 is wrong."""
    seconds = {
        ("a", 1): {1: 1.0, 2: 1.1, 3: 2.0},
        ("a", 2): {1: 3.0, 2: 1.0, 3: 2.0},
        ("b", 1): {1: 1.0, 2: 2.0, 3: 3.0},
    }
    module = ModuleType("tnbench.kernels.made_up.tuning")

    def compile(case: dict, candidate: dict) -> None:
        if candidate["n"] == 4:
            raise ArithmeticError("wrong by 1e-1")

    module.__dict__.update(
        cases=lambda: [{"row": row, "size": size} for row, size in seconds],
        key=lambda case: case["row"],
        kind=lambda case: {},
        candidates=lambda case: [{"n": n} for n in (1, 2, 3, 4)],
        compile=compile,
        calls=lambda case: lambda candidate: lambda: seconds[case["row"], case["size"]][candidate["n"]],
    )
    monkeypatch.setattr(tune, "graph_seconds", lambda run, repeats: run() / repeats)
    monkeypatch.setitem(sys.modules, "tnbench.kernels.made_up", ModuleType("tnbench.kernels.made_up"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["tune", "made_up", "--workers", "0", *arguments])
    tune.main()


def test_best_over_the_cases_of_a_row(operator, tmp_path: Path, monkeypatch, capsys):
    target = tmp_path / "tuned.json"
    target.write_text(json.dumps({"b": {"n": 9}, "another machine": {"n": 7}}))
    run(monkeypatch, "--out", str(target))
    assert json.loads(target.read_text()) == {"a": {"n": 2}, "another machine": {"n": 7}, "b": {"n": 1}}
    assert "wrong by 1e-1" in capsys.readouterr().out


def test_rows_that_there_was_no_time_for_are_kept(operator, tmp_path: Path, monkeypatch, capsys):
    target = tmp_path / "tuned.json"
    target.write_text(json.dumps({"a": {"n": 9}}))
    run(monkeypatch, "--out", str(target), "--seconds", "0")
    assert json.loads(target.read_text()) == {"a": {"n": 9}}
    assert "out of time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        (tune, ["linear_atention"], "did you mean linear_attention?"),
        (tune, ["linear_attention"], "there is no GPU"),
        (compiled, ["lrp", "90", "64"], "did you mean lrpe?"),
        (compiled, ["lrpe", "91", "64"], "invalid choice: 91"),
    ],
)
def test_refused_in_one_line(program: ModuleType, arguments: list[str], says: str, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [program.__name__, *arguments])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert says in capsys.readouterr().err.splitlines()[-1]
