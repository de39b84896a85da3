"""Kernels compiled for a GPU that need not be there, and what the compiler made of them: `python -m
tnbench.kernels.compiled OPERATOR CAPABILITY DIM …` prints a line of JSON for each kernel. Needs
TRITON_INTERPRET unset.

An operator takes part by a module `compiling` in its folder with `variants(capability, dims)`, which yields
`Kernel`s.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from typing import Any, NamedTuple

from tnbench.errors import RequestError
from tnbench.kernels.parts import part

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program may have, by compute capability."""


class Kernel(NamedTuple):
    """One kernel as it is launched: Triton types of its run-time arguments, constants, launch options.

    Arguments in `types` that are not in `unspecialised` are taken as multiples of 16, as they are where it
    matters.
    """

    label: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    unspecialised: tuple[str, ...] = ()


def resources(kernel: Kernel, capability: int) -> dict[str, Any]:
    """Registers, spilled words, bytes of shared memory and matrix instructions of a kernel on
    sm_`capability`."""
    from triton import compile as build
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.function.arg_names
    source = ASTSource(
        fn=kernel.function,
        signature={n: kernel.types.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): v for n, v in kernel.constants.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]]
            for n, t in kernel.types.items()
            if n not in kernel.unspecialised and not t.startswith("fp")
        },
    )
    begin = time.time()
    built: Any = build(source, target=GPUTarget("cuda", capability, 32), options=dict(kernel.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    ptx = built.asm["ptx"]
    registers = re.search(r"REG:(\d+)", usage)
    return {
        "registers": int(registers[1]) if registers else None,
        "spills": len(re.findall(r"\bSTL\b", code)),
        "shared": built.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": len(re.findall(r"mma\.sync", ptx)),
        "tcgen05": ptx.count("tcgen05.mma"),
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/\s", code)),
        "seconds": round(time.time() - begin, 1),
    }


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="What the compiler makes of an operator's kernels.")
    parser.add_argument("operator")
    parser.add_argument("capability", type=int, choices=SHARED, help="of the GPU: 90 for sm_90")
    parser.add_argument("dims", type=int, nargs="+", metavar="DIM", help="head dims, widths or state rows")
    arguments = parser.parse_args()
    try:
        module = part(arguments.operator, "compiling")
    except RequestError as error:
        parser.error(str(error))
    for kernel in module.variants(arguments.capability, arguments.dims):
        print(json.dumps({"kernel": kernel.label, **resources(kernel, arguments.capability)}), flush=True)


if __name__ == "__main__":
    main()
