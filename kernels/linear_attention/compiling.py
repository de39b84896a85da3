"""What the linear attention compiles for an architecture and head dims, for tnbench.kernels.compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from tnbench.kernels.compiled import Kernel
from tnbench.kernels.layout import power
from tnbench.kernels.linear_attention import triton_gradients, triton_kernels, triton_walks
from tnbench.kernels.linear_attention.configurations import Configuration, Launch, Shape, lookup

PROCESSORS = {80: 108, 90: 132, 100: 148}
_OPTIONAL: dict[str, str] = dict.fromkeys(
    ("start", "ends", "final", "before", "after", "dend", "dstart"), "*fp32"
)


def variants(capability: int, dims: list[int]) -> Iterator[Kernel]:
    """Every kernel of a forward and a backward in bf16, for whole batches and for packed sequences."""
    for dim in dims:
        config = lookup(Shape(capability, PROCESSORS[capability], True, dim, 64, 8192, True))
        for packed in (False, True):
            yield from kernels(config, dim, dim, packed=packed)


def kernels(
    config: Configuration, dk: int, dv: int, *, packed: bool = False, scaled: bool = False,
    dtype: tl.dtype = tl.bfloat16, precision: str = "tf32",
) -> Iterator[Kernel]:  # fmt: skip
    """The kernels of a configuration: spans in both directions, outputs, gradients, d log λ."""
    element = {tl.bfloat16: "*bf16", tl.float16: "*fp16", tl.float32: "*fp32"}[dtype]
    plain = (*triton_kernels.RUNTIME, "chunks")

    def build(
        label: str, function: Any, tensors: tuple[str, ...], present: tuple[str, ...], constants: dict,
        launch: Launch,
    ) -> Kernel:  # fmt: skip
        types = dict.fromkeys(plain, "i32") | {"scale": "fp32", "log_decay": "*fp32"}
        types |= dict.fromkeys(tensors, element)
        types |= {f"{x}_{d}": "i32" for x in tensors for d in ("batch", "time", "head")}
        types |= {x: _OPTIONAL[x] for x in present} | ({"cu_seqlens": "*i32"} if packed else {})
        constants = dict.fromkeys((*_OPTIONAL, "kept", "cu_seqlens")) | constants
        constants |= {"CHUNK": launch.chunk, "DTYPE": dtype, "PRECISION": precision, "SCALED": scaled}
        constants |= {"TMA": launch.tma, "DEEP": launch.deep}
        names = function.arg_names
        types = {n: t for n, t in types.items() if n in names}
        constants = {n: c for n, c in constants.items() if n in names and n not in types}
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        if launch.registers:
            options["maxnreg"] = launch.registers
        name = f"{label}, {dk} x {dv}" + (", packed" if packed else "")
        return Kernel(name, function, types, constants, options, plain)

    states, outputs, gradients = config.states, config.outputs, config.gradients
    for reverse in (False, True):
        tile = min(states.tile, power(dv))
        constants = {"DB": dk, "DC": dv, "BB": power(dk), "TILE": tile, "REVERSE": reverse}
        label = "spans" + (", reverse" if reverse else "")
        yield build(label, triton_kernels.span_states, ("b", "c"), ("ends",), constants, states)
    size = {"DK": dk, "DV": dv, "BK": power(dk)}
    constants = size | {"TILE": min(outputs.tile, power(dv))}
    yield build("outputs", triton_walks.outputs, ("q", "k", "v", "o"), ("ends",), constants, outputs)
    keys, values = min(gradients.tile, power(dk)), min(gradients.tile, power(dv))
    constants = size | {"BV": power(dv), "TILE_K": keys, "TILE_V": values}
    tensors = ("q", "k", "v", "do", "dq", "dk", "dv")
    yield build("gradients", triton_walks.gradients, tensors, ("before", "after"), constants, gradients)
    if not packed:
        constants = size | {"TILE": min(32, power(dv))}
        launch = Launch(states.chunk, 0, 4, 1)
        tensors = ("q", "k", "v", "do")
        kernel = build(
            "gradient of the decay", triton_gradients.decay_gradient, tensors, (), constants, launch
        )
        kernel.types.update(dict.fromkeys(("before", "after"), element), out="*fp32")
        yield kernel._replace(constants={n: c for n, c in kernel.constants.items() if n not in kernel.types})
