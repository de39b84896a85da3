"""Linear-time form: a masked product inside each chunk, and a state carried between chunks.

The algorithm is that of Lightning Attention-2 (arXiv 2401.04658, alg. 1) written in plain torch, but for
the state: λ is only ever raised to non-negative powers, so that strong decays cannot overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnbench.kernels.linear_attention.reference import causal_mask, powers, quadratic, state_dtype

CHUNK = 64
# Up to this many chunks the states are summed by one small matrix product, beyond it by a loop.
FEW_CHUNKS = 32


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_state: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Shapes as in `linear_attention`; what is left after whole chunks is one short segment of its own."""
    time = q.shape[1]
    whole = time - time % chunk
    if whole == 0:
        return quadratic(
            q, k, v, log_decay, scale=scale, initial_state=initial_state, output_state=output_state
        )
    rest = whole < time
    out, state = _whole_chunks(
        q[:, :whole], k[:, :whole], v[:, :whole], log_decay, initial_state, output_state or rest, chunk
    )
    if scale != 1.0:
        out = out * scale
    if rest:
        tail, state = quadratic(
            q[:, whole:],
            k[:, whole:],
            v[:, whole:],
            log_decay,
            scale=scale,
            initial_state=state,
            output_state=output_state,
        )
        out = torch.cat([out, tail], dim=1)
    return out, state


def _whole_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    output_state: bool,
    chunk: int,
) -> tuple[Tensor, Tensor | None]:
    heads = q.shape[2]
    # (batch, heads, chunks, chunk, dim)
    qc, kc, vc = (x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4) for x in (q, k, v))
    mask = causal_mask(log_decay, chunk, heads, q.device).to(q.dtype)[:, None]
    out = ((qc @ kc.transpose(-1, -2)) * mask).to(vc.dtype) @ vc

    final = None
    if qc.shape[2] > 1 or initial_state is not None or output_state:
        steps = torch.arange(chunk, device=q.device)
        left = powers(log_decay, chunk - 1 - steps, heads).to(q.dtype)[:, None, :, None]
        added = ((kc * left).transpose(-1, -2) @ vc).to(state_dtype(q.dtype))
        before, final = _carry(added, log_decay, chunk, initial_state)
        reach = powers(log_decay, steps + 1, heads).to(q.dtype)[:, None, :, None]
        out = out + ((qc * reach) @ before.to(q.dtype)).to(out.dtype)
    return out.permute(0, 2, 3, 1, 4).flatten(1, 2).to(v.dtype), final if output_state else None


def _carry(
    added: Tensor, log_decay: Tensor | None, chunk: int, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States before each chunk, and the one after the last: S_{n+1} = λ^chunk S_n + added_n.

    Args:
        added: (batch, heads, chunks, key dim, value dim), what each chunk adds.

    Returns:
        (batch, heads, chunks, key dim, value dim) and (batch, heads, key dim, value dim).
    """
    _, heads, count, dk, dv = added.shape
    if count > FEW_CHUNKS:
        factor = powers(log_decay, torch.full((1, 1), chunk, device=added.device), heads).to(added.dtype)
        states = [
            torch.zeros_like(added[:, :, 0]) if initial_state is None else initial_state.to(added.dtype)
        ]
        for one in added.unbind(2):  # sliced, each would have a gradient as large as all of them
            states.append(factor * states[-1] + one)
        return torch.stack(states[:-1], dim=2), states[-1]
    n = torch.arange(count + 1, device=added.device)
    gap = n[:, None] - 1 - n[None, :count]
    weight = (powers(log_decay, gap.clamp(min=0) * chunk, heads) * (gap >= 0)).to(added.dtype)
    states = (weight @ added.flatten(-2)).unflatten(-1, (dk, dv))
    if initial_state is not None:
        reach = powers(log_decay, n * chunk, heads).to(added.dtype)
        states = states + reach[..., None, None] * initial_state[:, :, None]
    return states[:, :, :-1], states[:, :, -1]
