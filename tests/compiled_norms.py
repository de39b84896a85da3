"""What the assembler makes of the norms and of LRPE, on GPUs that are not there.

Run by test_norm_kernels.py as a program, with TRITON_INTERPRET unset: a capability and, for more than a few
kernels, `every`. Prints one JSON line per kernel; `wide` and `narrow` count the accesses to global memory of
16 bytes and of single numbers.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import chain
from typing import Any

import triton

from tnbench.kernels.compiled import resources
from tnbench.kernels.lrpe import compiling as lrpe
from tnbench.kernels.normalisation import compiling as norms

MODEL = (
    "norm 1024 bf16",
    "norm_gate_backward 1024 bf16",
    "weighted_backward 1024 bf16",
    "column sums 1024",
    "lrpe backward cosine 128",
)


def main(capability: int, every: bool) -> None:
    codes: list[str] = []
    compile = triton.compile

    def kept(*arguments: Any, **options: Any) -> Any:
        built: Any = compile(*arguments, **options)
        codes.append(built.asm["ptx"])
        return built

    triton.compile = kept  # `resources` does not hand the code out
    widths = [96, 1000, 1024, 2048, 4096, 8192, 16384] if every else [1024]
    for kernel in chain(norms.variants(capability, widths), lrpe.variants(capability, [128, 96])):
        if not every and kernel.label not in MODEL:
            continue
        row = {"kernel": kernel.label, **resources(kernel, capability)}
        row["wide"] = len(re.findall(r"(?:ld|st)\.global\S*\.v4|cp\.async\S* .*0x10", codes[-1]))
        row["narrow"] = len(re.findall(r"(?:ld|st)\.global(?!\S*\.v\d)\S*", codes[-1]))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), "every" in sys.argv[2:])
