"""Time of linear attention over its block size: python -m tnbench.profiling.block_sizes

Small blocks update the state more often, large ones compute more scores for each token. Timed are the chunked
form in torch over its block and, on a GPU, the Triton kernels, whose best launch configuration for each block
size is chosen on a round of its own. All block sizes of a point are timed in interleaved rounds, in an order
that turns. Results are compared with float64 first: what is wrong is recorded as that and not timed. Finished
points are kept, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tnbench.commands import run_alone
from tnbench.errors import RequestError, first_line
from tnbench.profiling import timing
from tnbench.profiling.block_sizes_arms import Candidate, bind, candidates, prove, restore, taken, walks_of
from tnbench.profiling.block_sizes_records import Store, current
from tnbench.profiling.kernels import gate, memory
from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Inputs
from tnbench.profiling.kernels.implementations.linear_attention import inputs
from tnbench.profiling.kernels.operators import OPERATORS
from tnbench.profiling.kernels.store import kernel_hash
from tnbench.profiling.lines import Line, slug
from tnbench.profiling.machine import installed_version, machine
from tnbench.profiling.pool import LOST_CONTEXT
from tnbench.profiling.samples import summary
from tnbench.profiling.texts import names, numbers, place
from tnbench.records import now, provenance
from tnbench.report.words import duration

MODES = ("forward", "both")
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("float32", {"batch": 1, "heads": 4, "key_dim": 64, "value_dim": 64, "decay": "geometric"}),
    "cuda": ("bfloat16", {"batch": 4, "heads": 16, "key_dim": 128, "value_dim": 128, "decay": "geometric"}),
}
"""dtype and shape by kind of device."""
LENGTHS = {"cpu": (512, 2048, 8192), "cuda": (1024, 8192, 65536)}
BLOCKS = {"cpu": (16, 32, 64, 128, 256, 512, 1024), "cuda": (16, 32, 64, 128, 256)}
ROUNDS = {"cpu": 6, "cuda": 10}
CALLS, SECONDS = 20, {"cpu": 0.02, "cuda": 0.05}
"""Most calls, and seconds, of a block size in a round."""
COMPILING = 40.0
"""Seconds of a process that compiles, for the estimate."""


def main(
    length: Annotated[str | None, typer.Option(help="Lengths, as 512,2k.")] = None,
    block: Annotated[str | None, typer.Option(help="Block sizes, as 16,64,256.")] = None,
    mode: Annotated[str | None, typer.Option(help="forward, both.")] = None,
    rounds: Annotated[int | None, typer.Option(min=2, help="Interleaved; CPU: 6, GPU: 10.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that compile, on a GPU.")] = 14,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be measured; run nothing.")] = False,
    results: Annotated[Path, typer.Option(help="Where the records are written.")] = Path("results"),
) -> None:
    """Time linear attention over its block size on this machine."""
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"--device {device}: known are auto, cpu, cuda")
    kind, name = machine(device)
    lengths = numbers("--length", length) or LENGTHS[kind]
    blocks = numbers("--block", block) or BLOCKS[kind]
    modes = names("--mode", mode, MODES) or MODES
    _require_fitting(lengths, blocks, kind)
    dtype, shape = SHAPES[kind]
    cases = [
        Case("linear_attention", one, dtype, {**shape, "length": size}) for size in lengths for one in modes
    ]
    shared = {
        "blocks": list(blocks),
        "measurement": {"rounds": rounds or ROUNDS[kind], "calls": CALLS, "seconds": SECONDS[kind]},
        "threads": threads if kind == "cpu" else None,
        "kernel_hash": kernel_hash("linear_attention"),
        **{package: installed_version(package) for package in ("torch", "triton")},
    }
    store = Store(results / "kernels" / slug(name))
    lines, problems = store.read()
    todo = [case for case in cases if current(lines, {**shared, "case": case.to_dict()}) is None]
    typer.echo(_plan(todo, cases, shared, kind, name, workers))
    for problem in problems:
        typer.echo(f"note: {problem}")
    if plan or not todo:
        return
    if kind == "cpu":
        torch.set_num_threads(threads)
    with store.writing():
        _measure(store, todo, shared, kind, name, workers)
    typer.echo(f"records: {store.path}")


def _require_fitting(lengths: Sequence[int], blocks: Sequence[int], kind: str) -> None:
    """Raises RequestError for blocks that no length can be cut into, or that no kernel can take."""
    if min(blocks) > min(lengths):
        raise RequestError(
            f"--block: none of {', '.join(map(str, blocks))} fits into {min(lengths)} tokens; "
            f"name one of at most {min(lengths)}"
        )
    odd = [block for block in blocks if block < 16 or block & (block - 1)]
    if kind == "cuda" and odd:
        raise RequestError(f"--block {odd[0]}: blocks of the Triton kernels are powers of two from 16")


def _plan(
    todo: Sequence[Case], cases: Sequence[Case], shared: Mapping[str, Any], kind: str, name: str, workers: int
) -> str:
    """What is measured, and the least that it takes."""
    arms = [candidates(case, shared["blocks"], kind) for case in todo]
    measurement = shared["measurement"]
    screened = sum(len(tried) for one in arms for tried in one.values() if len(tried) > 1)
    timed = screened + measurement["rounds"] * sum(map(len, arms))
    text = (
        f"{name}: {len(todo)} of {len(cases)} points to measure, {sum(map(len, arms))} times of "
        f"{measurement['rounds']} rounds, at least {duration(timed * measurement['seconds'])}"
    )
    if screened:
        tried = {one.configuration for mine in arms for many in mine.values() for one in many} - {""}
        waves = math.ceil(len({walks_of(one) for one in tried}) / workers)
        text += (
            f"; before that {len(tried)} launch configurations are compiled and proved right, in about "
            f"{duration(waves * COMPILING)}"
        )
    return text


def _measure(
    store: Store, todo: Sequence[Case], shared: Mapping[str, Any], kind: str, name: str, workers: int
) -> None:
    """Measure points in order, each brought to disk when it is finished."""
    tried = {case: candidates(case, shared["blocks"], kind) for case in todo}
    launched = [
        (case, one)
        for case, arms in tried.items()
        for many in arms.values()
        for one in many
        if one.implementation == "triton"
    ]
    proved = (
        prove(launched, workers, lambda done, all_: typer.echo(f"compiled {done}/{all_}")) if launched else {}
    )
    started = time.monotonic()
    for number, case in enumerate(todo, start=1):
        arms = _point(case, tried[case], proved, shared["measurement"], kind)
        line = {
            "kind": "point",
            "id": secrets.token_hex(6),
            "measured": now(),
            "device": name,
            "case": case.to_dict(),
            **shared,
            "way": "graph" if _graph(case, kind) else "eager",
            "arms": arms,
            "command": _command(case, shared, kind),
            "provenance": provenance(),
        }
        store.append([line])
        left = (time.monotonic() - started) / number * (len(todo) - number)
        rest = f", about {duration(left)} left" if number < len(todo) else ""
        typer.echo(f"[{number}/{len(todo)}] {_said(case, arms)}{rest}")


def _command(case: Case, shared: Mapping[str, Any], kind: str) -> str:
    """What measures this point alone."""
    options = {
        "length": case.shape["length"],
        "block": ",".join(map(str, shared["blocks"])),
        "mode": case.mode,
        "rounds": shared["measurement"]["rounds"],
        "device": kind,
        **({"threads": shared["threads"]} if kind == "cpu" else {}),
    }
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python -m tnbench.profiling.block_sizes {words}"


def _said(case: Case, arms: Sequence[Line]) -> str:
    """`both 8k: chunked fastest with 64 (128 ms); 1 wrong`."""
    parts = []
    for name in dict.fromkeys(arm["implementation"] for arm in arms):
        mine = [arm for arm in arms if arm["implementation"] == name and arm["status"] == "ok"]
        if mine:
            best = min(mine, key=lambda arm: arm["seconds"]["median"])
            parts.append(f"{name} fastest with {best['block']} ({1e3 * best['seconds']['median']:.3g} ms)")
    refused = [arm for arm in arms if arm["status"] != "ok"]
    parts += [f"{arm['implementation']} {arm['block']} {arm['status']}" for arm in refused]
    return f"{case.mode} {place(case.shape['length'])}: {'; '.join(parts)}"


def _point(
    case: Case,
    tried: Mapping[tuple[str, int], list[Candidate]],
    proved: Mapping[tuple[bool, str], str | None],
    measurement: Mapping[str, Any],
    kind: str,
) -> list[Line]:
    """The arms of a point: the best right candidate of each block size, timed in interleaved rounds."""
    given = inputs(case, kind)

    def timed(candidate: Candidate) -> list[float]:
        return _seconds(case, candidate, given, kind, measurement["calls"], measurement["seconds"])

    arms: list[Line] = []
    chosen: dict[int, Candidate] = {}
    samples: dict[int, list[list[float]]] = {}
    try:
        for (name, block), many in tried.items():
            arm, candidate = _choose(case, many, given, kind, proved, timed)
            arm |= {"implementation": name, "block": block, "taken": block == taken(case, name)}
            if candidate is not None:
                chosen[len(arms)] = candidate
                samples[len(arms)] = []
            arms.append(arm)
        places = list(chosen)
        for number in range(measurement["rounds"]):
            turn = number % max(1, len(places))
            for one in places[turn:] + places[:turn]:
                if arms[one]["status"] == "ok":
                    status, answer = _attempt(lambda one=one: timed(chosen[one]), kind)
                    if status == "ok":
                        samples[one].append(answer)
                    else:
                        arms[one] |= {"status": status, "reason": answer}
    finally:
        restore()
    for one, by_round in samples.items():
        if arms[one]["status"] == "ok":
            arms[one]["seconds"] = summary(by_round)
    return arms


def _choose(
    case: Case,
    many: Sequence[Candidate],
    given: Inputs,
    kind: str,
    proved: Mapping[tuple[bool, str], str | None],
    timed: Callable[[Candidate], list[float]],
) -> tuple[Line, Candidate | None]:
    """The quickest candidate that is right, with an arm that tells it and those that were refused."""
    refused: list[Line] = []

    def refuse(candidate: Candidate, status: str, reason: str) -> None:
        refused.append({"configuration": _json(candidate), "status": status, "reason": reason})

    right = []
    for candidate in many:
        reason = proved.get((case.trains, candidate.configuration))
        if reason is None:
            right.append(candidate)
        else:
            refuse(candidate, "wrong" if "wrong by" in reason else "error", reason)
    if len(right) > 1:
        screened = {one: _attempt(lambda one=one: statistics.median(timed(one)), kind) for one in right}
        for one, (status, answer) in screened.items():
            if status != "ok":
                refuse(one, status, answer)
        right = sorted((one for one in right if screened[one][0] == "ok"), key=lambda one: screened[one][1])
    for candidate in right:
        status, answer = _attempt(lambda candidate=candidate: _judge(case, candidate, given, kind), kind)
        if status == "ok" and answer["reason"] is None:
            arm = {"configuration": _json(candidate), "tried": len(many), "refused": refused}
            return {**arm, "status": "ok", "seconds": None, **answer}, candidate
        refuse(
            candidate, "wrong" if status == "ok" else status, answer["reason"] if status == "ok" else answer
        )
    last = refused[-1]
    nothing = dict.fromkeys(("configuration", "seconds", "peak_memory_bytes"))
    told = {"tried": len(many), "refused": refused, "status": last["status"], "reason": last["reason"]}
    return {**nothing, "errors": {}, "limits": {}, **told}, None


def _json(candidate: Candidate) -> str | None:
    return candidate.configuration or None


def _judge(case: Case, candidate: Candidate, given: Inputs, kind: str) -> dict[str, Any]:
    """Errors against float64, and the peak of memory."""
    bound = bind(case, candidate, given)
    with _silent():
        peak = memory.peak(lambda: bound.step(case.mode)(), kind)
    step = bound.step(case.mode)
    if kind == "cuda":
        memory.poison([(tuple(x.shape), x.dtype) for x in step()])
    results = dict(zip(bound.names(case.mode), step(), strict=True))
    verdict = gate.check(case, candidate.implementation, bound, results, given)
    return {
        "reason": verdict.reason,
        "errors": verdict.errors,
        "limits": verdict.limits,
        "peak_memory_bytes": peak,
    }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: torch's profiler writes marks of its own there."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _attempt(function: Callable[[], Any], kind: str) -> tuple[str, Any]:
    """`ok` and what it returns, or what went wrong and why.

    Raises:
        RuntimeError: it cost the process its GPU, so that nothing more can be measured.
    """
    try:
        return "ok", function()
    except (torch.OutOfMemoryError, MemoryError) as error:
        found = "oom", first_line(error)
    except Exception as error:
        if LOST_CONTEXT.search(str(error)):
            raise
        found = "error", first_line(error)
    if kind == "cuda":
        torch.cuda.empty_cache()
    return found


def _graph(case: Case, kind: str) -> bool:
    """Whether replays of a CUDA graph are timed, as `profile-kernels` does at the short lengths."""
    return kind == "cuda" and OPERATORS["linear_attention"].graphs(case)


def _seconds(
    case: Case, candidate: Candidate, given: Inputs, kind: str, calls: int, seconds: float
) -> list[float]:
    """Seconds of each of several calls: on a GPU with nothing of its inputs in the cache."""
    bound = bind(case, candidate, given)
    if kind == "cpu":
        call, found = bound.step(case.mode), []
        while len(found) < calls and sum(found) < seconds:
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
        return found
    if not _graph(case, kind):
        return timing.eager(bound.step(case.mode), calls, seconds, kind)
    with torch.cuda.stream(torch.cuda.Stream()):  # a backward is captured on the stream of its forward
        captured = timing.capture(bound.step(case.mode))
    try:
        return timing.replays(captured, calls, seconds)
    finally:
        torch.cuda.synchronize()
        captured.reset()


if __name__ == "__main__":
    run_alone(main)
