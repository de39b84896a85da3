"""One arm in a process of its own: requests on stdin, one JSON line each; answers on stdout, after `RESULT `.

    python -m tnbench.profiling.models.worker --device cuda

prepare: build the arm, call it, and measure its memory; time, energy: measure the one that was prepared;
roofline; quit. What libraries print goes to stderr. An error of Python's is an answer; a crash is left to the
process that started this one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
from typing import IO, Any

from tnbench.errors import first_line
from tnbench.profiling.pool import RESULT


def main(arguments: list[str] | None = None) -> None:
    """Answer requests until `quit` or the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m tnbench.profiling.models.worker")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    options = parser.parse_args(arguments)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        importlib.import_module("tnbench.profiling.models.arms")  # side by side with other processes
        serve(Worker(options.device), sys.stdin, answers)


def serve(worker: Worker, requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        if not line.strip():
            continue
        request = json.loads(line)
        if request["do"] == "quit":
            return
        answers.write(RESULT + json.dumps(worker.answer(request)) + "\n")
        answers.flush()


class Worker:
    """Answers requests about one arm on one kind of device (`cuda` or `cpu`)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._arm: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; its status says what went wrong, if anything did."""
        import torch

        from tnbench.profiling.models.peers import Unsupported

        actions = {
            "prepare": self._prepare,
            "time": self._time,
            "energy": self._energy,
            "roofline": self._roofline,
        }
        try:
            found = {"status": "ok", "reason": None} | actions[request["do"]](request)
        except Unsupported as error:
            found = {"status": "unsupported", "reason": str(error)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            found = {"status": "oom", "reason": first_line(error)}
        except Exception as error:
            status = "oom" if "out of memory" in str(error).lower() else "error"
            found = {"status": status, "reason": first_line(error)}
        if found["status"] != "ok":
            self._arm = None
        self._free()
        return found

    def _roofline(self, request: dict[str, Any]) -> dict[str, Any]:
        from tnbench.profiling import roofline

        return roofline.measure(self.device)

    def _prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Memory as predicted; the first call, its result, and memory as measured; FLOPs."""
        import torch

        from tnbench.profiling.models import arms

        spec = arms.Spec.from_dict(request["arm"])
        if self.device == "cpu":
            torch.set_num_threads(spec.config.training.threads)
        elif spec.limit is not None:
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, spec.limit / whole))
        predicted = _predicted(spec)
        total = predicted["predicted_memory_bytes"]
        self._refuse_if_too_large(total)
        started = time.perf_counter()
        self._arm = arm = arms.build(spec)
        read = arm.read(arm.call())
        if not bool(torch.isfinite(read).all()):
            raise ValueError("its result is not finite")
        first = time.perf_counter() - started
        del read
        peak = self._peak()
        if spec.limit is not None and peak > spec.limit:
            raise MemoryError(f"needs {peak >> 20} MiB of memory, {spec.limit >> 20} MiB are allowed")
        counted, reason = _counted(spec)
        return {
            "form": arm.form,
            "parameters": arm.parameters,
            "non_embedding_parameters": arm.non_embedding,
            "tokens": spec.tokens,
            "flops": arm.flops,
            "counted_flops": counted,
            "uncounted": reason,
            "floor_bytes": arm.floor_bytes,
            "state_bytes": arm.state_bytes,
            "peak_memory_bytes": peak,
            **predicted,
            "first_call_seconds": first,
        }

    def _peak(self) -> int:
        """Bytes at the peak of a call, with all that is there between calls.

        The second call's on a GPU: compilers that try kernels out in the first take memory for that.
        """
        import torch

        from tnbench.profiling.kernels import memory

        self._free()
        held = torch.cuda.memory_allocated() if self.device == "cuda" else _held()
        beyond = memory.peak(self._arm.call, self.device)
        assert beyond is not None, "torch's profiler has told no allocations"
        return held + beyond

    def _time(self, request: dict[str, Any]) -> dict[str, Any]:
        from tnbench.profiling import timing

        calls, seconds = int(request["calls"]), float(request["seconds"])
        return {"seconds": timing.steady(self._arm.call, calls, seconds, self.device)}

    def _energy(self, request: dict[str, Any]) -> dict[str, Any]:
        from tnbench.profiling import energy

        return energy.measure(self._arm.call, float(request["seconds"]), self.device)

    def _refuse_if_too_large(self, predicted: int | None) -> None:
        """Before it takes a CPU's memory: its process, or another one, would be killed."""
        from tnbench.profiling.kernels import memory

        if self.device == "cpu" and predicted is not None:
            free = memory.available(self.device) * 3 // 4
            if predicted > free:
                raise MemoryError(f"needs about {predicted >> 20} MiB of memory, {free >> 20} MiB are free")

    def _free(self) -> None:
        """Give memory back: idle processes share one GPU."""
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _held() -> int:
    """Bytes of all tensors of this process on the CPU."""
    import torch

    kinds = (torch.Tensor, torch.nn.Parameter)
    storages = {
        storage.data_ptr(): storage.nbytes()
        for one in gc.get_objects()
        if type(one) in kinds and one.device.type == "cpu"
        for storage in [one.untyped_storage()]
    }
    return sum(storages.values())


def _predicted(spec: Any) -> dict[str, Any]:
    """Bytes by the memory model, in all and by part; None, with the reason, where it has no answer."""
    from dataclasses import asdict

    reason = "another package's model"
    if not spec.peer:
        from tnbench.profiling.models.memory import predict

        try:
            found = predict(spec.config, spec.vocabulary, spec.mode, batch=spec.together, device=spec.device)
            return {"predicted_memory_bytes": found.total, "predicted_parts": asdict(found)}
        except Exception as error:  # what cannot be traced costs this figure, not the row
            reason = first_line(error)
    return {"predicted_memory_bytes": None, "predicted_parts": None, "unpredicted": reason}


def _counted(spec: Any) -> tuple[float | None, str | None]:
    """FLOPs by torch's counter, or None and the reason."""
    if spec.peer or spec.mode == "decode":
        return None, "another package's model" if spec.peer else "a decoding step is not traced"
    from tnbench.profiling.models import flops

    try:
        return flops.by_counter(spec.config, spec.vocabulary, spec.mode, spec.batch, spec.device), None
    except Exception as error:  # an operator that cannot be traced costs this figure, not the row
        return None, first_line(error)


if __name__ == "__main__":
    main()
