"""The token mixers, each beside its formula written with plain loops and matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tnbench.model import decays, feature_maps, mixers, norms, positions
from tnbench.model.mixers import Parts
from tnbench.registry import aliases

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


WIDTH, HEADS = 12, 2


def draw(mixer: Any, time: int = 7) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """The mixer in float64, an input (1, time, WIDTH), and its projections, each (time, HEADS, 6)."""
    mixer = mixer.double()
    x = torch.randn(1, time, WIDTH, dtype=torch.float64)
    projections = (x[0] @ mixer.projection.weight.T).split(WIDTH, dim=-1)
    return mixer, x, tuple(part.unflatten(-1, (HEADS, -1)) for part in projections)


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def summed(q: Tensor, k: Tensor, v: Tensor, factors: Tensor | None = None) -> Tensor:
    """Σ_{j <= i} λ^(i−j) (q_i · k_j) v_j per head, (time, HEADS, value dim), term by term."""
    out = torch.zeros_like(v)
    for i in range(len(q)):
        for j in range(i + 1):
            weight = (q[i] * k[j]).sum(-1, keepdim=True)
            out[i] += weight * v[j] * (1 if factors is None else factors[:, None] ** (i - j))
    return out


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("scope", ["all", "head"])
def test_gated_linear_attention_by_hand(gate: bool, scope: Any):
    """φ on q and k alone; the norm over all heads' channels or each head's; u as it is; chunks q, k, v, u."""
    decay = decays.FixedDecay(HEADS, 0, 1, value=[0.5, 0.9])
    parts = Parts(decay=decay, feature_map=feature_maps.Swish(), inner_norm=norms.SRMSNorm, gate=gate)
    by_head: dict[str, Any] = {"norm_scope": scope} if scope == "head" else {}
    mixer, x, (q, k, v, *u) = draw(mixers.GatedLinearAttention(WIDTH, HEADS, parts, **by_head))
    out = summed(silu(q), silu(k), v, torch.tensor([0.5, 0.9], dtype=torch.float64))
    out = rms(out.flatten(1)) if scope == "all" else rms(out).flatten(1)
    if gate:
        out = out * u[0].flatten(1)
    assert len(u) == gate
    torch.testing.assert_close(mixer(x)[0], out @ mixer.output.weight.T, rtol=1e-6, atol=1e-6)


def test_retention_by_hand():
    """The alias: scale 1/√d_h, a norm per head, swish gate; without the norm too, which hides the scale."""
    stands_for = aliases("mixer")["retention"]
    assert stands_for["name"] == "gla"
    parameters = {key: value for key, value in stands_for.items() if key != "name"}
    factors = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
    for norm in (rms, None):
        parts = Parts(decay=decays.RetNetDecay(HEADS, 3, 4), gate=True)
        parts.inner_norm = norms.SRMSNorm if norm else norms.NoNorm
        mixer, x, (q, k, v, u) = draw(mixers.GatedLinearAttention(WIDTH, HEADS, parts, **parameters))
        out = summed(q, k, v, factors) / 6**0.5
        out = (norm(out) if norm else out).flatten(1) * silu(u.flatten(1))
        torch.testing.assert_close(mixer(x)[0], out @ mixer.output.weight.T, rtol=1e-6, atol=1e-6)


def test_norm_attention_is_gated_linear_attention_without_gate():
    torch.manual_seed(0)
    ours = mixers.NormAttention(WIDTH, HEADS, Parts(inner_norm=norms.SRMSNorm))
    gla = mixers.GatedLinearAttention(WIDTH, HEADS, Parts(inner_norm=norms.SRMSNorm))
    gla.load_state_dict(ours.state_dict())
    mixer, x, (q, k, v) = draw(ours)
    assert torch.equal(mixer(x), gla.double()(x))
    out = rms(summed(q, k, v).flatten(1)) @ mixer.output.weight.T
    torch.testing.assert_close(mixer(x)[0], out)


def test_classical_linear_attention_by_hand():
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j): weights that sum to one."""
    parts = Parts(feature_map=feature_maps.OnePlusELU())
    mixer, x, (q, k, v) = draw(mixers.ClassicalLinearAttention(WIDTH, HEADS, parts))
    q, k = (torch.where(p > 0, p + 1, p.exp()) for p in (q, k))
    out = summed(q, k, v) / summed(q, k, torch.ones_like(v))
    torch.testing.assert_close(mixer(x)[0], out.flatten(1) @ mixer.output.weight.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "position", [positions.NoPosition(6, 2, 0), positions.LRPE(6, 2, 0)], ids=["none", "lrpe"]
)
def test_softmax_attention_by_hand(position: positions.Position):
    """softmax(q_i · k_j / √6) over j <= i; LRPE's cosines enter the scores, not the scale."""
    mixer, x, (q, k, v) = draw(mixers.SoftmaxAttention(WIDTH, HEADS, Parts(position=position)))
    theta = mixer.position.theta if isinstance(mixer.position, positions.LRPE) else torch.zeros(HEADS, 6)
    out = torch.zeros_like(v)
    for i in range(len(q)):
        distance = torch.arange(i, -1, -1).view(-1, 1, 1)
        weights = ((q[i] * k[: i + 1] * (theta * distance).cos()).sum(-1) / 6**0.5).softmax(0)
        out[i] = (weights[..., None] * v[: i + 1]).sum(0)
    torch.testing.assert_close(mixer(x)[0], out.flatten(1) @ mixer.output.weight.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "relu"])
def test_block_diagonal_attention_does_not_cross_blocks(activation: Any):
    """Blocks of 3: each is causal attention from the start; ReLA is max(0, q_i · k_j / √6), then the norm."""
    parts = Parts(inner_norm=norms.SRMSNorm)
    mixer, x, (q, k, v) = draw(
        mixers.DiagAttention(WIDTH, HEADS, parts, block=3, activation=activation), time=8
    )
    out = torch.zeros_like(v)
    for i in range(8):
        block = slice(i - i % 3, i + 1)
        scores = (q[i] * k[block]).sum(-1) / 6**0.5
        weights = scores.softmax(0) if activation == "softmax" else scores.clamp(min=0)
        out[i] = (weights[..., None] * v[block]).sum(0)
    out = rms(out.flatten(1)) if activation == "relu" else out.flatten(1)
    torch.testing.assert_close(mixer(x)[0], out @ mixer.output.weight.T)
    changed = x.clone()
    changed[:, 2] += 1.0
    assert torch.equal(mixer(changed)[:, 3:], mixer(x)[:, 3:])
    assert not torch.equal(mixer(changed)[:, 2], mixer(x)[:, 2])
