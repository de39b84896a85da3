"""Gated linear attention as a torch operator: the launches of its parts on slices of one projection.

`tnbench::gated_linear_attention` is opaque to torch.compile without a graph break; eager calls go past the
dispatcher. Under TRITON_INTERPRET=1 it runs on the CPU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tnbench.kernels.devices import INTERPRETED, on
from tnbench.kernels.gated_linear_attention import triton_kernels
from tnbench.kernels.linear_attention import plans, triton_op
from tnbench.kernels.linear_attention.configurations import Configuration
from tnbench.kernels.linear_attention.plans import Plan
from tnbench.kernels.normalisation.launches import launch_backward, launch_forward
from tnbench.kernels.normalisation.launching import Launch, direct

BLOCK, ROWS, WARPS = 1024, 4, 8
"""Tiles of the feature maps: bytes alone cost time there, and 16 values a thread keep them coming."""


class Options(NamedTuple):
    """What is no tensor, in the order of the operator's arguments."""

    heads: int
    feature_map: str
    scale: float
    centred: bool
    eps: float
    per_head: bool
    activation: str


class Slices(NamedTuple):
    """Views of a projection (batch, time, 4 · width): (batch, time, heads, dim), the gate as O is normed."""

    q: Tensor
    k: Tensor
    v: Tensor
    u: Tensor


def _slices(projected: Tensor, options: Options) -> Slices:
    q, k, v, u = (part.unflatten(-1, (options.heads, -1)) for part in projected.chunk(4, -1))
    return Slices(q, k, v, u if options.per_head else u.flatten(-2))


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple, dtype: torch.dtype, device: int | None, training: bool, mapped: bool, precision: str,
    override: Configuration | None,
) -> Plan:  # fmt: skip
    """A plan of this operator alone: a plan keeps launches for one set of strides, and q and k have others
    than any other caller's, and others again where they are mapped. The last three arguments are part of the
    key."""
    return Plan(shape, shape, dtype, device, None, False, training)


def _planned(v: Tensor, training: bool, options: Options) -> Plan:
    precision, mapped = torch.get_float32_matmul_precision(), options.feature_map != "none"
    return _plan(tuple(v.shape), v.dtype, v.device.index, training, mapped, precision, plans.override)


@lru_cache(maxsize=1024)
def _map(
    device: torch.device, dtypes: tuple, function: Any, rows: int, width: int, feature_map: str
) -> Launch:
    """Of φ, forward or backward, on 2 · width columns of 4 · width; device and dtypes are keys alone."""
    columns = 2 * width
    align = math.gcd(16, 4 * width)
    grid = (-(-rows // ROWS), -(-columns // BLOCK), 1)
    constants = (columns, BLOCK, ROWS, align, feature_map)
    return Launch(function, grid, (rows, 4 * width // align), constants, WARPS)


def _mapped(projected: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """φ(q) and φ(k), (batch, time, heads, dim)."""
    parts = _slices(projected, options)
    if options.feature_map == "none":
        return parts.q, parts.k
    batch, time, wide = projected.shape
    both = torch.empty(batch, time, wide // 2, dtype=projected.dtype, device=projected.device)
    device, width = projected.device, wide // 4
    launch = _map(
        device, (projected.dtype,), triton_kernels.map_forward, batch * time, width, options.feature_map
    )
    launch(device, projected, both)
    q, k = (part.unflatten(-1, (options.heads, -1)) for part in both.chunk(2, -1))
    return q, k


def _normed(out: Tensor, options: Options) -> Tensor:
    """O as its norm sees it."""
    return out if options.per_head else out.flatten(-2)


def forward(
    projected: Tensor, log_decay: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    options: Options, save: bool, clean: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Y, O and the end-states of spans (`clean`: zeros in those that nobody reads)."""
    q, k = _mapped(projected, options)
    parts = _slices(projected, options)
    plan = _planned(parts.v, save, options)
    out = torch.empty(parts.v.shape, dtype=projected.dtype, device=projected.device)
    ends = plan.run_spans(k, parts.v, log_decay, None, clean=clean)
    plan.run_outputs(q, k, parts.v, out, log_decay, None, ends, None, None, options.scale)
    y, _ = launch_forward(
        _normed(out, options), None, parts.u, weight, bias, activation=options.activation,
        centred=options.centred, eps=options.eps, dtype=projected.dtype,
    )  # fmt: skip
    return y.view(*projected.shape[:2], -1), out, ends


def backward(
    dy: Tensor, projected: Tensor, log_decay: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    out: Tensor, ends: Tensor | None, options: Options, decay: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:  # fmt: skip
    """The projection's gradient, that of log λ if asked for, and those of weight and bias."""
    given, found = _slices(projected, options), torch.empty_like(projected)
    wanted = _slices(found, options)
    do, _, *sums = launch_backward(
        dy.contiguous().view(given.u.shape), None, _normed(out, options), given.u, weight, bias,
        activation=options.activation, centred=options.centred, eps=options.eps, dgate=wanted.u,
    )  # fmt: skip
    do = do.view(out.shape)
    q, k = _mapped(projected, options)
    plan = _planned(given.v, True, options)
    after = plan.run_spans(q, do, log_decay, None, options.scale, reverse=True)
    plan.run_gradients(
        q, k, given.v, wanted.q, wanted.k, wanted.v, do, log_decay, None, ends, None, after, None, None,
        options.scale,
    )  # fmt: skip
    ddecay = None
    if decay:
        ddecay = plan.run_decay(q, k, given.v, do, log_decay, None, ends, None, after, None, options.scale)
    if options.feature_map != "none":
        batch, time, wide = projected.shape
        launch = _map(
            projected.device, (projected.dtype,), triton_kernels.map_backward, batch * time, wide // 4,
            options.feature_map,
        )  # fmt: skip
        launch(projected.device, projected, found)
    return found, ddecay, sums


_OPTIONS = "int heads, str feature_map, float scale, bool centred, float eps, bool per_head, str activation"
_library = torch.library.Library("tnbench", "FRAGMENT")
_library.define(
    "gated_linear_attention(Tensor projected, Tensor? log_decay, Tensor? weight, Tensor? bias,"
    f" {_OPTIONS}, bool save) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "gated_linear_attention_backward(Tensor dy, Tensor projected, Tensor? log_decay, Tensor? weight,"
    f" Tensor? bias, Tensor out, Tensor ends, {_OPTIONS}, bool decay) -> Tensor[]"
)


def _forward_operator(projected, log_decay, weight, bias, *rest):
    *options, save = rest
    with on(projected):
        y, out, ends = forward(projected, log_decay, weight, bias, Options(*options), save, clean=save)
    # An operator returns tensors: what is not kept is an empty one.
    nothing = projected.new_empty(0, dtype=torch.float32)
    return y, out, nothing if ends is None or not save else ends


def _backward_operator(dy, projected, log_decay, weight, bias, out, ends, *rest):
    *options, decay = rest
    with on(projected):
        found, ddecay, sums = backward(
            dy, projected, log_decay, weight, bias, out, ends if ends.numel() else None, Options(*options),
            decay,
        )  # fmt: skip
    return [found, *sums] if ddecay is None else [found, ddecay, *sums]


for _name, _function in (
    ("gated_linear_attention", _forward_operator),
    ("gated_linear_attention_backward", _backward_operator),
):
    _library.impl(_name, _function, "CUDA")
    if INTERPRETED:
        _library.impl(_name, _function, "CPU")


@torch.library.register_fake("tnbench::gated_linear_attention", lib=_library)
def _(projected, log_decay, weight, bias, *rest):
    *options, save = rest
    v = _slices(projected, Options(*options)).v
    y = projected.new_empty((*projected.shape[:2], projected.shape[2] // 4))
    # Made anew: sizes that are symbols cannot be a key.
    plan = Plan(tuple(v.shape), tuple(v.shape), v.dtype, v.device.index, None, False, save)
    nothing = projected.new_empty(0, dtype=torch.float32)
    return (
        y,
        projected.new_empty(v.shape),
        plan.states(v, plan.span_units) if save and plan.split else nothing,
    )


@torch.library.register_fake("tnbench::gated_linear_attention_backward", lib=_library)
def _(dy, projected, log_decay, weight, bias, out, ends, *rest):
    decay = [] if not rest[-1] else [log_decay.new_empty(log_decay.shape)]
    return [
        torch.empty_like(projected),
        *decay,
        *(torch.empty_like(x) for x in (weight, bias) if x is not None),
    ]


def _setup(ctx, inputs, output):
    projected, log_decay, weight, bias, *options, _ = inputs
    ctx.options = Options(*options)
    ctx.save_for_backward(projected, log_decay, weight, bias, output[1], output[2])


def _sorted(ctx, found: list[Tensor], weight: Tensor | None, bias: Tensor | None) -> tuple:
    """Gradients in the places of the arguments."""
    rest = iter(found)
    wanted = (True, ctx.needs_input_grad[1], weight is not None, bias is not None)
    return tuple(next(rest) if one else None for one in wanted)


def _differentiate(ctx, dy, *_):
    projected, log_decay, weight, bias, out, ends = ctx.saved_tensors
    found = torch.ops.tnbench.gated_linear_attention_backward(
        dy, projected, log_decay, weight, bias, out, ends, *ctx.options, ctx.needs_input_grad[1]
    )
    return *_sorted(ctx, found, weight, bias), *[None] * (len(Options._fields) + 1)


def _refuse(ctx, *gradients):
    raise RuntimeError("gated_linear_attention can be differentiated once; apply its parts one by one")


torch.library.register_autograd("tnbench::gated_linear_attention_backward", _refuse, lib=_library)
torch.library.register_autograd(
    "tnbench::gated_linear_attention", _differentiate, setup_context=_setup, lib=_library
)


class _Mixer(torch.autograd.Function):
    """The operator past the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        projected, log_decay, weight, bias, *options = inputs
        ctx.options = Options(*options)
        y, out, ends = forward(projected, log_decay, weight, bias, ctx.options, True, False)
        ctx.save_for_backward(projected, log_decay, weight, bias, out, ends)
        return y

    @staticmethod
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            _refuse(ctx)
        projected, log_decay, weight, bias, out, ends = ctx.saved_tensors
        found, ddecay, sums = backward(
            dy, projected, log_decay, weight, bias, out, ends, ctx.options, ctx.needs_input_grad[1]
        )
        gradients = [found, *([] if ddecay is None else [ddecay]), *sums]
        return *_sorted(ctx, gradients, weight, bias), *[None] * len(Options._fields)


def mix(
    projected: Tensor, log_decay: Tensor | None, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> Tensor:
    """Y. Arguments as in `tnbench.kernels.gated_linear_attention`, checked and contiguous."""
    tensors = (projected, log_decay, weight, bias)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    here = not projected.is_cuda or projected.device.index == torch.cuda.current_device()
    if torch.compiler.is_compiling() or not here or not direct(*tensors):
        return torch.ops.tnbench.gated_linear_attention(*tensors, *options, save)[0]
    if save:
        return _Mixer.apply(*tensors, *options)
    return forward(*tensors, Options(*options), False, False)[0]


@register_flop_formula(torch.ops.tnbench.gated_linear_attention)
def _flops(projected_shape, log_decay, weight, bias, heads, *args, **kwargs) -> int:
    """Those of `linear_attention`."""
    batch, time, wide = projected_shape
    shape = (batch, time, heads, wide // 4 // heads)
    return triton_op._flops(shape, shape, shape)


@register_flop_formula(torch.ops.tnbench.gated_linear_attention_backward)
def _flops_backward(
    dy_shape, projected_shape, log_decay, weight, bias, out_shape, *args, **kwargs
) -> int:  # fmt: skip
    """Those of `linear_attention_backward`."""
    return triton_op._flops_backward(out_shape, None, out_shape)
