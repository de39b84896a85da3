"""LRPE as a torch operator: `tnbench::lrpe`, opaque to torch.compile without a graph break.

Under TRITON_INTERPRET=1 it runs on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tnbench.kernels.devices import INTERPRETED, machine
from tnbench.kernels.lrpe import triton_kernels
from tnbench.kernels.lrpe.configurations import Configuration, configuration
from tnbench.kernels.normalisation.launching import Launch, Launches, direct, look, sum_of_columns

_known = Launches()


def _reachable(x: Tensor) -> Tensor:
    """x, or a copy where its last dim is not dense or its heads lie further apart than 32 bits count."""
    return x if x.stride(-1) == 1 and x.shape[2] * x.stride(2) < 1 << 31 else x.contiguous()


def _strides(*tensors: Tensor) -> tuple[int, list[int]]:
    """The power of two up to 16 that all strides share, and (batch, time, head) strides divided by it."""
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    align = math.gcd(16, *strides)
    return align, [stride // align for stride in strides]


def launch_forward(
    q: Tensor, k: Tensor, theta: Tensor, start: int, form: str, chosen: Configuration | None = None
) -> tuple[Tensor, Tensor]:
    """q', k'. `chosen` overrides the table."""
    shape = _out_shape(q, form)
    q_out = torch.empty(shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(shape, dtype=k.dtype, device=k.device)
    if q.numel() == 0:
        return q_out, k_out
    q, k, theta = _reachable(q), _reachable(k), theta.contiguous()
    key = (look(q), look(k), look(theta), q.device, form)
    launch = _known.get(key) if chosen is None else None
    if launch is None:
        batch, time, heads, _ = q.shape
        angles = theta.shape[1]
        channels = heads * angles
        steps, block, warps, _ = chosen or configuration(
            "forward", channels, time, machine(q.device.index).architecture
        )
        align, strides = _strides(q, k)
        grid = (batch * -(-time // steps), -(-channels // block), 1)
        constants = (channels, angles, form == "rotation", theta.shape[0] == 1, align, steps, block)
        launch = Launch(triton_kernels.rotate, grid, (time, *strides), constants, warps)
        if chosen is None:
            _known.keep(key, launch)
    launch(q.device, q, k, theta, q_out, k_out, values=(start,))
    return q_out, k_out


def launch_backward(
    dq_out: Tensor,
    dk_out: Tensor,
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    start: int,
    form: str,
    learned: bool,
    chosen: Configuration | None = None,
) -> list[Tensor]:
    """dq, dk and, if learned, dθ. `chosen` overrides the table."""
    dq, dk = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    if q.numel() == 0:
        return [dq, dk, torch.zeros_like(theta)] if learned else [dq, dk]
    read = [_reachable(x) for x in (q, k, dq_out, dk_out)]
    theta = theta.contiguous()
    batch, time, heads, _ = q.shape
    angles = theta.shape[1]
    channels = heads * angles
    key = (*map(look, read), look(theta), q.device, form, learned)
    launch = _known.get(key) if chosen is None else None
    if launch is None:
        here = machine(q.device.index)
        steps, block, warps, waves = chosen or configuration("backward", channels, time, here.architecture)
        blocks, programs = -(-channels // block), batch * -(-time // steps)
        if learned:
            programs = min(programs, max(1, here.processors * waves // blocks))
        align, strides = _strides(*read)
        constants = (channels, angles, form == "rotation", theta.shape[0] == 1, align, learned, steps, block)
        launch = Launch(
            triton_kernels.rotate_backward,
            (programs, blocks, 1),
            (batch, time, *strides),
            constants,
            warps,
        )
        if chosen is None:
            _known.keep(key, launch)
    parts = None
    if learned:
        parts = torch.empty(launch.grid[0], channels, dtype=torch.float32, device=q.device)
    q, k, dq_out, dk_out = read
    launch(q.device, q, k, theta, dq_out, dk_out, dq, dk, parts, values=(start,))
    if parts is None:
        return [dq, dk]
    # Angles that the heads share gather the sums of all heads.
    (dtheta,) = sum_of_columns(parts.view(1, -1, theta.numel()), theta.dtype)
    return [dq, dk, dtheta.view(theta.shape)]


def _out_shape(q: Tensor, form: str) -> tuple[int, ...]:
    return (*q.shape[:3], q.shape[3] * 2 if form == "cosine" else q.shape[3])


LIBRARY = torch.library.Library("tnbench", "FRAGMENT")
LIBRARY.define("lrpe(Tensor q, Tensor k, Tensor theta, SymInt start, str form) -> (Tensor, Tensor)")
LIBRARY.define(
    "lrpe_backward(Tensor dq, Tensor dk, Tensor q, Tensor k, Tensor theta, SymInt start, str form,"
    " bool learned) -> Tensor[]"
)
for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
    LIBRARY.impl("lrpe", launch_forward, _device)
    LIBRARY.impl("lrpe_backward", launch_backward, _device)


@torch.library.register_fake("tnbench::lrpe", lib=LIBRARY)
def _(q, k, theta, start, form):
    q_out, k_out = (torch.empty(_out_shape(x, form), dtype=x.dtype, device=x.device) for x in (q, k))
    return q_out, k_out


@torch.library.register_fake("tnbench::lrpe_backward", lib=LIBRARY)
def _(dq, dk, q, k, theta, start, form, learned):
    given = [q, k, theta] if learned else [q, k]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in given]


def _setup(ctx, inputs, output):
    q, k, theta, ctx.start, ctx.form = inputs
    ctx.save_for_backward(q, k, theta)


def _gradients(ctx, dq_out, dk_out):
    q, k, theta = ctx.saved_tensors
    learned = ctx.needs_input_grad[2]
    arguments = (dq_out, dk_out, q, k, theta, ctx.start, ctx.form, learned)
    # Gradients that are to be differentiated go through the operator, which refuses.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not direct(*arguments[:5]):
        found = torch.ops.tnbench.lrpe_backward(*arguments)
    else:
        found = launch_backward(*arguments)
    return found[0], found[1], found[2] if learned else None, None, None


def _refuse(ctx, *gradients):
    raise RuntimeError("LRPE's Triton kernels can be differentiated once; take implementation reference")


torch.library.register_autograd("tnbench::lrpe_backward", _refuse, lib=LIBRARY)
torch.library.register_autograd("tnbench::lrpe", _gradients, setup_context=_setup, lib=LIBRARY)


class _Rotate(torch.autograd.Function):
    """`tnbench::lrpe` past the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        _setup(ctx, inputs, None)
        return launch_forward(*inputs)

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


def rotate(
    q: Tensor, k: Tensor, theta: Tensor, *, start: int = 0, form: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """Shapes, forms and errors as in `tnbench.kernels.lrpe.rotate`."""
    if torch.compiler.is_compiling() or not direct(q, k, theta):
        return torch.ops.tnbench.lrpe(q, k, theta, start, form)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or theta.requires_grad):
        return _Rotate.apply(q, k, theta, start, form)
    return launch_forward(q, k, theta, start, form)
