"""The decode step as a torch operator: `tnbench::decode_step`, which changes `state` and says so.

torch.compile needs no graph break for it, and CUDA graphs replay it: positions are read on the device. Under
TRITON_INTERPRET=1 it runs on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from tnbench.kernels.decode_step import triton_kernels
from tnbench.kernels.decode_step.configurations import Configuration, configuration
from tnbench.kernels.devices import INTERPRETED, machine, on

# Set by the tuner and the tests: a configuration that is used in place of the table's.
override: Configuration | None = None


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, theta: Tensor | None,
    position: Tensor | None, form: str, feature_map: str, scale: float,
) -> Tensor:  # fmt: skip
    batch, heads, rows, columns = state.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if out.numel() == 0:
        return out
    q, k, v = _dense(q), _dense(k), _dense(v)
    theta = None if theta is None else theta.contiguous()
    log_decay = None if log_decay is None else log_decay.float().contiguous()
    device = machine(q.device.index)
    chosen = override or configuration(rows, columns, batch * heads, device.architecture, device.processors)
    tile = min(chosen.tile, triton.next_power_of_2(columns))
    kernel: Any = triton_kernels.decode_step
    with on(q):
        kernel[(batch * heads * triton.cdiv(columns, tile),)](
            q, k, v, log_decay, state, theta, position, out,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            state.stride(0), state.stride(1),
            0 if theta is None or theta.shape[0] == 1 else theta.shape[1],
            0 if position is None or position.shape[0] == 1 else position.stride(0), heads, scale,
            DIM=q.shape[-1], ROWS=rows, COLUMNS=columns, BLOCK=triton.next_power_of_2(rows), TILE=tile,
            FEATURE=feature_map, FORM="none" if theta is None else form, num_warps=chosen.warps,
        )  # fmt: skip
    return out


LIBRARY = torch.library.Library("tnbench", "FRAGMENT")
LIBRARY.define(
    "decode_step(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor(a!) state, Tensor? theta,"
    " Tensor? position, str form, str feature_map, float scale) -> Tensor"
)
for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
    LIBRARY.impl("decode_step", _launch, _device)


@torch.library.register_fake("tnbench::decode_step", lib=LIBRARY)
def _(q, k, v, log_decay, state, theta, position, form, feature_map, scale):
    return torch.empty(v.shape, dtype=v.dtype, device=v.device)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    scale: float,
    feature_map: str,
    theta: Tensor | None,
    position: Tensor | None,
    form: str,
) -> Tensor:
    """Shapes as in `tnbench.kernels.decode_step.decode_step`."""
    return torch.ops.tnbench.decode_step(
        q, k, v, log_decay, state, theta, position, form, feature_map, float(scale)
    )
