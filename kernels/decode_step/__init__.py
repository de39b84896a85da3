"""One step of decayed linear attention with a recurrent state, for generation (arXiv 2307.14995, alg. 4).

    S ← λ S + k vᵀ,    o = scale · q S,    λ = exp(log_decay), per head

with q and k after φ and LRPE at position n.

Numbers are those of `linear_attention(…, implementation="recurrent")` with one time step, but the state is
updated where it lies, so that a CUDA graph of a whole model can be replayed token after token.

| name | file | what for |
|---|---|---|
| `reference` | reference.py | the definition; any device |
| `triton` | triton_op.py | one launch that reads and writes the state once; φ and LRPE cost no further pass |

The norm of the output spans all heads of a row, which no program sees: it is a launch of its own,
`tnbench.kernels.normalisation.norm(o.flatten(-2), gate=u)`, which moves a hundredth of what the state does.
In a CUDA graph on an H100 it adds 2 to 3 µs: 5 % at batch 64 of 16 heads of 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.decode_step import reference
from tnbench.kernels.decode_step.reference import FEATURE_MAPS
from tnbench.kernels.devices import fall_back, obstacle, together
from tnbench.kernels.linear_attention.reference import state_dtype
from tnbench.kernels.lrpe import FORMS

IMPLEMENTATIONS = ("reference", "triton")
WIDEST = 512
"""Rows and columns of a state that the Triton kernel holds."""

__all__ = ["FEATURE_MAPS", "IMPLEMENTATIONS", "WIDEST", "decode_step"]


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    scale: float = 1.0,
    feature_map: str = "none",
    theta: Tensor | None = None,
    position: Tensor | int | None = None,
    form: str = "cosine",
    implementation: str = "auto",
) -> Tensor:
    """One token of each batch row: `state` is updated in place. For inference: nothing is differentiable.

    Args:
        q, k: (batch, heads, head dim), of any strides, such as slices of a fused projection.
        v: (batch, heads, value dim).
        log_decay: (heads,), log λ, at most 0; None for λ = 1.
        state: (batch, heads, key dim, value dim), fp32 (fp64 for fp64 inputs), each head's matrix contiguous.
            The key dim is the head dim, or twice that with LRPE in the cosine form.
        scale: factor on the output.
        feature_map: φ on q and k, before the position: a name of `FEATURE_MAPS`, the registry's names.
        theta: (heads or 1, angles) of LRPE, head dim angles in the cosine form, half of it in the rotation
            form (`tnbench.kernels.lrpe`); None for no position.
        position: n of each row, (batch,) or (1,) int32 or int64 on the device, below 2^24; or one int for all
            rows, which a CUDA graph would freeze.
        form: `cosine` or `rotation`.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`.

    Returns:
        o (batch, heads, value dim) in v's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown name, or inputs that ask for
            gradients.
    """
    _check(q, k, v, log_decay, state, feature_map, theta, position, form)
    if implementation == "auto":
        reason = obstacle(q)
        if reason is None and max(state.shape[2:]) > WIDEST:
            reason = f"they hold states of up to {WIDEST} rows and columns"
        if reason is not None:
            fall_back("decode_step", "reference", reason)
        implementation = "triton" if reason is None else "reference"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r}: known are auto, {', '.join(IMPLEMENTATIONS)}")
    if isinstance(position, int):
        position = torch.full((1,), position, dtype=torch.int32, device=q.device)
    arguments = {
        "scale": scale,
        "feature_map": feature_map,
        "theta": theta,
        "position": position,
        "form": form,
    }
    if implementation == "reference":
        return reference.decode_step(q, k, v, log_decay, state, **arguments)
    if (reason := obstacle(q)) is not None:
        raise ValueError(f"implementation 'triton' cannot take these inputs: {reason}")
    if max(state.shape[2:]) > WIDEST:
        raise ValueError(
            f"implementation 'triton' holds states of up to {WIDEST} rows and columns, "
            f"got {tuple(state.shape[2:])}"
        )
    from tnbench.kernels.decode_step import triton_op

    return triton_op.decode_step(q, k, v, log_decay, state, **arguments)


def _check(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, feature_map: str,
    theta: Tensor | None, position: Tensor | int | None, form: str,
) -> None:  # fmt: skip
    if q.ndim != 3 or q.shape != k.shape or v.shape[:-1] != q.shape[:2]:
        raise ValueError(
            "q and k must be (batch, heads, head dim) and v (batch, heads, value dim), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    batch, heads, dim = q.shape
    if log_decay is not None and log_decay.shape != (heads,):
        raise ValueError(f"log_decay must be ({heads},), got {tuple(log_decay.shape)}")
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map {feature_map!r}: known are {', '.join(FEATURE_MAPS)}")
    if form not in FORMS:
        raise ValueError(f"form {form!r}: known are {', '.join(FORMS)}")
    if theta is not None:
        _check_position(theta, position, form, batch, heads, dim)
    expected = (batch, heads, 2 * dim if theta is not None and form == "cosine" else dim, v.shape[-1])
    wide = state_dtype(q.dtype)
    if tuple(state.shape) != expected or state.dtype != wide:
        raise ValueError(f"state must be {expected} in {wide}, got {tuple(state.shape)} in {state.dtype}")
    if state.stride(-1) != 1 or state.stride(-2) != state.shape[-1]:
        raise ValueError(f"each head's state must be contiguous, got strides {state.stride()}")
    where = position if isinstance(position, Tensor) else None
    together(q, k=k, v=v, log_decay=log_decay, state=state, theta=theta, position=where)
    given = (x for x in (q, k, v, log_decay, state, theta) if x is not None)
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise ValueError("decode_step has no gradients: call it under torch.no_grad()")


def _check_position(
    theta: Tensor, position: Tensor | int | None, form: str, batch: int, heads: int, dim: int
) -> None:
    angles = dim if form == "cosine" else dim // 2
    if (form == "rotation" and dim % 2) or theta.shape not in ((heads, angles), (1, angles)):
        raise ValueError(
            f"theta must be ({heads} or 1, {angles}) for heads of {dim} channels in the {form} form"
            f"{' (an even number)' if form == 'rotation' else ''}, got {tuple(theta.shape)}"
        )
    if position is None:
        raise ValueError("theta needs a position: a tensor (batch,) or an int")
    if isinstance(position, Tensor) and (
        position.shape not in ((batch,), (1,)) or position.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"position must be ({batch},) or (1,) of int32 or int64, "
            f"got {tuple(position.shape)} of {position.dtype}"
        )
