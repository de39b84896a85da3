"""Which bytes are alive while a program runs, told from a run on fake tensors: sizes without memory.

A `Live` is laid over a FakeTensorMode; every operator shows it its results, and a storage counts until its
last reference is gone, as in torch's allocators. What an operator takes for itself while it runs is not seen
by a fake tensor: `workspace` knows the operators that take much.

Fake tensors stand on the CPU, where torch can differentiate them without a GPU; `pretend` makes the program
choose what it chooses on a GPU.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tnbench.kernels import devices
from tnbench.training import losses

BLOCK = {"cpu": 1, "cuda": 512}
"""Bytes that an allocation is rounded up to."""
LIBRARIES = {"cpu": 0, "cuda": 8 * 4096 << 10}
"""What cuBLAS takes from torch's allocator: CUBLAS_WORKSPACE_CONFIG=:4096:8, which training sets."""
SOME_GPU = devices.Machine(90, 132)
"""An H100: stands for the GPU where there is none, since the kernels cut sequences by its processors."""

Parts = dict[str, int]


class Live(TorchDispatchMode):
    """Bytes of live storages by kind, and their peak in each phase of the program.

    Args:
        block: bytes that an allocation is rounded up to.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.kind = "activations"
        """What new storages are."""
        self.now: Parts = {}
        self.peaks: dict[Any, Parts] = {}
        """The parts at the peak of each phase, in the order of the phases."""
        self._block = block
        self._phase: Any = "begin"
        self._storages: dict[int, tuple[weakref.ref, int, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.note(workspace(func, args))
        return found

    def mark(self, phase: Any) -> None:
        """From here on, peaks belong to `phase`, which may have been before."""
        self._phase = phase
        self.note(0)

    def note(self, beyond: int) -> None:
        """For a moment, `beyond` bytes more of activations are alive."""
        total = sum(self.now.values()) + beyond
        if total > sum(self.peaks.get(self._phase, {"": -1}).values()):
            parts = dict(self.now)
            parts["activations"] = parts.get("activations", 0) + beyond
            self.peaks[self._phase] = parts

    def label(self, tensor: Tensor, kind: str) -> None:
        """The tensor's storage is of another kind than was thought."""
        key = tensor.untyped_storage()._cdata
        reference, size, before = self._storages[key]
        self._storages[key] = (reference, size, kind)
        self.now[before] -= size
        self.now[kind] = self.now.get(kind, 0) + size

    def size(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of the tensors' storages."""
        keys = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(self._storages[key][1] for key in keys if key in self._storages)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = math.ceil(storage.nbytes() / self._block) * self._block
        self._storages[key] = (weakref.ref(storage, lambda _: self._forget(key)), size, self.kind)
        self.now[self.kind] = self.now.get(self.kind, 0) + size

    def _forget(self, key: int) -> None:
        _, size, kind = self._storages.pop(key)
        self.now[kind] -= size


def workspace(func: Any, args: tuple) -> int:
    """Bytes that an operator allocates while it runs and gives back, of those whose fake form hides much.

    Args:
        func: the operator.
        args: its arguments, tensors of which only shapes and dtypes are looked at.
    """
    taken = _WORKSPACES.get(func._schema.name) if hasattr(func, "_schema") else None
    return 0 if taken is None else taken(*args)


def _linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Any, initial: Any, cu: Any, scale: Any, output: Any,
    precise: bool, save: bool,
) -> int:  # fmt: skip
    """End-states of segments, where they are not kept for a backward pass."""
    return 0 if save else _ends(q.shape, v.shape, v, precise, False)


def _linear_attention_backward(
    do: Tensor, dfinal: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Any, initial_state: Any, cu: Any,
    ends: Tensor, scale: float, precise: bool, decay: bool, initial: bool,
) -> int:  # fmt: skip
    """End-states of the walk backwards; for a decay's gradient, both states at the borders of all chunks."""
    from tnbench.kernels.linear_attention.plans import KEPT

    taken = _ends(q.shape, v.shape, v, precise, True)
    if decay:
        batch, time, heads, width = q.shape
        taken += 2 * batch * math.ceil(time / KEPT) * heads * width * v.shape[-1] * v.itemsize
    return taken


def _gated(
    projected: Tensor, log_decay: Any, weight: Any, bias: Any, heads: int, feature_map: str, *rest: Any
) -> int:
    """φ(q) and φ(k), and end-states of segments where they are not kept."""
    mapped = projected.nbytes // 2 if feature_map != "none" else 0
    batch, time, wide = projected.shape
    heads_of = (batch, time, heads, wide // 4 // heads)
    return mapped + (0 if rest[-1] else _ends(heads_of, heads_of, projected, False, False))


def _gated_backward(
    dy: Tensor, projected: Tensor, log_decay: Any, weight: Any, bias: Any, out: Tensor, ends: Tensor,
    heads: int, feature_map: str, *rest: Any,
) -> int:  # fmt: skip
    """Those of its parts: φ(q) and φ(k) again, the gradient of O, what linear attention takes."""
    mapped = projected.nbytes // 2 if feature_map != "none" else 0
    decay = bool(rest[-1])
    inside = _linear_attention_backward(
        out, None, out, out, out, log_decay, None, None, ends, 1.0, False, decay, False
    )
    return mapped + out.nbytes + inside


def _ends(q: Sequence[int], v: Sequence[int], like: Tensor, precise: bool, training: bool) -> int:
    """Of q and v of these shapes. No operator may run on the tensors here: it would be followed."""
    from tnbench.kernels.linear_attention.plans import Plan

    plan = Plan(tuple(q), tuple(v), like.dtype, like.device.index, None, precise, training)
    return plan.span_units * plan.heads * plan.dk * plan.dv * 4 if plan.split else 0


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, gradients: bool) -> int:
    """What the operator's own body allocates for a chunk, beside its results."""
    with Live(1) as inside:
        results = losses._operator._init_fn(hidden[:rows], weight, targets[:rows], rows, gradients)
        kept = inside.size(results)
    return sum(inside.peaks["begin"].values()) - kept


def _attention_backward(dout: Tensor, q: Tensor, *_: Any) -> int:
    """dq in fp32, which thread blocks add up, and a value for each row."""
    return 4 * q.numel() + 4 * q.numel() // q.shape[-1]


_WORKSPACES: dict[str, Callable[..., int]] = {
    "tnbench::linear_attention": _linear_attention,
    "tnbench::linear_attention_backward": _linear_attention_backward,
    "tnbench::gated_linear_attention": _gated,
    "tnbench::gated_linear_attention_backward": _gated_backward,
    "tnbench::linear_cross_entropy": _linear_cross_entropy,
    "tnbench_memory::attention_backward": _attention_backward,
}


def _attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Results of softmax attention by cuDNN or FlashAttention: for q (batch, heads, time, dim)."""
    batch, heads, time, _ = q.shape
    out = torch.empty(batch, time, heads, v.shape[-1], dtype=v.dtype, device=v.device)
    return out.transpose(1, 2), torch.empty(batch, heads, time, device=q.device)


def _attention_gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


# Operators of torch's that stand for them have fake forms of their own, but for the devices that have them.
_forward = torch.library.custom_op("tnbench_memory::attention", _attention_forward, mutates_args=())
_backward = torch.library.custom_op(
    "tnbench_memory::attention_backward", _attention_gradients, mutates_args=()
)
_forward.register_fake(_attention_forward)
_backward.register_fake(_attention_gradients)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(dout, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_setup)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Softmax attention as a GPU computes it: no scores in memory."""
    return _forward(q, k, v)[0]


@contextmanager
def pretend(device: str) -> Iterator[None]:
    """Inside, programs on the CPU choose the operators that they choose on `device`.

    For `cuda`: the Triton kernels (cut for the GPU that is there, else for an H100), fused softmax attention,
    autocast, and the chunked loss with its elementwise part in place. To be used on fake tensors alone.
    """
    if device == "cpu":
        yield
        return
    from tnbench.kernels.linear_attention import plans, triton_op

    autocast = torch.autocast
    machine = devices.machine(torch.cuda.current_device()) if torch.cuda.is_available() else SOME_GPU
    with (
        replaced(devices, _obstacle=_obstacle),
        replaced(triton_op, INTERPRETED=True),  # it takes tensors that are not on a GPU
        replaced(plans, machine=lambda index: machine),
        replaced(losses, _cross_entropy=_in_place, _accumulate=lambda *_: None),
        replaced(torch, autocast=lambda device_type, **options: autocast("cpu", **options)),
        # Not by a TorchFunctionMode: inside Tensor.backward, where blocks are called again, it is off.
        replaced(F, scaled_dot_product_attention=_fused_attention),
    ):
        yield


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside, these attributes of a module have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _obstacle(dtype: torch.dtype, device: str, index: int | None) -> str | None:
    return None if dtype in (torch.bfloat16, torch.float16, torch.float32) else f"not in {dtype}"


def _in_place(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_zeros(())
