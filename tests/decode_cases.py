"""Decode step and Lightning Attention 1 against their definitions in float64, for the interpreter and the
GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnbench.kernels.decode_step import decode_step
from tnbench.kernels.linear_attention.lightning1 import lightning1
from tnbench.kernels.linear_attention.reference import quadratic

STEPS = [
    {"dim": 16, "value_dim": 16},
    {"dim": 24, "value_dim": 33, "feature_map": "swish", "fused": True},
    {"dim": 96, "value_dim": 32, "feature_map": "1+elu", "form": "cosine", "heads": 2},
    {"dim": 24, "value_dim": 16, "feature_map": "softmax", "form": "rotation"},
    {"dim": 24, "value_dim": 65, "feature_map": "sigmoid", "form": "rotation", "fused": True},
    {"dim": 16, "value_dim": 24, "feature_map": "softmax", "form": "cosine", "shared": True},
    {"dim": 16, "value_dim": 16, "feature_map": "elu", "decayed": False},
    {"dim": 16, "value_dim": 16, "feature_map": "squared-relu", "form": "rotation", "shared": True},
    {"dim": 16, "value_dim": 16, "feature_map": "relu", "batch": 5},
    {"dim": 256, "value_dim": 16, "form": "cosine", "heads": 1},
]


@torch.no_grad()
def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest over heads (dim 1) of ‖found − wanted‖ / ‖wanted‖; NaN counts as infinite."""
    difference = (found.double() - wanted).transpose(0, 1).flatten(1).norm(dim=1)
    worst = (difference / wanted.transpose(0, 1).flatten(1).norm(dim=1).clamp(min=1e-30)).max()
    return float(worst.nan_to_num(nan=float("inf")))


def _parts(
    shape: Sequence[int], dims: Sequence[int], fused: bool, device: str, dtype: torch.dtype
) -> list[Tensor]:
    """Random tensors (*shape, dim); `fused`: slices of one projection, with a gate behind them."""
    if not fused:
        return [torch.randn(*shape, d, device=device).to(dtype) for d in dims]
    heads = shape[-1]
    whole = torch.randn(*shape[:-1], heads * (sum(dims) + 8), device=device).to(dtype)
    parts = whole.split([heads * d for d in (*dims, 8)], dim=-1)
    return [part.unflatten(-1, (heads, d)) for part, d in zip(parts, dims, strict=False)]


def decode_case(
    device: str, dtype: torch.dtype, implementation: str, *, dim: int, value_dim: int, batch: int = 2,
    heads: int = 3, feature_map: str = "none", form: str | None = None, shared: bool = False,
    decayed: bool = True, fused: bool = False, positions: Sequence[int] = (1, 250, 300),
) -> dict[str, float]:  # fmt: skip
    """Worst-head errors of the outputs of two steps, and of the state after them. `shared`: one θ and one
    position for all heads and rows."""
    torch.manual_seed(0)
    rows = 2 * dim if form == "cosine" else dim
    angles = dim if form == "cosine" else dim // 2
    rate = -torch.tensor([1.0, 0.0, 0.01]).repeat(heads)[:heads].to(device) if decayed else None
    theta = None if form is None else torch.rand(1 if shared else heads, angles, device=device)
    state = torch.randn(batch, heads, rows, value_dim, device=device)
    exact = state.double()
    errors = {}
    start = torch.tensor((list(positions) * batch)[: 1 if shared else batch], device=device)
    for step in range(2):
        q, k, v = _parts((batch, heads), (dim, dim, value_dim), fused, device, dtype)
        kinds = {"scale": 0.3, "feature_map": feature_map, "form": form or "cosine"}
        position = None if form is None else (start + step).to(torch.int32)
        found = decode_step(
            q, k, v, rate, state, theta=theta, position=position, implementation=implementation, **kinds
        )
        wanted = decode_step(
            q.double(), k.double(), v.double(), None if rate is None else rate.double(), exact,
            theta=None if theta is None else theta.double(), position=position,
            implementation="reference", **kinds,
        )  # fmt: skip
        assert found.dtype == dtype
        assert found.shape == v.shape
        errors[f"o{step}"] = relative(found, wanted)
    errors["state"] = relative(state, exact)
    return errors


def lightning1_case(
    device: str, dtype: torch.dtype, *, time: int, dim: int, value_dim: int, batch: int = 1, heads: int = 3,
    block: tuple[int, int] | None = None, decayed: bool = True, fused: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Worst-head errors of the output and every gradient; slopes 1, 0 and 0.01."""
    torch.manual_seed(0)
    parts = _parts((batch, time, heads), (dim, dim, value_dim), fused, device, dtype)
    leaves = [part.detach().requires_grad_() for part in parts]
    rate = -torch.tensor([1.0, 0.0, 0.01]).repeat(heads)[:heads].to(device)
    leaves += [rate.requires_grad_()] if decayed else []
    do = torch.randn(batch, time, heads, value_dim, device=device).to(dtype)
    out = lightning1(*leaves, scale=0.3, block=block)
    found = [out, *torch.autograd.grad(out, leaves, do)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    exact_out, _ = quadratic(*exact, scale=0.3)
    wanted = [exact_out, *torch.autograd.grad(exact_out, exact, do.double())]
    errors = {}
    for name, a, b in zip(("o", "dq", "dk", "dv", "d log λ"), found, wanted, strict=False):
        if name == "d log λ":
            errors[name] = float((a - b).norm() / b.norm().clamp(min=1e-30))
        else:
            errors[name] = relative(a.transpose(1, 2), b.transpose(1, 2))
    return errors
