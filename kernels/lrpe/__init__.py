"""LRPE on queries and keys: token n turns by nθ, so that scores depend on the distance through cos θ(t − s).

    cosine:    x becomes [x cos nθ, x sin nθ], twice as wide, one θ per channel (the official code)
    rotation:  channels j and j + d/2 become (a cos nθ − b sin nθ, a sin nθ + b cos nθ), one θ per pair

(arXiv 2307.14995, eq. 1; arXiv 2307.09270. RoPE, arXiv 2104.09864, is the rotation with fixed θ, the same for
all heads.)

| name | file | what for |
|---|---|---|
| `reference` | reference.py | the definition; any device |
| `triton` | triton_op.py | q and k in one launch, read where the projection left them; dθ too |
"""

from __future__ import annotations

from torch import Tensor

from tnbench.kernels import devices
from tnbench.kernels.lrpe import reference

IMPLEMENTATIONS = ("reference", "triton")
FORMS = ("cosine", "rotation")

__all__ = ["FORMS", "IMPLEMENTATIONS", "rotate", "takes_kernels"]


def takes_kernels(q: Tensor) -> bool:
    """Whether `auto` turns q with the Triton kernels; where it does not, that is said once."""
    reason = devices.obstacle(q)
    if reason is not None:
        devices.fall_back("lrpe", "reference", reason)
    return reason is None


def rotate(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    start: int = 0,
    form: str = "cosine",
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Queries and keys of tokens start, start + 1, … Differentiable, once, in q, k and θ.

    Args:
        q, k: (batch, time, heads, head dim), of any strides.
        theta: (heads or 1, angles), with head dim angles in the cosine form, half of it in the rotation form.
        start: position of the first token; with the length at most 2^24.
        form: `cosine` or `rotation`.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`: `triton` where the kernels can run, else
            `reference`, which is said once.

    Returns:
        q' and k', (batch, time, heads, 2 · head dim) in the cosine form, of q's and k's shape in the rotation
        form.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown form or implementation, `triton` where it
            cannot run.
    """
    if q.ndim != 4 or q.shape != k.shape:
        raise ValueError(
            f"q and k must be (batch, time, heads, head dim), got {tuple(q.shape)}, {tuple(k.shape)}"
        )
    if form not in FORMS:
        raise ValueError(f"form {form!r}: known are {', '.join(FORMS)}")
    heads, dim = q.shape[2:]
    angles = dim if form == "cosine" else dim // 2
    if (form == "rotation" and dim % 2) or theta.shape not in ((heads, angles), (1, angles)):
        raise ValueError(
            f"theta must be ({heads} or 1, {angles}) for heads of {dim} channels in the {form} form"
            f"{' (an even number)' if form == 'rotation' else ''}, got {tuple(theta.shape)}"
        )
    devices.together(q, k=k, theta=theta)
    if implementation == "auto":
        implementation = "triton" if takes_kernels(q) else "reference"
    elif implementation == "triton":
        reason = devices.obstacle(q)
        if reason is not None:
            raise ValueError(f"implementation triton: {reason}; take auto or reference")
    if implementation == "reference":
        return reference.rotate(q, k, theta, start=start, form=form)
    if implementation != "triton":
        raise ValueError(f"implementation {implementation!r}: known are auto, {', '.join(IMPLEMENTATIONS)}")
    from tnbench.kernels.lrpe import triton_op

    return triton_op.rotate(q, k, theta, start=start, form=form)
