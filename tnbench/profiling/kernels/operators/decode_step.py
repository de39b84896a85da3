"""One token of decayed linear attention with a recurrent state, for a batch of sequences."""

from __future__ import annotations

from typing import ClassVar

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.operators.base import Grid, Operator
from tnbench.profiling.kernels.operators.norms import COMPILED, COPY, OURS, TORCH


class DecodeStep(Operator):
    name = "decode_step"
    summary = "one token, states updated in place"
    modes = ("decode",)
    axes = ("mode", "dtype", "heads", "head_dim", "batch")
    sizes = ("batch", "heads", "key_dim", "value_dim")
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {
            "mode": ("decode",),
            "dtype": ("bfloat16",),
            "heads": (8, 16),
            "head_dim": (64, 128),
            "batch": (1, 8, 64, 256, 512),
        },
        "cpu": {
            "mode": ("decode",),
            "dtype": ("float32",),
            "heads": (4,),
            "head_dim": (64,),
            "batch": (1, 8, 64),
        },
    }
    implementations = (OURS, TORCH, COMPILED, COPY)

    def graphs(self, case: Case) -> bool:
        return True

    def floor_bytes(self, case: Case) -> int:
        """The fp32 state read and written, q, k, v and o."""
        shape = case.shape
        key, value = shape["key_dim"], shape["value_dim"]
        return shape["batch"] * shape["heads"] * (8 * key * value + 2 * (key + value) * case.item_size)

    def flops(self, case: Case) -> int:
        """Decay, outer product and sum, and the product with q: five operations an element of the state."""
        shape = case.shape
        return 5 * shape["batch"] * shape["heads"] * shape["key_dim"] * shape["value_dim"]

    def predicted_memory(self, case: Case, implementation: str) -> int | None:
        """Ours: o alone."""
        if implementation != "triton":
            return None
        return case.shape["batch"] * case.shape["heads"] * case.shape["value_dim"] * case.item_size
