"""What the decode step compiles for an architecture and rows of the state, for tnbench.kernels.compiled."""

from __future__ import annotations

from collections.abc import Iterator

from tnbench.kernels.compiled import Kernel
from tnbench.kernels.decode_step import triton_kernels
from tnbench.kernels.decode_step.configurations import Configuration, lookup

FORMS = (("none", "none"), ("swish", "cosine"), ("softmax", "rotation"))
"""φ and LRPE of the variants: nothing, the paper's, and the one that asks for most."""


def variants(capability: int, dims: list[int]) -> Iterator[Kernel]:
    """States of so many rows and 128 columns, bf16 inputs; for a card that is filled and one that is not."""
    for rows in dims:
        for chosen in dict.fromkeys(lookup(rows, full, f"sm_{capability}") for full in (True, False)):
            for feature_map, form in FORMS:
                yield kernel(chosen, rows, 128, feature_map, form)


def kernel(chosen: Configuration, rows: int, columns: int, feature_map: str, form: str) -> Kernel:
    """The kernel of a configuration; rows a power of two."""
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | dict.fromkeys(("log_decay", "state"), "*fp32")
    types |= {f"{x}_{d}": "i32" for x in ("q", "k", "v", "state") for d in ("batch", "head")}
    types |= {"theta_head": "i32", "position_batch": "i32", "heads": "i32", "scale": "fp32"}
    constants = {
        "DIM": rows // 2 if form == "cosine" else rows, "ROWS": rows, "COLUMNS": columns, "BLOCK": rows,
        "TILE": chosen.tile, "FEATURE": feature_map, "FORM": form,
    }  # fmt: skip
    if form == "none":
        constants |= {"theta": None, "position": None}
    else:
        types |= {"theta": "*fp32", "position": "*i32"}
    label = f"decode step, {rows} x {columns} in tiles of {chosen.tile}, {feature_map}, {form}"
    options = {"num_warps": chosen.warps}
    loose = ("theta_head", "position_batch", "heads")
    return Kernel(label, triton_kernels.decode_step, types, constants, options, loose)
