"""What the norms compile for an architecture and row widths, for tnbench.kernels.compiled."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tnbench.kernels.compiled import Kernel
from tnbench.kernels.normalisation import triton_kernels as source
from tnbench.kernels.normalisation.configurations import OPERATIONS, SUMMING, Configuration, configuration

FP32 = ("weight", "bias", "dweight", "dbias")


def variants(capability: int, widths: list[int]) -> Iterator[Kernel]:
    """Every operation in bf16 and fp32, and the sums over programs."""
    for width in widths:
        block = 1 << (width - 1).bit_length()
        for operation in OPERATIONS:
            for size, element in ((2, "*bf16"), (4, "*fp32")):
                chosen = configuration(operation, block, size, f"sm_{capability}")
                if chosen is not None:
                    yield kernel(operation, width, element, chosen)
        yield Kernel(
            f"column sums {width}",
            source.column_sums,
            {"parts": "*fp32", "out": "*fp32", "rows": "i32"},
            {"WIDTH": width, "BLOCK": 16, "ROWS": 512},
            {"num_warps": 8},
            ("rows",),
        )


def kernel(operation: str, width: int, element: str, chosen: Configuration) -> Kernel:
    """As the launches in launches.py call it, on contiguous rows."""
    summing = operation in SUMMING
    function = source.forward
    if operation.endswith("backward"):
        function = source.summing_backward if summing else source.backward
    used = {"x", "dy", "dx", "y"}
    used |= {"residual", "total", "dtotal"} if "add" in operation else set()
    used |= {"gate", "dgate"} if "gate" in operation else set()
    used |= {"weight", "dweight"} if summing else set()
    used |= {"bias", "dbias"} if operation == "affine_backward" else set()
    numbers = {*source.FORWARD_NUMBERS, *source.BACKWARD_NUMBERS}
    constants = {
        "WIDTH": width, "BLOCK": 1 << (width - 1).bit_length(), "ROWS": chosen.rows, "GROUPED": False,
        "ALIGN": math.gcd(width, 16), "CENTRED": operation == "affine_backward", "ACTIVATION": "swish",
        "ALIKE": False, "STAGES": chosen.stages,
    }  # fmt: skip
    types: dict[str, str] = {}
    for name in function.arg_names:
        if name in numbers:
            types[name] = "i32"
        elif name == "eps":
            types[name] = "fp32"
        elif name in used:
            types[name] = "*fp32" if name in FP32 else element
        else:
            constants.setdefault(name, None)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    label = f"{operation} {width} {element[1:]}"
    return Kernel(label, function, types, constants, {"num_warps": chosen.warps}, tuple(sorted(numbers)))
