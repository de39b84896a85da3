"""LRPE on queries and keys, with a θ that is learned."""

from __future__ import annotations

from typing import ClassVar

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.operators.base import Grid, Operator
from tnbench.profiling.kernels.operators.norms import COMPILED, COPY, OURS, TORCH

_TENSORS = {
    "cosine": {"forward": 6, "backward": 8, "both": 14},
    "rotation": {"forward": 4, "backward": 6, "both": 10},
}
"""Tensors of q's size that are moved: q, k in and q', k' out, which the cosine form makes twice as wide;
backward their gradients in, q and k again for θ's, and dq, dk out."""


class LRPE(Operator):
    name = "lrpe"
    summary = "linearized relative position encoding of q and k"
    modes = ("forward", "backward", "both")
    axes = ("mode", "dtype", "form", "batch_heads", "head_dim", "length")
    sizes = ("length", "batch", "heads", "key_dim")
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {
            "mode": ("forward", "backward"),
            "dtype": ("bfloat16",),
            "form": ("cosine", "rotation"),
            "batch_heads": ((4, 16),),
            "head_dim": (64, 128),
            "length": (1024, 4096, 16384),
        },
        "cpu": {
            "mode": ("forward", "backward"),
            "dtype": ("float32",),
            "form": ("cosine",),
            "batch_heads": ((1, 4),),
            "head_dim": (64,),
            "length": (512, 2048),
        },
    }
    implementations = (OURS, TORCH, COMPILED, COPY)

    def floor_bytes(self, case: Case) -> int:
        return _TENSORS[case.shape["form"]][case.mode] * self._tensor(case)

    def flops(self, case: Case) -> int:
        """Products with a cosine and a sine for each element of q and k; three times as many backward."""
        each = {"forward": 4, "backward": 12, "both": 16}[case.mode]
        return each * self._tensor(case) // case.item_size

    def predicted_memory(self, case: Case, implementation: str) -> int | None:
        """Ours: q' and k', and dq and dk; θ's gradient is not counted."""
        if implementation != "triton":
            return None
        outputs = 4 if case.shape["form"] == "cosine" else 2
        return (outputs + (2 if case.trains else 0)) * self._tensor(case)

    @staticmethod
    def _tensor(case: Case) -> int:
        shape = case.shape
        return shape["length"] * shape["batch"] * shape["heads"] * shape["key_dim"] * case.item_size
