"""Times over the block size: records, refusals, and the choice between launch configurations."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tnbench.commands import run_alone
from tnbench.errors import RequestError
from tnbench.kernels.devices import Machine
from tnbench.kernels.linear_attention import tuning
from tnbench.kernels.linear_attention.configurations import Shape, from_json, lookup
from tnbench.profiling import block_sizes, block_sizes_arms
from tnbench.profiling.block_sizes_arms import Candidate
from tnbench.profiling.block_sizes_records import FILE, Store, current, shown
from tnbench.profiling.kernels.cases import Case

SHAPE = {"batch": 1, "heads": 2, "key_dim": 8, "value_dim": 8, "decay": "geometric", "length": 96}
CASE = Case("linear_attention", "both", "float32", SHAPE)
MEASUREMENT = {"rounds": 3, "calls": 2, "seconds": 1e-9}


def run(*options: str) -> int:
    with pytest.raises(SystemExit) as left:
        run_alone(block_sizes.main, list(options))
    return int(left.value.code or 0)


@pytest.fixture
def a_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_records_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str], a_thread: None):
    """A point is measured once; another mode is added to it, and a broken line is told."""
    options = ["--length", "64", "--block", "16,64,128", "--rounds", "2", "--device", "cpu"]
    options += ["--results", str(tmp_path)]
    assert run(*options, "--mode", "forward", "--plan") == 0
    assert not list(tmp_path.rglob(FILE))
    assert run(*options, "--mode", "forward") == 0
    assert "1 of 1 points to measure, 2 times of 2 rounds" in capsys.readouterr().out
    (path,) = tmp_path.rglob(FILE)
    with path.open("a") as file:
        file.write('{"kind": "point"')
    assert run(*options) == 0
    out = capsys.readouterr().out
    assert "1 of 2 points to measure" in out
    assert f"note: {FILE}: line 2 is broken and was ignored" in out
    assert run(*options) == 0
    assert "0 of 2 points to measure" in capsys.readouterr().out
    lines, _ = Store(path.parent).read()
    assert [line["case"]["mode"] for line in shown(lines)] == ["forward", "both"]
    arms = lines[1]["arms"]
    assert [(arm["block"], arm["taken"], arm["status"]) for arm in arms] == [
        (16, False, "ok"), (64, True, "ok"),
    ]  # fmt: skip
    assert all(len(arm["seconds"]["rounds"]) == 2 for arm in arms)
    assert set(arms[0]["errors"]) == {"o", "dq", "dk", "dv"}
    assert all(arm["peak_memory_bytes"] > 0 for arm in arms)
    assert lines[1]["command"].startswith("python -m tnbench.profiling.block_sizes --length 64 --block 16,64")


def test_a_change_of_the_code_is_a_new_measurement():
    line = {name: name for name in ("case", "blocks", "measurement", "threads", "torch", "triton")}
    line["kernel_hash"] = "0123"
    assert current([line], line) is line
    assert current([line], {**line, "kernel_hash": "4567"}) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block", "128", "--length", "64"], "none of 128 fits into 64 tokens; name one of at most 64"),
        (["--block", "0"], "--block: '0' is no size"),
        (["--mode", "sideways"], "--mode sideways"),
        (["--device", "tpu"], "--device tpu: known are auto, cpu, cuda"),
    ],
)
def test_wrong_requests(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--device", "cpu", "--results", str(tmp_path), *options) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_blocks_of_triton_are_powers_of_two():
    with pytest.raises(RequestError, match="--block 48: blocks of the Triton kernels are powers of two"):
        block_sizes._require_fitting((1024,), (16, 48), "cuda")


def made_up(
    patch: pytest.MonkeyPatch, seconds: dict[str, float], wrong: frozenset[str] = frozenset()
) -> None:
    """Candidates that are the torch form, and take as long as it says; some with an output that is off."""
    bind = block_sizes_arms.bind

    def bound(case: Case, candidate: Candidate, given: Any) -> Any:
        found = bind(case, Candidate("chunked", candidate.block), given)
        if candidate.configuration in wrong:
            call = found.call
            found.call = lambda: (1.01 * call()[0],)
        return found

    patch.setattr(block_sizes, "bind", bound)
    patch.setattr(block_sizes.memory, "peak", lambda run, kind: 1)
    patch.setattr(block_sizes, "taken", lambda case, name: 16)
    patch.setattr(block_sizes, "_seconds", lambda case, one, *rest: [seconds[one.configuration]] * 2)


def test_the_quickest_right_configuration_of_a_block(monkeypatch: pytest.MonkeyPatch):
    """Of four, one is wrong on small problems, one at the case itself, and one is slower."""
    made_up(monkeypatch, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.5}, wrong=frozenset("a"))
    tried = {("triton", 16): [Candidate("triton", 16, name) for name in "cbad"]}
    proved = {(True, "d"): "ArithmeticError: wrong by 1e-1", (False, "b"): "of another mode"}
    (arm,) = block_sizes._point(CASE, tried, proved, MEASUREMENT, "cpu")
    assert (arm["status"], arm["configuration"], arm["tried"], arm["taken"]) == ("ok", "b", 4, True)
    assert arm["seconds"]["rounds"] == [2.0, 2.0, 2.0]
    refused = {one["configuration"]: (one["status"], one["reason"][:15]) for one in arm["refused"]}
    assert refused == {"d": ("wrong", "ArithmeticError"), "a": ("wrong", "o is off by 1.0")}


def test_a_block_with_nothing_right_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch):
    made_up(monkeypatch, {"a": 1.0, "b": 1.0}, wrong=frozenset("a"))
    tried = {("triton", block): [Candidate("triton", block, name)] for block, name in ((16, "a"), (32, "b"))}
    wrong, right = block_sizes._point(CASE, tried, {}, MEASUREMENT, "cpu")
    assert (wrong["status"], wrong["seconds"], right["status"]) == ("wrong", None, "ok")
    assert "its norm" in wrong["reason"]


def test_what_costs_the_gpu_ends_the_campaign_and_other_errors_do_not():
    def fail(error: Exception) -> None:
        raise error

    assert block_sizes._attempt(lambda: fail(ValueError("no")), "cpu") == ("error", "ValueError: no")
    assert block_sizes._attempt(lambda: fail(MemoryError("full")), "cpu")[0] == "oom"
    with pytest.raises(RuntimeError):
        block_sizes._attempt(lambda: fail(RuntimeError("CUDA error: an illegal memory access")), "cpu")


@pytest.fixture
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "machine", lambda index: Machine(90, 132))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def attention(mode: str, length: int) -> Case:
    dtype, shape = block_sizes.SHAPES["cuda"]
    return Case("linear_attention", mode, dtype, {**shape, "length": length})


def test_configurations_of_a_gpu(an_h100: None):
    """The one of the table first, all with the block asked for, and both walks of a configuration alike."""
    case = attention("both", 8192)
    tried = block_sizes_arms.candidates(case, (16, 64, 256, 16384), "cuda")
    assert list(tried) == [(name, block) for name in ("triton", "chunked") for block in (16, 64, 256)]
    assert block_sizes_arms.taken(case, "triton") == 64
    table = from_json(json.loads(tried["triton", 64][0].configuration))
    assert table == block_sizes_arms._table(case)
    assert table == lookup(Shape(90, 132, True, 128, 64, 8192, True))
    for (name, block), many in tried.items():
        if name == "triton":
            found = [from_json(json.loads(one.configuration)) for one in many]
            assert {one.outputs.chunk for one in found} == {one.gradients.chunk for one in found} == {block}
            assert len(set(found)) == len(found) > 4
    assert {from_json(json.loads(one.configuration)).outputs.warps for one in tried["triton", 256]} == {4, 8}


def test_the_plan_of_a_gpu_says_what_it_takes(an_h100: None):
    cases = [attention(mode, length) for mode in ("forward", "both") for length in (1024, 65536)]
    shared = {"blocks": [16, 64], "measurement": {"rounds": 10, "calls": 20, "seconds": 0.05}}
    text = block_sizes._plan(cases, cases, shared, "cuda", "H100", 14)
    assert "4 of 4 points to measure, 16 times of 10 rounds, at least 1" in text
    assert "launch configurations are compiled and proved right, in about" in text


def test_configurations_are_proved_by_processes(an_h100: None, monkeypatch: pytest.MonkeyPatch):
    """Those of one walk share a process; where it ends early, the rest are refused."""
    asked: list[list[dict]] = []

    def answer(command: list[str], *, input: str, **options: Any) -> Any:
        asked.append(json.loads(input))
        if len(asked) == 2:
            raise subprocess.TimeoutExpired(command, 300, output=b'{"reason": null}\nnot an answer\n')
        return SimpleNamespace(stdout='{"reason": "ArithmeticError: wrong by 1"}\n', returncode=-11)

    monkeypatch.setattr(block_sizes_arms.subprocess, "run", answer)
    both = [attention("both", length) for length in (8192, 65536)]
    wanted = [
        (case, one)
        for case in both
        for one in block_sizes_arms.candidates(case, (64,), "cuda")["triton", 64][:2]
    ]
    told: list[tuple[int, int]] = []
    found = block_sizes_arms.prove(wanted, 1, lambda done, all_: told.append((done, all_)))
    assert told == [(1, 2), (2, 2)]
    assert [len(one) for one in asked] == [2, 2]
    assert {one["training"] for many in asked for one in many} == {True}
    assert [found[True, one.configuration] for _, one in wanted] == [
        "ArithmeticError: wrong by 1", None,
        "the process that compiled it ended with status -11", "not compiled within 300 s",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_blocks_of_the_kernels_on_a_gpu(tmp_path: Path):
    """In CUDA graphs and called one by one; the table's block is among the right ones."""
    options = ["--length", "1k,8k", "--block", "32,64", "--rounds", "2", "--results", str(tmp_path)]
    assert run(*options) == 0
    lines, problems = Store(next(tmp_path.rglob(FILE)).parent).read()
    assert not problems
    assert [line["way"] for line in shown(lines)] == ["graph", "eager", "graph", "eager"]
    for one in shown(lines):
        arms = {(arm["implementation"], arm["block"]): arm for arm in one["arms"]}
        assert arms["triton", 64]["taken"]
        assert {arm["status"] for arm in arms.values()} == {"ok"}, arms
        assert all(arm["peak_memory_bytes"] > 0 for arm in arms.values())
