"""The norms over the last dimension, alone, times a gate, and after a residual is added."""

from __future__ import annotations

from typing import ClassVar

from tnbench.profiling.kernels.cases import Case
from tnbench.profiling.kernels.operators.base import Grid, Implementation, Operator, ours, peer

FORMS = ("srmsnorm", "rmsnorm", "layernorm")
"""Without weights; with a weight; centred, with a weight and a bias."""

OURS = ours("triton", "the Triton kernels")
TORCH = Implementation("torch", "torch", "eager torch")
COMPILED = Implementation(
    "torch-compiled", "torch", "the definition through torch.compile", slow_on_cpu=True, compiles="anew"
)
LIGER = peer("liger", "Liger kernels", "liger_kernel", "liger-kernel")
UNFUSED = Implementation(
    "unfused",
    "torch",
    "the Triton norm, then torch's product",
    ("triton",),
    "triton",
    gpu=True,
    compiles="anew",
)
COPY = Implementation("copy", "copy", "a copy that moves the same bytes")


class _Rows(Operator):
    """What the operators on (rows, width) share: tensors moved forward and backward, by mode."""

    modes = ("forward", "backward", "both")
    axes = ("mode", "dtype", "form", "width", "rows")
    sizes = ("rows", "width")
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {
            "mode": ("forward", "backward"),
            "dtype": ("bfloat16",),
            "form": ("srmsnorm",),
            "width": (1024, 2048, 4096, 8192, 16384),
            "rows": (4096, 16384, 65536),
        },
        "cpu": {
            "mode": ("forward", "backward"),
            "dtype": ("float32",),
            "form": ("srmsnorm",),
            "width": (1024,),
            "rows": (1024, 4096),
        },
    }
    moved: ClassVar[dict[str, int]]
    held: ClassVar[dict[str, int]]

    def floor_bytes(self, case: Case) -> int:
        """Whole tensors; weights and their gradients, one row each, are not counted."""
        return self.moved[case.mode] * self._tensor(case)

    def flops(self, case: Case) -> int:
        """Four operations an element forward, eight backward."""
        each = {"forward": 4, "backward": 8, "both": 12}[case.mode]
        return each * case.shape["rows"] * case.shape["width"]

    def predicted_memory(self, case: Case, implementation: str) -> int | None:
        """Ours: outputs and gradients of whole tensors, nothing else."""
        if implementation != "triton" or case.shape["form"] != "srmsnorm":
            return None
        return self.held["both" if case.trains else case.mode] * self._tensor(case)

    @staticmethod
    def _tensor(case: Case) -> int:
        return case.shape["rows"] * case.shape["width"] * case.item_size


class Norm(_Rows):
    name = "norm"
    summary = "SRMSNorm, RMSNorm, LayerNorm over rows"
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {**_Rows.grids["cuda"], "form": ("srmsnorm", "rmsnorm")},
        "cpu": _Rows.grids["cpu"],
    }
    implementations = (OURS, TORCH, COMPILED, LIGER, COPY)
    moved: ClassVar[dict[str, int]] = {"forward": 2, "backward": 3, "both": 5}
    held: ClassVar[dict[str, int]] = {"forward": 1, "both": 2}


class NormGate(_Rows):
    name = "norm_gate"
    summary = "a norm times a gate, the layer's output"
    implementations = (OURS, UNFUSED, TORCH, COMPILED, COPY)
    moved: ClassVar[dict[str, int]] = {"forward": 3, "backward": 5, "both": 8}
    held: ClassVar[dict[str, int]] = {"forward": 1, "both": 3}


class AddNorm(_Rows):
    """Gradients arrive at both outputs and dx is the residual's gradient too."""

    name = "add_norm"
    summary = "a residual is added, and the sum normalised"
    grids: ClassVar[dict[str, Grid]] = {
        "cuda": {**_Rows.grids["cuda"], "form": ("srmsnorm", "rmsnorm")},
        "cpu": _Rows.grids["cpu"],
    }
    implementations = (OURS, TORCH, COMPILED, LIGER, COPY)
    moved: ClassVar[dict[str, int]] = {"forward": 4, "backward": 4, "both": 8}
    held: ClassVar[dict[str, int]] = {"forward": 2, "both": 3}
