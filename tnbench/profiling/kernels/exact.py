"""Float64 references, computed in pieces so that they fit beside the tensors that they judge.

Errors are ‖x − x64‖ / ‖x64‖, for each head over the rows and tokens looked at; the worst head is reported.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tnbench.profiling.kernels.implementations.bound import Inputs

CHUNK = 256
"""Tokens of a step of the float64 recurrence over chunks, and of the tail of softmax attention that is looked
at.
"""

WHOLE = 4096
"""Up to this length softmax attention is looked at as a whole."""


class HeadErrors:
    """‖x − x64‖ / ‖x64‖ of each head, summed up piece by piece. Pieces are (rows, time, heads, dim)."""

    def __init__(self) -> None:
        self._off: Tensor | float = 0.0
        self._size: Tensor | float = 0.0

    def add(self, found: Tensor, exact: Tensor) -> None:
        self._off = self._off + (found.double() - exact).square().sum((0, 1, 3))
        self._size = self._size + exact.square().sum((0, 1, 3))

    def worst(self) -> float:
        """Of all heads; NaN if one is."""
        assert isinstance(self._off, Tensor)
        assert isinstance(self._size, Tensor)
        return float((self._off / self._size.clamp(min=1e-300)).sqrt().max())


def decayed(
    a: Tensor, b: Tensor, c: Tensor, log_decay: Tensor | None, *, reverse: bool = False
) -> Iterator[tuple]:
    """y_i = Σ_{j<=i} λ^(i-j) (a_i · b_j) c_j in float64, chunk after chunk; reverse: j >= i and λ^(j-i).

    With (q, k, v) this is the output; (do, v, k) gives dq, and in reverse (v, do, q) gives dk and (k, q, do)
    dv.

    Yields:
        The slice of time, and y (rows, chunk, heads, dim of c) there.
    """
    rows, time, heads, _ = a.shape
    log = torch.zeros(heads, device=a.device) if log_decay is None else log_decay
    log = log.double()
    state = torch.zeros(rows, heads, b.shape[-1], c.shape[-1], dtype=torch.float64, device=a.device)
    starts = range(0, time, CHUNK)
    for start in reversed(starts) if reverse else starts:
        part = slice(start, min(start + CHUNK, time))
        ac, bc, cc = (x[:, part].double().transpose(1, 2) for x in (a, b, c))
        if reverse:
            ac, bc, cc = (x.flip(2) for x in (ac, bc, cc))
        steps = torch.arange(ac.shape[2], device=a.device, dtype=torch.float64)
        distance = steps[:, None] - steps
        mask = (log[:, None, None] * distance.clamp(min=0)).exp() * (distance >= 0)
        y = ((ac @ bc.mT) * mask) @ cc
        y = y + (ac * (log[:, None] * (steps + 1)).exp()[..., None]) @ state
        left = (log[:, None] * (len(steps) - 1 - steps)).exp()[..., None]
        state = (log * len(steps)).exp()[:, None, None] * state + (bc * left).mT @ cc
        yield part, (y.flip(2) if reverse else y).transpose(1, 2)


def linear_attention_errors(found: Inputs, given: Inputs, log_decay: Tensor | None) -> dict[str, float]:
    """Worst-head errors of o, dq, dk, dv, as far as they are there; all tensors (rows, time, heads, dim)."""
    q, k, v, do = given["q"], given["k"], given["v"], given.get("do")
    sums = {"o": (q, k, v, False), "dq": (do, v, k, False), "dk": (v, do, q, True), "dv": (k, q, do, True)}
    errors = {}
    for name, (a, b, c, reverse) in sums.items():
        if name in found:
            assert a is not None
            assert b is not None
            assert c is not None
            head = HeadErrors()
            for part, exact in decayed(a, b, c, log_decay, reverse=reverse):
                head.add(found[name][:, part], exact)
            errors[name] = head.worst()
    return errors


def softmax_errors(found: Inputs, given: Inputs) -> dict[str, float]:
    """The same for causal softmax attention with scale d^(-1/2).

    Beyond 4,096 tokens only the last 256 are looked at: their queries see every key, and their keys are seen
    by no other query, so that o, dq, dk and dv there are exact without the rest.
    """
    time = given["q"].shape[1]
    tail = slice(0 if time <= WHOLE else time - CHUNK, time)
    errors = {name: HeadErrors() for name in found}
    worst = dict.fromkeys(found, 0.0)
    for h in range(given["q"].shape[2]):
        exact = _softmax_head({name: x[:, :, h].double() for name, x in given.items()}, tail)
        for name in found:
            errors[name] = HeadErrors()
            errors[name].add(found[name][:, tail, h : h + 1], exact[name][:, :, None])
            head = errors[name].worst()
            worst[name] = head if not head <= worst[name] else worst[name]
    return worst


def _softmax_head(given: Inputs, tail: slice) -> Inputs:
    """o, dq, dk, dv (rows, tail, dim) of one head, from its (rows, time, dim) in float64."""
    q, k, v = given["q"][:, tail], given["k"], given["v"]
    scale = q.shape[-1] ** -0.5
    steps = torch.arange(k.shape[1], device=q.device)
    scores = (q @ k.mT * scale).masked_fill(steps > steps[tail, None], -torch.inf)
    weights = scores.softmax(-1)
    out = {"o": weights @ v}
    if "do" in given:
        do = given["do"][:, tail]
        ds = weights * (do @ v.mT - (do * out["o"]).sum(-1, keepdim=True)) * scale
        out["dq"] = ds @ k
        out["dk"] = ds.mT[:, tail] @ q
        out["dv"] = weights.mT[:, tail] @ do
    return out
