"""The measuring engine of profile-kernels: cases, floors, float64 references, the gate, the worker."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tnbench.kernels.linear_attention import quadratic
from tnbench.profiling import energy, timing
from tnbench.profiling.kernels import exact, gate, implementations, memory
from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations import MODULES, Unsupported, bind, inputs
from tnbench.profiling.kernels.implementations import linear_attention as attention
from tnbench.profiling.kernels.implementations.bound import Bound
from tnbench.profiling.kernels.operators import OPERATORS, find
from tnbench.profiling.kernels.published import published
from tnbench.profiling.kernels.worker import PREFIX, Worker, serve


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attend(mode: str = "both", length: int = 96, **sizes: Any) -> Case:
    shape = {"length": length, "batch": 3, "heads": 2, "key_dim": 16, "value_dim": 16, "decay": "geometric"}
    return Case("linear_attention", mode, sizes.pop("dtype", "float32"), {**shape, **sizes})


def small(operator: str, mode: str) -> list[Case]:
    """One small case of each form."""
    sizes = {"rows": [40], "width": [24], "length": [70], "head_dim": [16], "batch": [3], "heads": [2]}
    sizes |= {"form": ["cosine", "rotation"] if operator == "lrpe" else ["srmsnorm", "rmsnorm", "layernorm"]}
    sizes |= {"mode": [mode], "batch_heads": [(2, 2)]}
    entry = OPERATORS[operator]
    return entry.cases(entry.grid("cpu", **{axis: sizes[axis] for axis in entry.axes if axis in sizes}))


def ask(implementation: str, *requests: dict[str, Any] | str) -> list[dict[str, Any]]:
    """What a worker answers to requests, in this process."""
    lines = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in requests)
    answers = io.StringIO()
    serve(Worker(implementation, "cpu"), io.StringIO(lines), answers)
    found = answers.getvalue().splitlines()
    assert all(line.startswith(PREFIX) for line in found)
    return [json.loads(line.removeprefix(PREFIX)) for line in found]


def request(do: str, case: Case, **more: Any) -> dict[str, Any]:
    return {"do": do, "case": case.to_dict(), **more}


# Cases and operators


def test_a_case_is_known_by_its_values():
    one = attend()
    other = Case("linear_attention", "both", "float32", dict(reversed(list(one.shape.items()))))
    assert one.key() == other.key()
    assert hash(one) == hash(other)
    assert Case.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one.key() != replace(one, mode="forward").key()
    assert one.seed() == replace(one, mode="forward").seed()  # the same inputs in every mode
    assert one.seed() != attend(length=97).seed()


@pytest.mark.parametrize("change", [{"mode": "sideways"}, {"dtype": "float8"}, {"more": 1}])
def test_a_case_that_is_none(change: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(change))):
        Case.from_dict({**attend().to_dict(), **change})


def test_floors_by_hand():
    case = attend(batch=4, heads=16, length=1024, key_dim=128, value_dim=128, dtype="bfloat16")
    tensor = 4 * 16 * 1024 * 128 * 2
    floors = {
        mode: find("linear_attention").floor_bytes(replace(case, mode=mode))
        for mode in ("forward", "backward", "both")
    }
    assert floors == {"forward": 4 * tensor, "backward": 7 * tensor, "both": 11 * tensor}
    # 98,304 FLOP a token and head at D = E = 128 and chunks of 64
    assert find("linear_attention").flops(replace(case, mode="forward")) == 98304 * 4 * 16 * 1024

    def elements(operator: str, mode: str) -> float:
        shape = {"rows": 8, "width": 32, "form": "srmsnorm"}
        return find(operator).floor_bytes(Case(operator, mode, "bfloat16", shape)) / (8 * 32)

    assert [elements("norm", m) for m in ("forward", "backward")] == [4, 6]
    assert [elements("norm_gate", m) for m in ("forward", "backward")] == [6, 10]
    assert [elements("add_norm", m) for m in ("forward", "backward")] == [8, 8]
    step = {"batch": 2, "heads": 3, "key_dim": 16, "value_dim": 32}
    decode = find("decode_step").floor_bytes(Case("decode_step", "decode", "bfloat16", step))
    assert decode == 2 * 3 * (2 * 16 * 32 * 4 + (16 + 16 + 32 + 32) * 2)


def test_grids():
    operator = find("linear_attention")
    cases = operator.cases(operator.grid("cuda"))
    assert len(cases) == 2 * 4 * 2 * 8  # modes, (B, H), D, lengths
    assert len({case.key() for case in cases}) == len(cases)
    assert cases[0].shape == attend(batch=1, heads=8, length=1024, key_dim=64, value_dim=64).shape
    with pytest.raises(ValueError, match="did you mean length"):
        operator.grid("cpu", lenght=[1])
    with pytest.raises(ValueError, match="has no mode 'decode'"):
        operator.cases(operator.grid("cpu", mode=["decode"]))


def test_every_implementation_has_a_binder():
    for operator in OPERATORS.values():
        bound = set()
        for name in MODULES[operator.name]:
            table = implementations._module(name).BINDERS
            bound |= set(table.get(operator.name, table))
        assert bound == {entry.name for entry in operator.implementations}


def test_what_cannot_run_says_why():
    case = attend("forward")
    given = inputs(case, "cpu")
    with pytest.raises(Unsupported, match="needs an NVIDIA GPU"):
        bind(case, "fla-chunk", given)
    with pytest.raises(ValueError, match="did you mean chunked"):
        bind(case, "chunkd", given)


def test_published_rows():
    rows = published()
    assert len(rows) == 24
    assert (rows[0].implementation, rows[0].seconds) == ("helion (published)", 0.691e-3)


# Float64


@pytest.mark.parametrize("decay", [None, torch.tensor([-1.0, -0.01])])
def test_the_streamed_reference_is_the_definition(decay: torch.Tensor | None):
    q, k, v, do = (torch.randn(2, 600, 2, 8, dtype=torch.float64) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = quadratic(leaves[0], leaves[1], leaves[2], None if decay is None else decay.double())[0]
    right: dict[str, torch.Tensor] = dict(
        zip(("o", "dq", "dk", "dv"), (out.detach(), *torch.autograd.grad(out, leaves, do)), strict=True)
    )
    given = {"q": q, "k": k, "v": v, "do": do}
    errors = exact.linear_attention_errors(right, given, decay)
    assert max(errors.values()) < 1e-12
    wrong = {**right, "dk": right["dk"].clone()}
    wrong["dk"][1, 300:, 1] *= 1.01
    off = (wrong["dk"] - right["dk"]).norm() / right["dk"][:, :, 1].norm()
    assert exact.linear_attention_errors(wrong, given, decay)["dk"] == pytest.approx(float(off))


@pytest.mark.parametrize("whole", [4096, 256])
def test_softmax_and_its_tail(whole: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "WHOLE", whole)
    q, k, v = (torch.randn(1, 400, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    do = torch.randn(1, 400, 2, 8, dtype=torch.float64)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(heads[0], heads[1], heads[2], is_causal=True).transpose(1, 2)
    gradients = torch.autograd.grad(out, (q, k, v), do)
    found: dict[str, torch.Tensor] = dict(
        zip(("o", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True)
    )
    given = {"q": q.detach(), "k": k.detach(), "v": v.detach(), "do": do}
    assert max(exact.softmax_errors(found, given).values()) < 1e-12
    found["dv"] = found["dv"] + 1
    assert exact.softmax_errors(found, given)["dv"] > 1e-3


# The gate


def judged(case: Case, spoil: Any = None, implementation: str = "chunked") -> gate.Verdict:
    given = inputs(case, "cpu")
    bound = bind(case, implementation, given)
    results = dict(zip(bound.names(case.mode), bound.step(case.mode)(), strict=True))
    if spoil:
        results = {name: x.detach().clone() for name, x in results.items()}
        spoil(results)
    return gate.check(case, implementation, bound, results, given)


def test_the_gate_lets_pass_what_is_right():
    verdict = judged(attend(dtype="bfloat16"))
    assert verdict.reason is None
    assert set(verdict.errors) == set(verdict.limits) == {"o", "dq", "dk", "dv"}
    assert 1e-4 < verdict.errors["o"] < verdict.limits["o"] < 1e-2


def test_one_wrong_head_of_one_gradient_is_found():
    def spoil(results: dict[str, torch.Tensor]) -> None:
        results["dk"][-1, :, 1] *= 1.02

    verdict = judged(attend(dtype="bfloat16"), spoil)
    assert verdict.reason is not None
    assert verdict.reason.startswith("dk is off by")


def test_a_value_that_is_never_written_is_found_in_any_row():
    verdict = judged(
        attend(), lambda results: results["dv"][1, 5, 0, 3].fill_(math.nan)
    )  # a row not compared
    assert verdict.reason == "dv has values that are not finite"


@pytest.mark.parametrize("operator", ["norm", "norm_gate", "add_norm", "lrpe", "decode_step"])
def test_other_operators_against_float64(operator: str):
    mode = "decode" if operator == "decode_step" else "both"
    for case in small(operator, mode):
        right = judged(case, implementation="torch")
        assert right.reason is None, right.reason
        assert 0 < max(right.errors.values()) < 1e-6
        for name in right.errors:

            def spoil(results: dict[str, torch.Tensor], name: str = name) -> None:
                results[name][-1] *= 1.001

            assert (judged(case, spoil, "torch").reason or "").startswith(f"{name} is off")


def test_modes_time_different_things():
    case = attend("backward")
    given = inputs(case, "cpu")
    forwards = []

    def call() -> tuple[torch.Tensor]:
        forwards.append(1)
        return (given["q"] * given["k"] * given["v"],)

    bound = Bound(call, ("o",), attention.leaves(given), attention.output_gradients(given))
    step = bound.step("backward")
    assert len(step()) == len(step()) == 3
    assert len(forwards) == 1
    assert len(bound.step("both")()) == 4
    assert not bound.step("forward")()[0].requires_grad


# Measuring


def test_memory_at_its_peak():
    def run() -> torch.Tensor:
        a = torch.empty(1 << 18)  # 1 MiB
        b = a + 1
        del a
        return b * 2

    assert memory.peak(run, "cpu") == pytest.approx(2 << 20, rel=1e-3)


def test_memory_against_theory():
    case = attend(length=512, batch=1)
    for mode in ("forward", "both"):
        (answer,) = ask("quadratic", request("prepare", replace(case, mode=mode)))
        assert answer["status"] == "ok"
        assert answer["peak_memory_bytes"] == pytest.approx(answer["predicted_memory_bytes"], rel=0.03)


def test_calls_fit_into_the_time():
    made = []
    assert len(timing.eager(lambda: made.append(1), 7, 1.0, "cpu")) == 7
    assert len(made) == 8
    assert len(timing.eager(lambda: made.append(1), 7, 0.0, "cpu")) == 3


class Machine:
    """A GPU that draws 200 W and takes 1 ms a call; its counter moves each 70 ms, its clock with the
    calls.
    """

    NVMLError = RuntimeError
    now = 0.0

    def call(self) -> None:
        self.now += 1e-3

    def perf_counter(self) -> float:
        return self.now

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        return 14_000 * int(self.now / 0.07)  # mJ

    def install(self, patch: pytest.MonkeyPatch) -> None:
        machine = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.time = 0.0

            def record(self) -> None:
                self.time = machine.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Event) -> float:
                return (other.time - self.time) * 1e3

        patch.setattr(energy, "_library", lambda: (machine, None))
        patch.setattr(energy, "time", machine)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "synchronize", lambda: None)


def test_energy_between_two_moves_of_the_counter(monkeypatch: pytest.MonkeyPatch):
    machine = Machine()
    machine.install(monkeypatch)
    found = energy.measure(machine.call, 2.0, "cuda")
    assert found["watts"] == pytest.approx(200, rel=0.02)
    assert found["joules_per_call"] == pytest.approx(0.200, rel=0.02)
    assert 2000 < found["calls"] < 2300
    monkeypatch.setattr(machine, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: 5)
    assert energy.measure(machine.call, 0.1, "cuda")["reason"] == "the energy counter does not move"


# The worker


def test_a_session():
    case, long = attend(), attend("forward", length=1100)
    prepared, timed, spent, early = ask(
        "recurrent",
        request("prepare", case),
        request("time", case, calls=4, seconds=10),
        request("energy", case, seconds=0.1),
        request("time", long),
        {"do": "quit"},
        request("prepare", case),
    )
    assert prepared["status"] == "ok"
    assert min(prepared["first_call_seconds"], prepared["peak_memory_bytes"]) > 0
    assert (len(timed["eager_seconds"]), timed["graph_seconds"]) == (4, None)
    assert (spent["joules_per_call"], "CPU" in spent["reason"]) == (None, True)
    assert (early["status"], "not prepared" in early["reason"]) == ("error", True)


def test_errors_are_answers(monkeypatch: pytest.MonkeyPatch):
    def broken(case: Case, given: dict) -> Bound:
        bound = attention._ours("chunked", case, given)
        return replace(bound, call=lambda: (bound.call()[0] * 1.1,))

    def exhausted(case: Case, given: dict) -> Bound:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    case = attend("forward")
    monkeypatch.setitem(attention.BINDERS, "chunked", broken)
    wrong, refused = ask("chunked", request("prepare", case), request("time", case))
    assert wrong["status"] == "wrong"
    assert wrong["errors"]["o"] == pytest.approx(0.1, rel=1e-3)
    assert (refused["status"], "found it wrong" in refused["reason"]) == ("error", True)
    monkeypatch.setitem(attention.BINDERS, "chunked", exhausted)
    assert ask("chunked", request("prepare", case))[0]["status"] == "oom"
    assert ask("recurrent", request("prepare", attend(length=1100)))[0]["status"] == "unsupported"
    monkeypatch.setattr(memory, "available", lambda device: 1 << 20)
    (large,) = ask("quadratic", request("prepare", attend(length=2048)))
    assert (large["status"], large["reason"][-14:]) == ("oom", "1 MiB are free")
    for answer in ask("chunked", "{", "{}", request("measure", case), {"do": "prepare", "case": {}}):
        assert (answer["status"], answer["reason"][:11]) == ("error", "bad request")


def test_a_process_measures_the_kernels_of_another_checkout(tmp_path: Path):
    import tnbench.kernels

    folder = tmp_path / "kernels"
    shutil.copytree(
        Path(next(iter(tnbench.kernels.__path__))), folder, ignore=shutil.ignore_patterns("__pycache__")
    )
    chunked = folder / "linear_attention" / "chunked.py"
    chunked.write_text(
        chunked.read_text() + "\n\nprint('the other one')\nraise RuntimeError('is imported')\n"
    )
    module = "tnbench.profiling.kernels.worker"
    command = [sys.executable, "-m", module, "chunked", "--kernels-from", str(tmp_path)]
    text = json.dumps(request("prepare", attend("forward"))) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # what is printed elsewhere goes to stderr
    assert line.startswith(PREFIX)
    answer = json.loads(line.removeprefix(PREFIX))
    assert (answer["status"], answer["reason"]) == ("error", "RuntimeError: is imported")
    assert "the other one" in done.stderr
