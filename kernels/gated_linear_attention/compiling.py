"""What gated linear attention compiles for itself, beside the kernels of its parts: the feature maps."""

from __future__ import annotations

from collections.abc import Iterator

from tnbench.kernels.compiled import Kernel
from tnbench.kernels.gated_linear_attention import MAPS
from tnbench.kernels.gated_linear_attention import triton_kernels as source
from tnbench.kernels.gated_linear_attention.triton_op import BLOCK, ROWS, WARPS


def variants(capability: int, widths: list[int]) -> Iterator[Kernel]:
    """Every map in bf16, forward and backward."""
    for width in widths:
        for name in MAPS:
            if name == "none":
                continue
            for function, other in ((source.map_forward, "y"), (source.map_backward, "dx")):
                constants = {"WIDTH": 2 * width, "BLOCK": BLOCK, "ROWS": ROWS, "ALIGN": 16, "MAP": name}
                types = {"x": "*bf16", other: "*bf16", **dict.fromkeys(source.NUMBERS, "i32")}
                label = f"{function.__name__} {name} {width}"
                yield Kernel(label, function, types, constants, {"num_warps": WARPS}, tuple(source.NUMBERS))
