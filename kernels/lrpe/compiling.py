"""What LRPE compiles for an architecture and head dims, for tnbench.kernels.compiled."""

from __future__ import annotations

from collections.abc import Iterator

from tnbench.kernels.compiled import Kernel
from tnbench.kernels.lrpe import triton_kernels as source
from tnbench.kernels.lrpe.configurations import configuration

HEADS = 8
TENSORS = ("q", "k", "q_out", "k_out", "dq_out", "dk_out", "dq", "dk")


def variants(capability: int, dims: list[int]) -> Iterator[Kernel]:
    """Both directions of both forms in bf16, with learned angles."""
    for dim in dims:
        for form in ("cosine", "rotation"):
            for direction in ("forward", "backward"):
                yield kernel(direction, form, dim, capability)


def kernel(direction: str, form: str, dim: int, capability: int) -> Kernel:
    """As the launches in triton_op.py call it."""
    function = source.rotate if direction == "forward" else source.rotate_backward
    angles = dim if form == "cosine" else dim // 2
    steps, block, warps, _ = configuration(direction, HEADS * angles, 4096, f"sm_{capability}")
    numbers = (*source.NUMBERS, *source.STRIDES)
    types = dict.fromkeys(numbers, "i32") | dict.fromkeys(TENSORS, "*bf16")
    types |= {"theta": "*fp32", "dtheta": "*fp32"}
    constants = {
        "CHANNELS": HEADS * angles, "ANGLES": angles, "PAIRED": form == "rotation", "SHARED": False,
        "ALIGN": 16, "LEARNED": True, "STEPS": steps, "BLOCK": block,
    }  # fmt: skip
    names = function.arg_names
    return Kernel(
        f"lrpe {direction} {form} {dim}",
        function,
        {name: kind for name, kind in types.items() if name in names},
        {name: value for name, value in constants.items() if name in names},
        {"num_warps": warps},
        numbers,
    )
