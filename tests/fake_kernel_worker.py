"""A worker of profile-kernels that computes nothing: its name says how it behaves.

    python fake_kernel_worker.py NAME FOLDER

`fine-3` takes 3 ms per 1,000 tokens, `fine-3+noise` prints other things too. FOLDER holds a file for each
process that was started, `NAME.PID`, with the requests it got.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    log = open(folder / f"{name}.{os.getpid()}", "w", buffering=1)  # noqa: SIM115
    kind, _, rest = name.partition("@")[0].partition("+")
    behaviour, _, pace = kind.partition("-")
    drift = 0
    for line in sys.stdin:
        request = json.loads(line)
        log.write(line)
        do = request["do"]
        if do == "quit":
            return
        if do == "roofline":
            answer = {"status": "ok", "copy_bytes_per_second": 1e9}
        else:
            drift += 1
            answer = respond(behaviour, float(pace or 1), request, drift)
        if rest == "noise":
            print("a library says hello")
            print("RESULT {broken")
        print("RESULT " + json.dumps(answer), flush=True)


def respond(behaviour: str, pace: float, request: dict, drift: int) -> dict:
    do, length = request["do"], request["case"]["shape"]["length"]
    if behaviour == "crash" and (do == "time" or length > 1024):
        print("Fatal: the driver is gone", file=sys.stderr, flush=True)
        os._exit(7)
    if behaviour == "killed" and do == "prepare":
        os.kill(os.getpid(), 9)
    if behaviour == "hang" and do == "time":
        time.sleep(60)
    if behaviour == "lost" and do == "time":
        return {"status": "error", "reason": "CUDA error: an illegal memory access was encountered"}
    if behaviour == "slow":
        time.sleep(0.05)
    if behaviour in ("oom", "wrong", "unsupported"):
        return {"status": behaviour, "reason": f"because it is {behaviour}", "errors": {"o": float("nan")}}
    if do == "compile":
        return {"status": "ok", "reason": None}
    if do == "prepare":
        return {
            "status": "ok",
            "reason": None,
            "errors": {"o": 1e-3, "dq": 2e-3, "odd": 3e-3},
            "limits": {"o": 2e-3, "dq": 8e-3, "odd": 9e-3},
            "peak_memory_bytes": 4096 * length,
            "predicted_memory_bytes": 4000 * length,
            "first_call_seconds": 1.5,
            "compiled": [
                {"kernel": "a", "registers": 128, "spills": 2, "shared_bytes": 100, "instruction": "wgmma"},
                {"kernel": "b", "registers": 64, "spills": 1, "shared_bytes": 300, "instruction": "fma"},
            ],
        }
    if do == "energy":
        return {"status": "ok", "joules_per_call": 1e-3 * length, "watts": 300.0, "calls": 9}
    seconds = pace * 1e-6 * length * (1 + 0.01 * (drift % 3))
    graph = [seconds / 2] * 3 if request["graph"] else None
    return {"status": "ok", "reason": None, "eager_seconds": [seconds] * 3, "graph_seconds": graph}


if __name__ == "__main__":
    main()
