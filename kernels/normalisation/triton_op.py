"""The norms as torch operators: shapes for the compiler, gradients.

`tnbench::norm`, `tnbench::add_norm` and `tnbench::norm_backward` are opaque to torch.compile, which needs no
graph break for them, and run inside CUDA graphs. Eager calls go past the dispatcher, to the same launches
(launching.py says when). Under TRITON_INTERPRET=1 they run on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.devices import INTERPRETED
from tnbench.kernels.normalisation.launches import launch_backward, launch_forward, outputs
from tnbench.kernels.normalisation.launching import direct


def _norm(x, gate, weight, bias, activation, centred, eps, dtype):
    return launch_forward(
        x, None, gate, weight, bias, activation=activation, centred=centred, eps=eps, dtype=dtype
    )[0]


def _add_norm(x, residual, weight, bias, centred, eps, dtype):
    return launch_forward(x, residual, None, weight, bias, centred=centred, eps=eps, dtype=dtype)


def _norm_backward(dy, dtotal, x, gate, weight, bias, activation, centred, eps):
    return launch_backward(dy, dtotal, x, gate, weight, bias, activation=activation, centred=centred, eps=eps)


LIBRARY = torch.library.Library("tnbench", "FRAGMENT")
LIBRARY.define(
    "norm(Tensor x, Tensor? gate, Tensor? weight, Tensor? bias, str activation, bool centred, float eps,"
    " ScalarType? dtype) -> Tensor"
)
LIBRARY.define(
    "add_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, bool centred, float eps,"
    " ScalarType? dtype) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor? gate, Tensor? weight, Tensor? bias,"
    " str activation, bool centred, float eps) -> Tensor[]"
)
for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
    LIBRARY.impl("norm", _norm, _device)
    LIBRARY.impl("add_norm", _add_norm, _device)
    LIBRARY.impl("norm_backward", _norm_backward, _device)


@torch.library.register_fake("tnbench::norm", lib=LIBRARY)
def _(x, gate, weight, bias, activation, centred, eps, dtype):
    return outputs(x, None, gate, dtype)[0]


@torch.library.register_fake("tnbench::add_norm", lib=LIBRARY)
def _(x, residual, weight, bias, centred, eps, dtype):
    return outputs(x, residual, None, dtype)


@torch.library.register_fake("tnbench::norm_backward", lib=LIBRARY)
def _(dy, dtotal, x, gate, weight, bias, activation, centred, eps):
    given = [t for t in (x, gate, weight, bias) if t is not None]
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in given]


def _differentiate(*arguments):
    """`norm_backward`; through the operator if the gradients are to be differentiated, which it refuses."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not direct(*arguments[:6]):
        return iter(torch.ops.tnbench.norm_backward(*arguments))
    return iter(_norm_backward(*arguments))


def _setup(ctx, inputs, output):
    x, gate, weight, bias, ctx.activation, ctx.centred, ctx.eps, _ = inputs
    ctx.save_for_backward(x, gate, weight, bias)


def _gradients(ctx, dy):
    given = ctx.saved_tensors
    found = _differentiate(dy, None, *given, ctx.activation, ctx.centred, ctx.eps)
    return *(None if t is None else next(found) for t in given), None, None, None, None


def _add_setup(ctx, inputs, output):
    x, residual, weight, bias, ctx.centred, ctx.eps, _ = inputs
    ctx.dtypes = x.dtype, residual.dtype
    ctx.save_for_backward(output[1], weight, bias)
    # A network's last norm has no use for r', and its gradient would be a tensor of zeros.
    ctx.set_materialize_grads(False)


def _add_gradients(ctx, dy, dtotal):
    total, weight, bias = ctx.saved_tensors
    if dy is None:
        passed, dweight, dbias = dtotal, None, None
    else:
        found = _differentiate(dy, dtotal, total, None, weight, bias, "none", ctx.centred, ctx.eps)
        passed = next(found)
        dweight, dbias = (None if t is None else next(found) for t in (weight, bias))
    dx, dresidual = (None if passed is None else passed.to(dtype) for dtype in ctx.dtypes)
    return dx, dresidual, dweight, dbias, None, None, None


def _refuse(ctx, *gradients):
    raise RuntimeError("the norms' Triton kernels can be differentiated once; take implementation reference")


torch.library.register_autograd("tnbench::norm_backward", _refuse, lib=LIBRARY)
torch.library.register_autograd("tnbench::norm", _gradients, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("tnbench::add_norm", _add_gradients, setup_context=_add_setup, lib=LIBRARY)


class _Norm(torch.autograd.Function):
    """`tnbench::norm` past the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        _setup(ctx, inputs, None)
        return _norm(*inputs)

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


class _AddNorm(torch.autograd.Function):
    """`tnbench::add_norm` past the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        output = _add_norm(*inputs)
        _add_setup(ctx, inputs, output)
        return output

    backward = staticmethod(_add_gradients)  # pyright: ignore[reportAssignmentType]


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def norm(x, *, gate=None, weight=None, bias=None, activation="none", centred=False, eps=1e-6, dtype=None):
    """Arguments, shapes and errors as in `tnbench.kernels.normalisation.norm`."""
    arguments = (x, gate, weight, bias, activation, centred, eps, dtype)
    if torch.compiler.is_compiling() or not direct(x, gate, weight, bias):
        return torch.ops.tnbench.norm(*arguments)
    return _Norm.apply(*arguments) if _wants_gradients(x, gate, weight, bias) else _norm(*arguments)


def add_norm(x, residual, *, weight=None, bias=None, centred=False, eps=1e-6, dtype=None):
    """Arguments, shapes and errors as in `tnbench.kernels.normalisation.add_norm`."""
    arguments = (x, residual, weight, bias, centred, eps, dtype)
    if torch.compiler.is_compiling() or not direct(x, residual, weight, bias):
        return torch.ops.tnbench.add_norm(*arguments)
    return (
        _AddNorm.apply(*arguments) if _wants_gradients(x, residual, weight, bias) else _add_norm(*arguments)
    )
