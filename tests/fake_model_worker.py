"""A worker of profile-model that computes nothing: its variant's name says how it behaves.

    python fake_model_worker.py NAME FOLDER

`fine-3` takes 3 µs for each token; of the `big` ones, one at a time fits; `fits-3` fits up to 3,000 tokens.
FOLDER holds a file for each process that was started, `NAME.PID`, with the requests it got, and `held.PID`
for each that holds memory.
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
    behaviour, _, pace = name.partition("-")
    for count, line in enumerate(sys.stdin):
        request = json.loads(line)
        log.write(line)
        if request["do"] == "quit":
            break
        if behaviour == "big" and request["do"] == "prepare":
            if any(alive(int(path.suffix[1:])) for path in folder.glob("held.*")):
                print("RESULT " + json.dumps({"status": "oom", "reason": "held by others"}), flush=True)
                continue
            (folder / f"held.{os.getpid()}").write_text("")
        print("RESULT " + json.dumps(respond(behaviour, float(pace or 1), request, count)), flush=True)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def respond(behaviour: str, pace: float, request: dict, count: int) -> dict:
    do = request["do"]
    if do == "roofline":
        return {"status": "ok", "copy_bytes_per_second": 1e9, "matmul_flops_per_second": 1e12}
    if do == "prepare":
        arm = request["arm"]
        context, batch = arm["config"]["data"]["context"], arm["batch"]
        if behaviour == "crash":
            print("Fatal: the driver is gone", file=sys.stderr, flush=True)
            os._exit(7)
        if behaviour == "error":
            return {"status": "error", "reason": "ValueError: its result is not finite"}
        if behaviour in ("oom", "unsupported"):
            return {"status": behaviour, "reason": f"because it is {behaviour}"}
        if behaviour == "fits" and context * batch > pace * 1000:
            return {"status": "oom", "reason": "too large"}
        tokens = batch if arm["mode"] == "decode" else batch * context
        return {
            "status": "ok",
            "reason": None,
            "form": "eager",
            "parameters": 1000,
            "non_embedding_parameters": 900,
            "tokens": tokens,
            "flops": 1e6 * tokens,
            "counted_flops": 1.1e6 * tokens,
            "uncounted": None,
            "floor_bytes": 2e3,
            "state_bytes": 64,
            "peak_memory_bytes": 1000 * context,
            "predicted_memory_bytes": 950 * context,
            "predicted_parts": {},
            "first_call_seconds": 0.5,
        }
    if do == "energy":
        return {"status": "ok", "joules_per_call": 2.0, "watts": 300.0, "calls": 9}
    if behaviour == "hang":
        time.sleep(60)
    if behaviour == "dies" and do == "time":
        os.kill(os.getpid(), 9)
    seconds = pace * 1e-6 * 1024 * (1 + 0.01 * (count * (1 + int(pace) // 2) % 5))
    return {"status": "ok", "reason": None, "seconds": [seconds] * 3}


if __name__ == "__main__":
    main()
