"""Registers, spills, shared memory and kind of matrix instruction of the Triton kernels that a call
launches.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

KINDS = (("tcgen05.mma", "tcgen05"), ("wgmma.mma_async", "wgmma"), ("mma.sync", "mma.sync"))
"""Texts in the PTX, and what they are reported as; without any of them, fma."""


def report(call: Callable[[], object]) -> list[dict[str, Any]] | None:
    """One entry a kernel, in the order of the launches. None where triton does not tell.

    Kernels that torch.compile has generated are launched past triton's hook and are not seen.
    """
    try:
        from triton import knobs
        from triton.compiler import CompiledKernel
    except ImportError:
        return None
    from tnbench.kernels import devices

    launched: list[int] = []

    def enter(metadata: Any) -> None:
        handle = metadata.get().get("function")
        if handle not in launched:
            launched.append(handle)

    before = knobs.runtime.launch_enter_hook
    try:
        knobs.runtime.launch_enter_hook = enter  # pyright: ignore[reportAttributeAccessIssue]
        devices.quick_launches = False
        call()
    except (AttributeError, TypeError):
        return None
    finally:
        devices.quick_launches = True
        knobs.runtime.launch_enter_hook = before
    kernels = {}
    for found in gc.get_objects():
        if type(found) is CompiledKernel and getattr(found, "function", None) in launched:
            kernels[found.function] = found
    try:
        return [_entry(kernels[handle]) for handle in launched if handle in kernels]
    except (AttributeError, KeyError):
        return None


def _entry(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    return {
        "kernel": kernel.metadata.name,
        "registers": kernel.n_regs,
        "spills": kernel.n_spills,
        "shared_bytes": kernel.metadata.shared,
        "instruction": next((name for text, name in KINDS if text in ptx), "fma"),
    }
