"""Measures an operator's launch configurations on this GPU and commits the best: `python -m
tnbench.kernels.tune OPERATOR [--seconds N] [--workers N]` writes kernels/OPERATOR/tuned.json, adding to the
rows of other architectures.

An operator takes part by a module `tuning` in its folder:

| name | what |
|---|---|
| `cases()` | the problems to measure, most telling first; each a dict that JSON can hold |
| `key(case)` | the row of tuned.json that a case decides on; several cases may share one |
| `candidates(case)` | configurations to try, dicts that JSON can hold; the same for all cases of a row |
| `kind(case)` | what the compiled kernels depend on, beside the candidate |
| `compile(case, candidate)` | runs each kernel on a small problem of the kind; ArithmeticError if wrong |
| `calls(case)` | makes the case's inputs, and gives a function from a candidate to the call to be timed |

Worker processes first run everything once, side by side, which fills the compiler's cache; then one process
measures. A row takes the candidate with the least geometric mean, over its cases, of the time relative to
the case's best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tnbench.errors import RequestError
from tnbench.kernels.parts import part

FINALISTS = 4  # measured again, with more repeats
TOLERANCE = 4e-3  # relative, bf16: one rounding of the result, doubled


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measures an operator's launch configurations on this GPU and commits the best."
    )
    parser.add_argument("operator")
    parser.add_argument("--seconds", type=float, default=1800, help="stop measuring after this long")
    parser.add_argument("--workers", type=int, default=8, help="processes that compile")
    parser.add_argument("--out", type=Path, help="write here, not to the operator's tuned.json")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        tuning = part(arguments.operator, "tuning")
    except RequestError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        parser.error("there is no GPU to measure on")
    if arguments.part is not None:
        _prepare(tuning, arguments.part, arguments.workers)
        return
    begin = time.time()
    command = [
        sys.executable,
        "-m",
        "tnbench.kernels.tune",
        arguments.operator,
        "--workers",
        str(arguments.workers),
    ]
    workers = [subprocess.Popen([*command, "--part", str(i)]) for i in range(arguments.workers)]
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, arguments.seconds / 2 - (time.time() - begin)))
        except subprocess.TimeoutExpired:
            worker.kill()
    print(f"compiled in {time.time() - begin:.0f} s", flush=True)
    target = arguments.out or Path(__file__).with_name(arguments.operator) / "tuned.json"
    _measure(tuning, target, begin + arguments.seconds)


def rows(tuning: ModuleType) -> dict[str, list[dict[str, Any]]]:
    """The cases of each row, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in tuning.cases():
        found.setdefault(tuning.key(case), []).append(case)
    return found


def _prepare(tuning: ModuleType, part: int, parts: int) -> None:
    items = {
        json.dumps(candidate, sort_keys=True) + json.dumps(tuning.kind(cases[0]), sort_keys=True): (
            cases[0],
            candidate,
        )
        for cases in rows(tuning).values()
        for candidate in tuning.candidates(cases[0])
    }
    for case, candidate in list(items.values())[part::parts]:
        try:
            tuning.compile(case, candidate)
        except Exception as error:
            print(f"{json.dumps(candidate)}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def _measure(tuning: ModuleType, target: Path, deadline: float) -> None:
    checked: set[str] = set()
    for name, cases in rows(tuning).items():
        if time.time() > deadline:
            print(f"out of time before {name}")
            return
        choices = tuning.candidates(cases[0])
        scores = _scores(tuning, cases, choices, 5, deadline, checked)
        finalists = sorted(scores, key=lambda i: scores[i])[:FINALISTS]
        if not finalists:
            print(f"{name}: nothing could be measured")
            continue
        chosen = [choices[i] for i in finalists]
        again = _scores(tuning, cases, chosen, 15, deadline, checked) or {0: 0.0}
        best = chosen[min(again, key=lambda i: again[i])]
        known = json.loads(target.read_text()) if target.exists() else {}
        known[name] = best
        target.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        print(f"{name}: {json.dumps(best)}", flush=True)


def _scores(
    tuning: ModuleType, cases: list[dict], choices: list[dict], repeats: int, deadline: float,
    checked: set[str],
) -> dict[int, float]:  # fmt: skip
    """Mean logarithm of the time relative to the best of each case, for candidates that are right in all of
    them. `checked`: kinds and candidates that were found right before."""
    sums = dict.fromkeys(range(len(choices)), 0.0)
    for case in cases:
        seconds: dict[int, float] = {}
        calls = tuning.calls(case)
        for i in list(sums):
            if time.time() > deadline:
                return {}
            try:
                name = f"{tuning.kind(case)} {choices[i]}"
                if name not in checked:
                    tuning.compile(case, choices[i])
                    checked.add(name)
                seconds[i] = graph_seconds(calls(choices[i]), repeats)
            except Exception as error:
                print(
                    f"{case} {json.dumps(choices[i])}: {type(error).__name__}: {str(error)[:200]}", flush=True
                )
                del sums[i]
        if seconds:
            best = min(seconds.values())
            for i, value in seconds.items():
                sums[i] += math.log(value / best) / len(cases)
    return sums


def require_right(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> None:
    """Raises ArithmeticError where a result is off by more than TOLERANCE of its norm."""
    for got, want in zip(found, wanted, strict=True):
        off = float((got.double() - want).norm() / want.norm())
        if not off < TOLERANCE:
            raise ArithmeticError(f"wrong by {off:.1e}")


def graph_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of what `run` launches, as a CUDA graph, the L2 overwritten before each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repeats + 2):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in times[2:]) / 1e3


if __name__ == "__main__":
    main()
