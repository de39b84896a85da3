"""What the assembler makes of the decode step and of Lightning Attention 1, on GPUs that are not there.

Run by test_decode_kernels.py as a program, with a capability and TRITON_INTERPRET unset. Prints one JSON line
per kernel.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator

import torch
import triton.language as tl

from tnbench.kernels.compiled import Kernel, resources
from tnbench.kernels.decode_step.compiling import variants
from tnbench.kernels.linear_attention import lightning1, lightning1_kernels


def lightning1_variants(capability: int) -> Iterator[Kernel]:
    for half, dim in itertools.product((True, False), (64, 128, 256)):
        dtype = torch.bfloat16 if half else torch.float32
        products = {"DTYPE": tl.bfloat16 if half else tl.float32, "PRECISION": "tf32x3"}

        def build(
            label: str, function, tensors: str, fp32: tuple[str, ...], constants: dict, chosen, dtype=dtype
        ):
            names = tensors.split()
            types = dict.fromkeys(names, "*bf16" if dtype == torch.bfloat16 else "*fp32")
            types |= dict.fromkeys(fp32, "*fp32") | {"time": "i32", "heads": "i32"}
            types |= {f"{x}_{d}": "i32" for x in names for d in ("batch", "time", "head")}
            if "scale" in function.arg_names:
                types["scale"] = "fp32"
            options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
            return Kernel(label, function, types, constants, options, ("time", "heads"))

        chosen = lightning1.blocks(capability, dtype, dim)
        widths = {"DB": dim, "DC": dim, "BB": dim, "BC": dim, "ROWS": chosen.rows, "COLUMNS": chosen.columns}
        for reverse in (False, True):
            constants = widths | products | {"REVERSE": reverse}
            label = f"lightning1 {dtype} {dim} {'reverse' if reverse else 'forward'}"
            yield build(label, lightning1_kernels.product, "a b c y", ("log_decay",), constants, chosen)
        constants = {"DK": dim, "DV": dim, "PIECE": 32, "BLOCK": lightning1.DECAY.rows} | products
        yield build(
            f"lightning1 {dtype} {dim} decay", lightning1_kernels.decay_gradient, "q k v do",
            ("log_decay", "parts"), constants, lightning1.DECAY,
        )  # fmt: skip


def main(capability: int) -> None:
    decode = variants(capability, [16, 32, 64, 128, 256, 512])
    for built in itertools.chain(decode, lightning1_variants(capability)):
        print(json.dumps({"kernel": built.label, **resources(built, capability)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
