"""Forward and backward of the norms: outputs, layouts, configurations, kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tnbench.kernels.devices import machine
from tnbench.kernels.normalisation import triton_kernels, wide_kernels
from tnbench.kernels.normalisation.configurations import WIDE_BLOCK, Configuration, configuration
from tnbench.kernels.normalisation.launching import Launch, Launches, look, sum_of_columns
from tnbench.kernels.normalisation.rows import Rows

_known = Launches()
WIDE_WARPS = 16


def launch_forward(
    x: Tensor,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    centred: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    chosen: Configuration | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(y, r') of x (…, width); r' is None without a residual. `chosen` overrides the table."""
    y, total = outputs(x, residual, gate, dtype)
    weight, bias = _dense(weight), _dense(bias)
    read = (x, residual, gate)
    key = (look(x), look(residual), look(gate), *_dtypes(weight, bias, y), x.device, activation, centred, eps)
    launch = _known.get(key) if chosen is None else None
    if launch is None:
        if x.numel() == 0:
            return y, total
        where = Rows(*read)
        launch = _forward(where, x, (residual, gate), (activation, centred), eps, chosen)
        if chosen is None and all(a is b for a, b in zip(where.tensors, read, strict=True)):
            _known.keep(key, launch)
        read = where.tensors
    launch(x.device, *read, weight, bias, total, y)
    return y, total


def _dtypes(*tensors: Tensor | None) -> tuple[torch.dtype | None, ...]:
    return tuple(None if t is None else t.dtype for t in tensors)


def _forward(
    where: Rows,
    x: Tensor,
    others: tuple[Tensor | None, Tensor | None],
    flags: tuple[str, bool],
    eps: float,
    chosen: Configuration | None,
) -> Launch:
    residual, gate = others
    block = 1 << (where.width - 1).bit_length()
    operation = "add_norm" if residual is not None else "norm" if gate is None else "norm_gate"
    chosen = chosen or configuration(operation, block, x.element_size(), machine(x.device.index).architecture)
    activation, centred = flags
    kind = (where.grouped, where.align, centred, activation)
    if chosen is None:
        constants = (where.width, WIDE_BLOCK, *kind)
        return Launch(
            wide_kernels.forward_wide, (where.count, 1, 1), (*where.numbers, eps), constants, WIDE_WARPS
        )
    grid = (-(-where.count // chosen.rows), 1, 1)
    constants = (where.width, block, chosen.rows, *kind)
    return Launch(triton_kernels.forward, grid, (where.count, *where.numbers, eps), constants, chosen.warps)


def launch_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    centred: bool = False,
    eps: float = 1e-6,
    dgate: Tensor | None = None,
    chosen: Configuration | None = None,
) -> list[Tensor]:
    """dx (with dr' added), then dgate, dweight, dbias of what is given. `dgate` is where the gate's gradient
    is wanted, of its shape, dtype and strides; `chosen` overrides the table."""
    if x.numel() == 0:
        return [torch.zeros_like(t) for t in (x, gate, weight, bias) if t is not None]
    weight, bias = _dense(weight), _dense(bias)
    dx = _like(x, x.dtype)
    alike = dgate is not None
    if gate is not None and dgate is None:
        dgate = _like(gate, gate.dtype)
    read = (dy, dtotal, x, gate)
    key = (*map(look, read), *_dtypes(weight, bias), x.device, activation, centred, eps, alike)
    launch = _known.get(key) if chosen is None else None
    parameters = [p for p in (weight, bias) if p is not None]
    if launch is None:
        where = Rows(*read)
        apart = alike and where.tensors[3] is not gate  # the gate had to be copied: it lies elsewhere
        flags = (activation, centred, alike)
        launch = None if apart else _backward(where, x, (dtotal, gate), (weight, bias), flags, eps, chosen)
        if launch is None:
            own = dgate if dgate is None or not alike else _like(dgate, dgate.dtype)
            sums = _backward_wide(where, (weight, bias, dx, own), flags[:2], eps)
            if dgate is not None and own is not None and own is not dgate:
                dgate.copy_(own)
            return [t for t in (dx, dgate, *sums) if t is not None]
        if chosen is None and all(a is b for a, b in zip(where.tensors, read, strict=True)):
            _known.keep(key, launch)
        read = where.tensors
    if not parameters:
        launch(x.device, *read, dx, dgate)
        return [dx] if dgate is None else [dx, dgate]
    shape = (len(parameters), launch.grid[0], x.shape[-1])
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    to_weight, to_bias = None if weight is None else parts[0], None if bias is None else parts[-1]
    launch(x.device, *read, weight, bias, dx, dgate, to_weight, to_bias)
    sums = sum_of_columns(parts, *(p.dtype for p in parameters))
    return [dx, *sums] if dgate is None else [dx, dgate, *sums]


def _backward(
    where: Rows,
    x: Tensor,
    others: tuple[Tensor | None, Tensor | None],
    parameters: tuple[Tensor | None, Tensor | None],
    flags: tuple[str, bool, bool],
    eps: float,
    chosen: Configuration | None,
) -> Launch | None:
    """None: the row is wider than registers hold."""
    dtotal, gate = others
    weight, bias = parameters
    operation = "norm_backward" if gate is None else "norm_gate_backward"
    if bias is not None:
        operation = "affine_backward"
    elif weight is not None:
        operation = "weighted_backward"
    elif dtotal is not None:
        operation = "add_norm_backward"
    block = 1 << (where.width - 1).bit_length()
    here = machine(x.device.index)
    chosen = chosen or configuration(operation, block, x.element_size(), here.architecture)
    if chosen is None:
        return None
    programs = -(-where.count // chosen.rows)
    numbers = (where.count, *where.numbers, eps)
    activation, centred, alike = flags
    constants = (where.width, block, chosen.rows, where.grouped, where.align, centred, activation, alike)
    if not chosen.waves:
        return Launch(triton_kernels.backward, (programs, 1, 1), numbers, constants, chosen.warps)
    grid = (min(programs, here.processors * chosen.waves), 1, 1)
    return Launch(triton_kernels.summing_backward, grid, numbers, (*constants, chosen.stages), chosen.warps)


def _backward_wide(where: Rows, rest: tuple[Any, ...], flags: tuple[str, bool], eps: float) -> list[Tensor]:
    """Writes dx and dgate; returns dweight and dbias of those that there are."""
    dy, _, x, gate = where.tensors
    weight, bias, *_ = rest
    assert x is not None
    activation, centred = flags
    parameters = [p for p in (weight, bias) if p is not None]
    means = scales = None
    if parameters:
        means, scales = torch.empty(2, where.count, dtype=torch.float32, device=x.device)
    constants = (where.width, WIDE_BLOCK, where.grouped, where.align, centred, activation)
    launch = Launch(
        wide_kernels.backward_wide, (where.count, 1, 1), (*where.numbers, eps), constants, WIDE_WARPS
    )
    launch(x.device, *where.tensors, *rest, means, scales)
    if not parameters:
        return []
    block, rows = 256, 16
    blocks = -(-where.width // block)
    processors = machine(x.device.index).processors
    shares = max(1, min(-(-where.count // rows), 8 * processors // blocks))
    shape = (len(parameters), shares, where.width)
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    groups, dy_outer, dy_inner, _, _, *others = where.numbers
    numbers = (where.count, groups, dy_outer, dy_inner, *others)
    constants = (where.width, block, rows, where.grouped, where.align, activation)
    launch = Launch(wide_kernels.weight_gradient, (blocks, shares, 1), numbers, constants, 8)
    to_weight, to_bias = None if weight is None else parts[0], None if bias is None else parts[-1]
    launch(x.device, dy, x, gate, means, scales, to_weight, to_bias)
    return sum_of_columns(parts, *(p.dtype for p in parameters))


def outputs(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """y and r', not yet written."""
    total = None
    result = x.dtype
    if residual is not None:
        result = torch.promote_types(x.dtype, residual.dtype)
        total = _like(x, result)
    elif gate is not None and gate.dtype != result:
        result = torch.promote_types(result, gate.dtype)
    return _like(x, dtype or result), total


def _dense(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.stride(0) == 1 else parameter.contiguous()


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, of x's shape."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
