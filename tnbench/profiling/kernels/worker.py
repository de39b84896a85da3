"""One implementation in a process of its own: requests on stdin, one JSON line each; answers on stdout, after
`RESULT `.

    python -m tnbench.profiling.kernels.worker IMPLEMENTATION --device cuda [--kernels-from DIR]

compile: call a case once; prepare: judge and describe it; time, energy: measure one that was prepared here;
roofline; quit. What libraries print goes to stderr. An error of Python's is an answer; a crash is left to
the process that started this one.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tnbench.errors import first_line

PREFIX = "RESULT "


def main(arguments: list[str] | None = None) -> None:
    """Answer requests until `quit` or the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m tnbench.profiling.kernels.worker")
    parser.add_argument("implementation")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument(
        "--kernels-from", type=Path, help="a checkout whose kernels/ are measured in place of these"
    )
    options = parser.parse_args(arguments)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        if options.kernels_from:
            import tnbench.kernels

            tnbench.kernels.__path__ = [str(options.kernels_from / "kernels")]
        import tnbench.profiling.kernels.gate

        serve(Worker(options.implementation, options.device), sys.stdin, answers)


def serve(worker: Worker, requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            answer = None if request.get("do") == "quit" else worker.answer(request)
        except Exception as error:  # a request that cannot be understood
            answer = {"status": "error", "reason": f"bad request: {first_line(error)}"}
        if answer is None:
            return
        answers.write(PREFIX + json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """Answers requests about one implementation on one kind of device (`cuda` or `cpu`)."""

    def __init__(self, implementation: str, device: str) -> None:
        self.implementation, self.device = implementation, device
        self._statuses: dict[str, str] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; its status says what went wrong, if anything did."""
        import torch

        from tnbench.profiling.kernels.cases import Case
        from tnbench.profiling.kernels.implementations import Unsupported

        actions: dict[str, Callable[..., dict[str, Any]]] = {
            "compile": self._compile,
            "prepare": self._prepare,
            "time": self._time,
            "energy": self._energy,
            "roofline": self._roofline,
        }
        action = actions[request["do"]]
        arguments: tuple[Any, ...] = (
            () if request["do"] == "roofline" else (Case.from_dict(request["case"]), request)
        )
        try:
            answer = action(*arguments)
        except Unsupported as error:
            answer = {"status": "unsupported", "reason": str(error)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            answer = {"status": "oom", "reason": first_line(error)}
        except Exception as error:
            answer = {"status": _status(error), "reason": first_line(error)}
        if request["do"] == "prepare":
            self._statuses[arguments[0].key()] = answer["status"]
        self._free()
        return answer

    def _roofline(self) -> dict[str, Any]:
        from tnbench.profiling import roofline

        return {"status": "ok", "reason": None} | roofline.measure(self.device)

    def _bind(self, case: Any) -> tuple[Any, dict]:
        from tnbench.profiling.kernels.implementations import bind, inputs

        _allow_recompiling()
        given = inputs(case, self.device)
        return bind(case, self.implementation, given), given

    def _compile(self, case: Any, request: dict[str, Any]) -> dict[str, Any]:
        """The first call alone, which leaves compiled kernels in the caches on disk."""
        bound, _ = self._bind(case)
        bound.step(case.mode)()
        self._synchronize()
        return {"status": "ok", "reason": None}

    def _prepare(self, case: Any, request: dict[str, Any]) -> dict[str, Any]:
        """The first call, the gate, the peak of memory, and what the compiler made of the kernels."""
        from tnbench.profiling.kernels import compiled_report, gate, memory
        from tnbench.profiling.kernels.operators import OPERATORS

        predicted = OPERATORS[case.operator].predicted_memory(case, self.implementation)
        self._refuse_if_too_large(predicted)
        bound, given = self._bind(case)
        started = time.perf_counter()
        step, names = bound.step(case.mode), bound.names(case.mode)
        shapes = [(tuple(x.shape), x.dtype) for x in step()]
        self._synchronize()
        first = time.perf_counter() - started
        del step
        if bound.reset:
            bound.reset()
        whole = "both" if case.trains else case.mode  # the memory of a backward is that of its forward too
        peak = memory.peak(lambda: bound.step(whole)(), self.device)
        step = bound.step(case.mode)
        if bound.reset:
            bound.reset()
        if self.device == "cuda":
            memory.poison(shapes)
        results = dict(zip(names, step(), strict=True))
        verdict = gate.check(case, self.implementation, bound, results, given)
        del results
        compiled = compiled_report.report(step) if self.device == "cuda" else None
        return {
            "status": "wrong" if verdict.reason else "ok",
            "reason": verdict.reason,
            "errors": verdict.errors,
            "limits": verdict.limits,
            "peak_memory_bytes": peak,
            "predicted_memory_bytes": predicted,
            "first_call_seconds": first,
            "compiled": compiled,
        }

    def _time(self, case: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of single calls, and of replays of a CUDA graph where the case takes one."""
        from tnbench.profiling import timing
        from tnbench.profiling.kernels.operators import OPERATORS

        self._require_prepared(case)
        calls, seconds = int(request.get("calls", 30)), float(request.get("seconds", 0.5))
        bound, _ = self._bind(case)
        graphs = request.get("graph", OPERATORS[case.operator].graphs(case))
        answer: dict[str, Any] = {"status": "ok", "reason": None, "graph_seconds": None}
        answer["eager_seconds"] = timing.eager(bound.step(case.mode), calls, seconds, self.device)
        if graphs and self.device == "cuda":
            try:
                answer["graph_seconds"] = self._in_graph(bound, case.mode, calls, seconds)
            except RuntimeError as error:
                answer["reason"] = f"no CUDA graph: {first_line(error)}"
        return answer

    def _in_graph(self, bound: Any, mode: str, calls: int, seconds: float) -> list[float]:
        from tnbench.profiling import timing

        captured = self._captured(bound, mode)
        try:
            return timing.replays(captured, calls, seconds)
        finally:
            self._synchronize()
            captured.reset()

    def _captured(self, bound: Any, mode: str) -> Any:
        """One call as a CUDA graph.

        A backward is captured on the stream of its forward, and no other forward of the same leaves may be
        alive: it would tie their gradients to its own stream.
        """
        import torch

        from tnbench.profiling import timing

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            return timing.capture(bound.step(mode))

    def _energy(self, case: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Of replays of a CUDA graph where the case takes one, so that no power is drawn waiting for
        launches.
        """
        from tnbench.profiling import energy
        from tnbench.profiling.kernels.operators import OPERATORS

        self._require_prepared(case)
        bound, _ = self._bind(case)
        captured = None
        if self.device == "cuda" and request.get("graph", OPERATORS[case.operator].graphs(case)):
            with contextlib.suppress(RuntimeError):  # what cannot be captured is called
                captured = self._captured(bound, case.mode)
        call = captured.replay if captured is not None else bound.step(case.mode)
        try:
            answer = {"status": "ok", "reason": None, "graph": captured is not None}
            return answer | energy.measure(call, float(request.get("seconds", 0.3)), self.device)
        finally:
            self._synchronize()
            if captured is not None:
                captured.reset()

    def _require_prepared(self, case: Any) -> None:
        status = self._statuses.get(case.key())
        if status != "ok":
            raise ValueError(
                f"not measured: this process has {f'found it {status}' if status else 'not prepared it'}"
            )

    def _refuse_if_too_large(self, predicted: int | None) -> None:
        """Before it takes the machine's memory: a CPU's process would be killed."""
        from tnbench.profiling.kernels import memory

        if self.device == "cpu" and predicted is not None:
            free = memory.available(self.device)
            if predicted > free * 3 // 4:
                raise MemoryError(f"needs about {predicted >> 20} MiB of memory, {free >> 20} MiB are free")

    def _synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _free(self) -> None:
        """Give memory back: idle workers share one GPU."""
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _allow_recompiling() -> None:
    """One process sees many shapes: torch.compile would stop compiling after eight of them."""
    import torch._dynamo.config
    import torch._functorch.config

    torch._dynamo.config.recompile_limit = 1 << 10
    torch._dynamo.config.accumulated_recompile_limit = 1 << 12
    # A backward is run many times on one forward, whose tensors must not be taken as its buffers.
    torch._functorch.config.donated_buffer = False


def _status(error: Exception) -> str:
    return "oom" if "out of memory" in str(error).lower() else "error"


if __name__ == "__main__":
    main()
