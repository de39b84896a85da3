"""Right before fast: worst-head errors of output, states and every gradient against float64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tnbench.kernels.linear_attention import triton_op

# Above these a result is wrong, whatever the quadratic form reaches: relative, worst head.
LIMITS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 2e-3}
PRECISE = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 5e-6}


def reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, start: Tensor | None, bounds: list[int]
) -> tuple[Tensor, Tensor]:
    """The quadratic form, sequence by sequence, in the dtype of its operands (scores and decays at least
    fp32)."""
    outs, finals = [], []
    for n, (begin, end) in enumerate(itertools.pairwise(bounds)):
        row = n if q.shape[0] > 1 else 0
        at, bt, ct = (x[row, begin:end].transpose(0, 1) for x in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)
        i = torch.arange(end - begin, device=q.device, dtype=wide)
        rate = log_decay.to(wide)[:, None, None]
        gap = i[:, None] - i[None, :]
        mask = torch.exp(rate * gap.clamp(min=0)) * (gap >= 0)
        out = ((at @ bt.transpose(1, 2)) * mask).to(q.dtype) @ ct
        left = torch.exp(rate * (end - begin - 1 - i)[None, :, None])
        final = (bt * left).transpose(1, 2).to(wide) @ ct.to(wide)
        if start is not None:
            out = out + torch.exp(rate * (i + 1)[None, :, None]) * (at.to(wide) @ start[n].to(wide))
            final = final + torch.exp(rate * (end - begin)) * start[n]
        outs.append((out * scale).to(q.dtype).transpose(0, 1))
        finals.append(final)
    out = torch.cat(outs).unsqueeze(0) if q.shape[0] == 1 else torch.stack(outs)
    return out, torch.stack(finals)


def slopes(heads: int, device: str) -> Tensor:
    """Geometric slopes, with slope 1 on the first head and no decay on the last."""
    rate = -(2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device) / heads))
    rate[0] = -1.0
    rate[-1] = 0.0 if heads > 1 else rate[-1]
    return rate


def worst(got: Tensor, want: Tensor, head_dim: int | None) -> float:
    """Largest relative error over heads; NaN counts as infinite."""
    got, want = got.double(), want.double()
    if head_dim is None:
        error = ((got - want).norm() / want.norm().clamp(min=1e-30)).item()
    else:
        off, size = ((x.movedim(head_dim, 0).flatten(1).norm(dim=1)) for x in (got - want, want))
        error = (off / size.clamp(min=1e-30)).max().item()
    return error if error == error else float("inf")


def case(
    *, batch: int = 1, time: int = 512, heads: int = 4, dk: int = 64, dv: int = 64, dtype: str = "bfloat16",
    precise: bool = False, states: bool = False, decay: bool = False, bounds: list[int] | None = None,
    fused: bool = False, scale: float = 1.0, device: str = "cuda", baseline: bool = True, poison: bool = True,
) -> dict:  # fmt: skip
    """One problem: errors of ours against float64, and of the quadratic form in the same dtype for scale.

    Args:
        states: with initial and final state and their gradients; decay: with d log λ.
        bounds: cu_seqlens of packed sequences; fused: q, k, v as slices of one projection.
        poison: fresh memory holds NaN, so that what nobody wrote is seen.
    """
    kind = getattr(torch, dtype)
    torch.manual_seed(time + dk)
    shape = (batch, time, heads, dk + dk + dv)
    whole = torch.randn(shape, device=device).to(kind)
    q, k, v = whole.split([dk, dk, dv], dim=-1)
    if not fused:
        q, k, v = (x.contiguous() for x in (q, k, v))
    ends = bounds or [0, time]
    sequences = len(bounds) - 1 if bounds else batch
    log_decay = slopes(heads, device)
    start = torch.randn(sequences, heads, dk, dv, device=device) if states else None
    do = torch.randn(batch, time, heads, dv, device=device).to(kind)
    dfinal = torch.randn(sequences, heads, dk, dv, device=device)
    cu = torch.tensor(bounds, dtype=torch.int32, device=device) if bounds else None
    if bounds is None and batch > 1:
        ends = [0, time]

    def run(compute, wide: torch.dtype | None) -> list[Tensor]:
        def leaf(x, to):
            return None if x is None else x.detach().to(to or x.dtype).requires_grad_()

        a, b, c = (leaf(x, wide) for x in (q, k, v))
        states_dtype = torch.float64 if wide == torch.float64 else torch.float32
        rate = log_decay.to(states_dtype).requires_grad_(decay)
        first = leaf(start, states_dtype)
        out, final = compute(a, b, c, rate, first)
        loss = [out] + ([final] if states else [])
        grads = [do.to(out.dtype)] + ([dfinal.to(final.dtype)] if states else [])
        leaves = [a, b, c] + ([first] if states else []) + ([rate] if decay else [])
        found = torch.autograd.grad(loss, [x for x in leaves if x is not None], grads)
        return [*loss, *found]

    def quadratic(a, b, c, rate, first):
        if batch == 1:
            return reference(a, b, c, rate, scale, first, ends)
        rows = [
            reference(
                a[i : i + 1],
                b[i : i + 1],
                c[i : i + 1],
                rate,
                scale,
                None if first is None else first[i : i + 1],
                ends,
            )
            for i in range(batch)
        ]
        return torch.cat([o for o, _ in rows]), torch.cat([s for _, s in rows])

    def ours(a, b, c, rate, first):
        return triton_op.triton_linear_attention(
            a,
            b,
            c,
            rate,
            scale=scale,
            initial_state=first,
            output_state=states,
            cu_seqlens=cu,
            precise=precise,
        )

    names = ["o"] + (["state"] if states else []) + ["dq", "dk", "dv"]
    names += (["dstate"] if states else []) + (["ddecay"] if decay else [])
    dims = [2 if n in ("o", "dq", "dk", "dv") else 1 if "state" in n else None for n in names]
    want = run(quadratic, torch.float64)
    if poison:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    got = run(ours, None)
    again = run(ours, None)
    torch.use_deterministic_algorithms(False)
    errors = {n: worst(g, w, d) for n, g, w, d in zip(names, got, want, dims, strict=True)}
    base = {}
    if baseline:
        base = {n: worst(g, w, d) for n, g, w, d in zip(names, run(quadratic, None), want, dims, strict=True)}
    limit = (PRECISE if precise else LIMITS)[kind]
    # d log λ is one sum of thousands of terms per head: ten times the limit of a tensor.
    bad = [n for n, e in errors.items() if e > limit * (10 if n == "ddecay" else 1)]
    if any(not torch.equal(x, y) for x, y in zip(got, again, strict=True)):
        bad.append("repeat")
    over = [n for n, e in errors.items() if n in base and e > 1.5 * base[n] and e > 1e-6]
    return {"errors": errors, "baseline": base, "bad": bad, "over": over}
