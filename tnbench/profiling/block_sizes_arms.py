"""Linear attention with a given block size: what is timed, and which launch configurations are tried for it.

The torch form takes its block as a parameter. The Triton kernels take it from their launch configuration,
whose other numbers decide with it how fast they are: for each block size the walks of the tuner
(`kernels/linear_attention/tuning.py`) are tried with that many tokens a step, on the programs and spans of
the case's own configuration. Each is first run on small problems against float64, in a process of its own,
which also fills the compiler's cache:

    python -m tnbench.profiling.block_sizes_arms < configurations
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tnbench.errors import first_line
from tnbench.kernels.linear_attention.chunked import CHUNK, chunked
from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.implementations.bound import Bound, Inputs
from tnbench.profiling.kernels.implementations.linear_attention import leaves, log_decay, output_gradients

WIDE = 64
"""Above so many tokens a step, twice as many warps are tried too."""
PATIENCE = 300.0
"""Seconds after which a process that compiles is ended."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case with one block size."""

    implementation: str
    """`chunked` (torch) or `triton`."""
    block: int
    """Tokens of a block."""
    configuration: str = ""
    """Launch configuration of the Triton kernels as JSON."""


def candidates(case: Case, blocks: Iterable[int], device: str) -> dict[tuple[str, int], list[Candidate]]:
    """By implementation and block size, for blocks no longer than the case: one of torch's; on a GPU, several
    of the Triton kernels, the one that the case takes by itself first.
    """
    fitting = [block for block in blocks if block <= case.shape["length"]]
    found = {}
    if device == "cuda":
        found |= {("triton", block): _launched(case, block) for block in fitting}
    return found | {("chunked", block): [Candidate("chunked", block)] for block in fitting}


def taken(case: Case, implementation: str) -> int:
    """The block size that the code takes by itself."""
    if implementation == "chunked":
        return CHUNK
    table = _table(case)
    return (table.gradients if case.trains else table.outputs).chunk


def bind(case: Case, candidate: Candidate, given: Inputs) -> Bound:
    """A candidate with the inputs of a case."""
    q, k, v = (given[name] for name in ("q", "k", "v"))
    decay = log_decay(case, q.device.type)
    call: Callable[[], tuple[Tensor, ...]]
    if candidate.implementation == "chunked":

        def call() -> tuple[Tensor, ...]:
            return (chunked(q, k, v, decay, chunk=candidate.block)[0],)

    else:
        from tnbench.kernels.linear_attention import linear_attention, plans
        from tnbench.kernels.linear_attention.configurations import from_json

        configuration = from_json(json.loads(candidate.configuration))

        def call() -> tuple[Tensor, ...]:
            plans.override = configuration  # the backward that follows takes it too
            return (linear_attention(q, k, v, decay, implementation="triton")[0],)

    return Bound(call, ("o",), leaves(given), output_gradients(given))


def restore() -> None:
    """Let the Triton kernels take their own configurations again."""
    if plans := sys.modules.get("tnbench.kernels.linear_attention.plans"):
        vars(plans)["override"] = None


def _table(case: Case) -> Any:
    """The configuration that the kernels take for a case on this GPU."""
    from tnbench.kernels.linear_attention import tuning
    from tnbench.kernels.linear_attention.configurations import Shape, lookup

    shape = case.shape
    capability, processors = tuning.machine(_current_device())
    rows, dim = shape["batch"] * shape["heads"], max(shape["key_dim"], shape["value_dim"])
    half = case.dtype != "float32"
    return lookup(Shape(capability, processors, half, dim, rows, shape["length"], case.trains))


def _current_device() -> int:
    import torch

    return torch.cuda.current_device()


def _launched(case: Case, block: int) -> list[Candidate]:
    """The case's own configuration if it has this block, then the tuner's walks with it."""
    from tnbench.kernels.linear_attention import tuning
    from tnbench.kernels.linear_attention.configurations import from_json, to_json

    table = _table(case)
    walks = dict.fromkeys(from_json(one).outputs for one in tuning.candidates({}))
    walks = dict.fromkeys([table.gradients if case.trains else table.outputs, *walks])
    if block > WIDE:
        walks = dict.fromkeys(walk._replace(warps=warps) for walk in walks for warps in (walk.warps, 8))
    sized = (walk._replace(chunk=block) for walk in walks)
    found = [table._replace(outputs=walk, gradients=walk) for walk in sized]
    if taken(case, "triton") == block:
        found.insert(0, table)
    texts = dict.fromkeys(json.dumps(to_json(one), sort_keys=True) for one in found)
    return [Candidate("triton", block, text) for text in texts]


def walks_of(configuration: str) -> str:
    """The part of a launch configuration whose kernels take longest to compile."""
    found = json.loads(configuration)
    return json.dumps([found["outputs"], found["gradients"]])


def prove(
    wanted: Iterable[tuple[Case, Candidate]], workers: int, told: Callable[[int, int], None]
) -> dict[tuple[bool, str], str | None]:
    """Compile configurations of the Triton kernels and run them against float64, side by side.

    Args:
        workers: processes at a time. Those that share a walk's kernels are one process's work.
        told: is called with how many processes have ended, and their number.

    Returns:
        Whether a backward follows, and configuration → what is wrong with it, or None.
    """
    groups: dict[str, dict[tuple[bool, str], dict[str, Any]]] = {}
    for case, candidate in wanted:
        configuration = json.loads(candidate.configuration)
        asked = {"dim": case.shape["key_dim"], "training": case.trains, "candidate": configuration}
        walks = walks_of(candidate.configuration)
        groups.setdefault(walks, {})[case.trains, candidate.configuration] = asked
    found: dict[tuple[bool, str], str | None] = {}
    with ThreadPoolExecutor(workers) as threads:
        answers = threads.map(lambda group: _ask(list(group.values())), groups.values())
        for number, (group, reasons) in enumerate(zip(groups.values(), answers, strict=True), start=1):
            found |= dict(zip(group, reasons, strict=True))
            told(number, len(groups))
    return found


def _ask(asked: Sequence[dict[str, Any]]) -> list[str | None]:
    """What a process says of configurations; those after its end share one reason."""
    command = [sys.executable, "-m", "tnbench.profiling.block_sizes_arms"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        text, lost = done.stdout, f"the process that compiled it ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        text = text.decode() if isinstance(text, bytes) else text
        lost = f"not compiled within {PATIENCE:g} s"
    said = [json.loads(line)["reason"] for line in text.splitlines() if line.startswith('{"reason"')]
    return [*said, *[lost] * (len(asked) - len(said))]


def main() -> None:
    """Answer a list of configurations on stdin, a line each."""
    from tnbench.kernels.linear_attention import tuning

    for one in json.load(sys.stdin):
        try:
            tuning.compile({"dim": one["dim"], "training": one["training"]}, one["candidate"])
            reason = None
        except Exception as error:
            reason = first_line(error)[:200]
        print(json.dumps({"reason": reason}), flush=True)


if __name__ == "__main__":
    main()
