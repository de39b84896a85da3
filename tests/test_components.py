"""Components one by one: values worked out by hand, gradients, and use without registry or configuration."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from test_registry import variants
from torch import Tensor, nn

from tnbench import registry
from tnbench.errors import RequestError
from tnbench.model import channels, decays, feature_maps, mixers, norms, positions
from tnbench.model.mixers import Parts
from tnbench.registry import Entry

torch.set_num_threads(1)
near = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def scattered(module: nn.Module) -> Any:
    """The module in float64, its parameters moved off their regular initial values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


# Norms


def test_norms_by_hand():
    # x = (3, 4): root mean square sqrt((9 + 16) / 2) = 5/√2; mean 3.5, deviation 0.5
    x = numbers(3, 4)
    rms = x * math.sqrt(2) / 5
    near(norms.SRMSNorm(2, eps=1e-12)(x), rms)
    gained = norms.RMSNorm(2, eps=1e-12).double()
    near(gained(x), rms)
    gained.weight.data = numbers(10, -1)
    near(gained(x), rms * numbers(10, -1))
    layer = norms.LayerNorm(2, eps=1e-12).double()
    near(layer(x), numbers(-1, 1))
    layer.weight.data, layer.bias.data = numbers(2, 3), numbers(5, 7)
    near(layer(x), numbers(3, 10))
    assert norms.LayerNorm(2, bias=False).bias is None
    assert norms.NoNorm(2)(x) is x
    # eps is added to the mean square: (2, 2) / sqrt(4 + 12) = (0.5, 0.5)
    near(norms.SRMSNorm(2, eps=12.0)(numbers(2, 2)), numbers(0.5, 0.5))
    assert not list(norms.SRMSNorm(2).parameters())


def test_norms_of_low_precision_are_computed_in_fp32():
    """300² is no fp16 number: a norm that squared in fp16 would give 0."""
    x = torch.tensor([300.0, -300.0] * 500, dtype=torch.float16)
    for entry in registry.entries("norm"):
        if entry.name != "none":
            out = entry.target(1000).half()(x)
            assert out.dtype == torch.float16
            near(out.float(), x.sign().float(), rtol=1e-3)


# Feature maps and channel mixers


def test_feature_maps_by_hand():
    x, e = numbers(-1, 0, 2), math.e
    sigmoid = numbers(1 / (1 + e), 0.5, 1 / (1 + e**-2))
    total = 1 / e + 1 + e**2
    expected = {
        feature_maps.Identity: x,
        feature_maps.OnePlusELU: numbers(1 / e, 1, 3),  # exp(−1); exp(0); 1 + 2
        feature_maps.ELU: numbers(1 / e - 1, 0, 2),
        feature_maps.Swish: x * sigmoid,
        feature_maps.Sigmoid: sigmoid,
        feature_maps.ReLU: numbers(0, 0, 2),
        feature_maps.SquaredReLU: numbers(0, 0, 4),
        feature_maps.Softmax: numbers(1 / e / total, 1 / total, e**2 / total),
    }
    for feature_map, values in expected.items():
        near(feature_map()(x), values)


@pytest.mark.parametrize(
    ("channel", "hidden"),
    # x = 2; W_u = (1, −1), so the gate is (2, −2); W_v = (3, 5), so the value is (6, 10); W_o = (1, 1) sums
    [
        (channels.SGLU, (2 * 6, -2 * 10)),
        (channels.SwiGLU, (2 / (1 + math.exp(-2)) * 6, -2 / (1 + math.exp(2)) * 10)),
        (channels.SigmoidGLU, (1 / (1 + math.exp(-2)) * 6, 1 / (1 + math.exp(2)) * 10)),
        # gelu(x) = x Φ(x), Φ(2) = 0.9772498680518208
        (channels.GEGLU, (2 * 0.9772498680518208 * 6, -2 * (1 - 0.9772498680518208) * 10)),
    ],
)
def test_gated_linear_units_by_hand(channel: type[channels.GLU], hidden: tuple[float, float]):
    module = channel(1, 2).double()
    module.up.weight.data = numbers(1, -1, 3, 5)[:, None]
    module.down.weight.data = numbers(1, 1)[None]
    near(module(numbers(2)[None, None]), numbers(sum(hidden))[None, None])


def test_feed_forward_by_hand():
    # W_1 = (1, −1): (2, −2); relu: (2, 0); W_2 = (3, 7): 6
    module = channels.FFN(1, 2, activation="relu").double()
    module.up.weight.data, module.down.weight.data = numbers(1, -1)[:, None], numbers(3, 7)[None]
    near(module(numbers(2)[None, None]), numbers(6)[None, None])


# Decays


def slopes(decay: nn.Module) -> Tensor:
    return -decay().detach().double()


def test_official_decay_by_hand():
    # H = 8: s_h = 2^(−8h/8), h = 1..8
    eight = numbers(*(0.5**h for h in range(1, 9)))
    near(slopes(decays.OfficialDecay(8, 0, 1, temperature=False)), eight)
    # ALiBi, H = 6: those of 4 heads, 2^−2, 2^−4, 2^−6, 2^−8, then every other one of 8 heads: 2^−1, 2^−3
    six = numbers(*(2.0**-n for n in (2, 4, 6, 8, 1, 3)))
    near(slopes(decays.OfficialDecay(6, 0, 1, temperature=False)), six)
    # 12 heads: 8 heads', then 2^(−h/2) for h = 1, 3, 5, 7
    twelve = [0.5**h for h in range(1, 9)] + [2 ** (-h / 2) for h in (1, 3, 5, 7)]
    near(slopes(decays.OfficialDecay(12, 0, 1, temperature=False)), numbers(*twelve))
    assert decays.alibi_slopes(1) == [2**-8]
    # Layer factors 1 − l/(L−1) + 1e-5 for L = 3: 1.00001, 0.50001, 0.00001; L = 1 is taken as a first layer
    for layer, factor in enumerate((1.00001, 0.50001, 0.00001)):
        near(slopes(decays.OfficialDecay(8, layer, 3)), eight * factor, atol=1e-12)
    near(slopes(decays.OfficialDecay(8, 0, 1)), eight * 1.00001)
    # First layer, H = 8: λ from 0.607 to 0.996
    factors = decays.OfficialDecay(8, 0, 24)().exp()
    assert [round(float(x), 3) for x in (factors[0], factors[-1])] == [0.607, 0.996]


def test_other_decays_by_hand():
    # (8h/4)(1 − l/L), h = 0..3, L = 4: first layer (l = 1) 0, 1.5, 3, 4.5; last layer 0
    near(slopes(decays.PrintedDecay(4, 0, 4)), numbers(0, 1.5, 3, 4.5))
    near(slopes(decays.PrintedDecay(4, 3, 4)), numbers(0, 0, 0, 0))
    near(slopes(decays.PrintedDecay(4, 3, 4, temperature=False)), numbers(0, 2, 4, 6))
    # RetNet: λ = 1 − 2^−5, 1 − 2^−6, 1 − 2^−7, in every layer
    for layer in (0, 5):
        near(torch.exp(-slopes(decays.RetNetDecay(3, layer, 6))), numbers(31 / 32, 63 / 64, 127 / 128))
    near(torch.exp(-slopes(decays.FixedDecay(2, 0, 1, value=0.25))), numbers(0.25, 0.25))
    near(torch.exp(-slopes(decays.FixedDecay(2, 3, 4, value=[0.5, 1.0]))), numbers(0.5, 1))
    with pytest.raises(RequestError, match="lists 3 values for 2 heads"):
        decays.FixedDecay(2, 0, 1, value=[0.5, 0.5, 0.5])
    # Memory lengths 2, 8, 32 in geometric progression; layer factor 0.50001 in the middle of three
    near(slopes(decays.AllLayersDecay(2, 0, 4)), numbers(1 / 16, 1 / 256))
    near(slopes(decays.AllLayersDecay(2, 3, 4)), numbers(1 / 16, 1 / 256) / 4)
    log_spaced = decays.LogSpacedDecay(3, 1, 3, shortest=2, longest=32)
    near(slopes(log_spaced), 0.50001 * numbers(1 / 2, 1 / 8, 1 / 32))
    assert decays.NoDecay(2, 0, 1)() is None


@pytest.mark.parametrize("layer", [0, 2])
def test_learned_decay_starts_official_and_learns(layer: int):
    decay = decays.LearnedDecay(6, layer, 3)
    near(slopes(decay), slopes(decays.OfficialDecay(6, layer, 3)), atol=1e-12)
    (gradient,) = torch.autograd.grad(decay().sum(), decay.log_slope)
    near(-gradient.double(), slopes(decay))  # d(−exp a)/da


def test_no_decay_grows():
    """λ <= 1 in every layer, for every registered decay and number of heads."""
    for entry in registry.entries("decay"):
        for heads, layers in ((1, 1), (5, 3), (96, 2)):
            for layer in range(layers):
                log_decay = entry.target(heads, layer, layers)()
                assert log_decay is None or (log_decay.shape == (heads,) and bool((log_decay <= 0).all()))


# Positions


def scores(position: positions.Position, q: Tensor, k: Tensor, t: int, s: int) -> Tensor:
    """q (heads, dim) at step t with k at step s: (heads,)."""
    at_t, _ = position.rotate(q[None, None], k[None, None], t)
    _, at_s = position.rotate(q[None, None], k[None, None], s)
    return (at_t * at_s).sum(-1).flatten()


def test_rope_by_hand():
    # Head dim 4: pairs (0, 2) and (1, 3) turn by n and n 10000^(−2/4) = n / 100
    rope, x = positions.RoPE(4, 1, 0), numbers(1, 2, 3, 4)
    turned, _ = rope.rotate(x.view(1, 1, 1, 4), x.view(1, 1, 1, 4), 3)
    (c, s), (c2, s2) = (math.cos(3), math.sin(3)), (math.cos(0.03), math.sin(0.03))
    near(turned.flatten(), numbers(c - 3 * s, 2 * c2 - 4 * s2, s + 3 * c, 2 * s2 + 4 * c2))


def test_lrpe_by_hand():
    # The cosine form: score = Σ_j q_j k_j cos(θ_j (t − s)), with key dim doubled
    q, k = normal(3, 2), normal(3, 2)
    cosine = scattered(positions.LRPE(2, 3, 0))
    near(scores(cosine, q, k, 9, 4), (q * k * (cosine.theta * 5).cos()).sum(-1))
    assert cosine.key_dim(2) == 4
    # θ_j = 10000^(−2j/6), j = 0..5 over the channels of all 3 heads
    initial = positions.LRPE(2, 3, 0).theta
    near(initial.double(), numbers(*(10000 ** (-j / 3) for j in range(6))).view(3, 2))
    # The rotation: one θ per pair, over all heads' pairs: 10000^(−2j/12), j = 0..5
    rotation = positions.LRPE(4, 3, 0, form="rotation")
    near(rotation.theta.double(), numbers(*(10000 ** (-j / 6) for j in range(6))).view(3, 2))
    x = numbers(1, 2, 3, 4).expand(3, 4)[None, None]
    turned, _ = rotation.rotate(x, x, 7)
    phase = 7 * 10000 ** (-1 / 6)  # head 0, second pair: channels 1 and 3
    near(turned[0, 0, 0, 1::2], numbers(2 * math.cos(phase) - 4 * math.sin(phase),
                                        2 * math.sin(phase) + 4 * math.cos(phase)))  # fmt: skip
    assert rotation.key_dim(4) == 4


def test_householder_lrpe_by_hand():
    """Reflection on the normal (1, 0, 0, 0) turns the sign of channel 0; then channels 0 and 1 turn by 2θ."""
    position = positions.LRPE(4, 1, 0, form="householder").double()
    position.theta.data, position.reflection.data = numbers(0.25)[None], numbers(5, 0, 0, 0)[None]
    x = numbers(1, 2, 3, 4).view(1, 1, 1, 4)
    turned, _ = position.rotate(x, x, 2)
    c, s = math.cos(0.5), math.sin(0.5)
    near(turned.flatten(), numbers(-c - 2 * s, -s + 2 * c, 3, 4))


ROTATIONS = [
    (entry, spec)
    for entry in registry.entries("position")
    if getattr(entry.target, "place", "") == "scores"
    for spec in variants(entry)
]


@pytest.mark.parametrize(("entry", "spec"), ROTATIONS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_scores_depend_on_distance_alone(entry: Entry, spec: dict[str, Any]):
    parameters = {key: value for key, value in spec.items() if key != "name"}
    position = scattered(entry.target(8, 3, 0, **parameters))  # type: ignore[arg-type]
    q, k = normal(3, 8), normal(3, 8)
    torch.testing.assert_close(scores(position, q, k, 1007, 1003), scores(position, q, k, 4, 0))
    assert (scores(position, q, k, 4, 0) - scores(position, q, k, 5, 0)).abs().min() > 1e-6
    assert position.rotate(q[None, None], k[None, None], 3)[0].shape[-1] == position.key_dim(8)
    if parameters.get("layers") == "first":
        assert scattered(entry.target(8, 3, 1, **parameters)).rotate(q, k, 3) == (q, k)  # type: ignore[arg-type]


def test_phases_are_exact_for_inputs_of_low_precision():
    """In bf16 the integers above 256 are not exact; the phases are, and only the result is rounded."""
    x = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16)
    cos, sin = math.cos(4001), math.sin(4001)  # channel 0: θ = 1
    for position, first in ((positions.RoPE(8, 1, 0), cos - sin), (positions.LRPE(8, 1, 0), cos)):
        turned, _ = position.rotate(x, x, 4001)
        assert turned.dtype == torch.bfloat16
        assert float(turned.detach().flatten()[0]) == pytest.approx(first, abs=0.01)


def test_learned_absolute_positions_by_hand():
    position = positions.LearnedAbsolute(2, 3).double()
    position.weight.data = numbers(1, 2, 3, 4, 5, 6).view(3, 2)
    near(position.embed(torch.zeros(1, 2, 2).double(), 1), numbers(3, 4, 5, 6).view(1, 2, 2))
    with pytest.raises(ValueError, match="end at 3, asked for 4"):
        position.embed(torch.zeros(1, 2, 2), 2)


@pytest.mark.parametrize(("dim", "form"), [(5, "rotation"), (6, "householder"), (5, "householder")])
def test_head_dims_that_cannot_turn_are_refused(dim: int, form: Any):
    with pytest.raises(RequestError, match=f"{dim}") as refusal:
        positions.LRPE(dim, 2, 0, form=form)
    assert str(refusal.value).isprintable()
    with pytest.raises(RequestError, match="5 is odd"):
        positions.RoPE(5, 2, 0)


# Gradients


class Call(nn.Module):
    """A method of a module as a module, with trailing arguments that are no tensors."""

    def __init__(self, module: nn.Module, method: str = "forward", *rest: int) -> None:
        super().__init__()
        self.module, self.method, self.rest = module, method, rest

    def forward(self, *tensors: Tensor) -> Any:
        return getattr(self.module, self.method)(*tensors, *self.rest)


def gradcheck(call: Call, *tensors: Tensor) -> bool:
    """Whether the gradients in the tensors and in all parameters are right."""
    parameters = dict(call.named_parameters())

    def compute(*values: Tensor) -> Any:
        given = dict(zip(parameters, values[len(tensors) :], strict=True))
        return torch.func.functional_call(call, given, values[: len(tensors)])

    return torch.autograd.gradcheck(compute, [*(x.requires_grad_() for x in tensors), *parameters.values()])


SINGLE = [
    (entry, spec)
    for kind in ("norm", "feature_map", "channel", "decay", "position")
    for entry in registry.entries(kind)
    for spec in variants(entry)
]


@pytest.mark.parametrize(("entry", "spec"), SINGLE, ids=lambda x: str(x) if isinstance(x, dict) else x.kind)
def test_gradients(entry: Entry, spec: dict[str, Any]):
    parameters = {key: value for key, value in spec.items() if key != "name"}
    place = getattr(entry.target, "place", "")
    sizes = {"norm": (4,), "feature_map": (), "channel": (4, 3), "decay": (3, 0, 2), "position": (4, 2, 0)}
    size = (4, 8) if place == "embedding" else sizes[entry.kind]
    module = scattered(entry.target(*size, **parameters))  # type: ignore[arg-type]
    if entry.kind == "decay":
        assert not list(module.parameters()) or gradcheck(Call(module))
    elif place == "embedding":
        assert gradcheck(Call(module, "embed", 3), normal(2, 2, 4))
    elif entry.kind == "position":
        assert gradcheck(Call(module, "rotate", 3), normal(2, 2, 2, 4), normal(2, 2, 2, 4))
    else:
        assert gradcheck(Call(module), normal(2, 3, 4))


# Alone


def test_plain_modules_make_a_model_without_registry_or_configuration():
    """Parts, a mixer, norms and a channel mixer in nn.Sequential: half a step of gradient lowers the loss."""
    parts = Parts(
        position=positions.LRPE(6, 4, 0),
        decay=decays.OfficialDecay(4, 0, 1),
        feature_map=feature_maps.Swish(),
        inner_norm=norms.SRMSNorm,
        gate=True,
    )
    stages = [mixers.GatedLinearAttention(24, 4, parts), norms.RMSNorm(24), channels.SGLU(24, 40)]
    model, x = nn.Sequential(norms.LayerNorm(24), *stages), torch.randn(2, 9, 24)

    def loss() -> Tensor:
        return (model(x[:, :-1]) - x[:, 1:]).square().mean()

    before = loss()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad
    assert loss() < before


@pytest.mark.parametrize("mixer", [entry.target for entry in registry.entries("mixer")])
def test_mixers_need_nothing_but_a_width_and_heads(mixer: Any):
    alone = mixer(12, 2).double()
    x, state = normal(2, 5, 12), None
    state = alone.initial_state(2, x)
    first, state = alone.extend(x[:, :3], state, 0)
    second, _ = alone.extend(x[:, 3:], state, 3)
    torch.testing.assert_close(torch.cat([first, second], dim=1), alone(x))
    with pytest.raises(ValueError, match="heads = 5 does not divide width = 12"):
        mixer(12, 5)
