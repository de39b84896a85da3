"""Norms, positions, decays, feature maps and channel mixers, by the names in the configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:  # where this package is installed, its kernels compute the same on a GPU in less time
    from tnbench.kernels import devices, linear_attention, normalisation
except ImportError:
    devices = linear_attention = normalisation = None

BASE = 10000.0
WIDEST = 256
"""Head dims that the kernels take."""

ACTIVATIONS = {
    "none": lambda x: x,
    "swish": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
}

FEATURE_MAPS = {
    "none": lambda x: x,
    "swish": F.silu,
    "1+elu": lambda x: F.elu(x) + 1,
    "elu": F.elu,
    "relu": F.relu,
    "squared-relu": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, dim=-1),
}
"""φ on queries and keys, before the position."""


def wide(x: Tensor) -> Tensor:
    """Sums, phases and states are computed in fp32, and in fp64 for fp64 inputs."""
    return x if x.dtype == torch.float64 else x.float()


def has_kernels(x: Tensor) -> bool:
    """Whether there are kernels for a tensor."""
    return devices is not None and x.is_cuda and devices.obstacle(x) is None


def build(kinds: dict[str, Any], spec: dict[str, Any], *arguments: Any) -> Any:
    """The component of a dictionary `{name: …, parameter: …}`."""
    return kinds[spec["name"]](*arguments, **{key: value for key, value in spec.items() if key != "name"})


class Constant(nn.Module):
    """Base of what computes with a constant tensor, which is made on the device where it is first used.

    A buffer would be left empty by `from_pretrained`, and rounded with the model.
    """

    _made: Tensor | None = None

    def make(self) -> Tensor:
        """The constant, on the CPU."""
        raise NotImplementedError

    def constant(self, device: torch.device) -> Tensor:
        """The constant, on a device."""
        if self._made is None or self._made.device != device:
            with torch.inference_mode(False), torch.device("cpu"):
                self._made = self.make().to(device)
        return self._made


# Norms of the last dimension


class SRMSNorm(nn.Module):
    """x / (‖x‖₂ / √d), without weights."""

    weight: nn.Parameter | None

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        if has_kernels(x):
            assert normalisation is not None
            return normalisation.norm(x, weight=self.weight, eps=self.eps)
        values = wide(x)
        values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.eps)
        return (values if self.weight is None else values * self.weight).to(x.dtype)


class RMSNorm(SRMSNorm):
    """x / (‖x‖₂ / √d) ⊙ g."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps)
        self.weight = nn.Parameter(torch.ones(width))


class LayerNorm(nn.LayerNorm):
    """(x − mean) / √variance ⊙ g + b."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else wide(self.bias)
        return F.layer_norm(wide(x), self.normalized_shape, wide(self.weight), bias, self.eps).to(x.dtype)


class NoNorm(nn.Identity):
    """x."""


NORMS = {"srmsnorm": SRMSNorm, "rmsnorm": RMSNorm, "layernorm": LayerNorm, "none": NoNorm}


# Positions: queries and keys (batch, time, heads, head dim) of tokens at `steps` (1 or batch, time)


class NoPosition(nn.Module):
    """Order enters elsewhere, or not at all."""

    def __init__(self, head_dim: int, heads: int, layer: int) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


class LearnedAbsolute(nn.Module):
    """x_t + P_t, on the embeddings (batch, time, width)."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, width))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x + self.weight[steps].to(x.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels j and j + d/2 of x turned by the angle of `cos` and `sin`, whose last dimension is d/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def phases(theta: Tensor, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos nθ and sin nθ, (1 or batch, time, heads or 1, angles), of angles in fp32 or better.

    16 bits cannot count beyond 256.
    """
    angle = steps[..., None, None].to(wide(theta).dtype) * wide(theta)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class RoPE(Constant):
    """Pair j of a head turns by n · 10000^(−2j/d_h) (arXiv 2104.09864)."""

    def __init__(self, head_dim: int, heads: int, layer: int, layers: str = "all") -> None:
        super().__init__()
        self.active, self.head_dim = layers == "all" or layer == 0, head_dim

    def make(self) -> Tensor:
        pairs = torch.arange(self.head_dim // 2, dtype=torch.float32)
        return (BASE ** (-2 * pairs / self.head_dim))[None]

    def forward(self, q: Tensor, k: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        if not self.active:
            return q, k
        angle = phases(self.constant(q.device), steps, q.dtype)
        return turn(q, *angle), turn(k, *angle)


class LRPE(nn.Module):
    """Linearized relative position encoding with learned θ (arXiv 2307.14995, eq. 1).

    Forms: `cosine`, x becomes [x cos nθ, x sin nθ], twice as wide; `rotation`, pairs turn by nθ;
    `householder`, the first half of a head's channels turn, after a learned reflection.
    """

    def __init__(
        self, head_dim: int, heads: int, layer: int, form: str = "cosine", layers: str = "all"
    ) -> None:
        super().__init__()
        self.active, self.form = layers == "all" or layer == 0, form
        if not self.active:
            return
        angles = {"cosine": head_dim, "rotation": head_dim // 2, "householder": head_dim // 4}[form]
        channel = torch.arange(heads * angles, dtype=torch.float32)
        self.theta = nn.Parameter((BASE ** (-2 * channel / (heads * head_dim))).view(heads, angles))
        if form == "householder":
            self.reflection = nn.Parameter(torch.ones(heads, head_dim) / head_dim**0.5)

    def forward(self, q: Tensor, k: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        if not self.active:
            return q, k
        cos, sin = phases(self.theta, steps, q.dtype)
        if self.form == "cosine":
            return torch.cat([q * cos, q * sin], dim=-1), torch.cat([k * cos, k * sin], dim=-1)
        if self.form == "rotation":
            return turn(q, cos, sin), turn(k, cos, sin)
        return self._reflect_and_turn(q, cos, sin), self._reflect_and_turn(k, cos, sin)

    def _reflect_and_turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normal = (self.reflection / self.reflection.norm(dim=-1, keepdim=True)).to(x.dtype)
        x = x - 2 * normal * (x * normal).sum(-1, keepdim=True).to(x.dtype)
        turning, still = x.chunk(2, dim=-1)
        return torch.cat([turn(turning, cos, sin), still], dim=-1)


POSITIONS = {"none": NoPosition, "rope": RoPE, "lrpe": LRPE}
EMBEDDING_POSITION = "ape"


# Decays: the slopes s = −log λ per head


def alibi_slopes(heads: int) -> list[float]:
    """2^(−8h/H), h = 1..H, interleaved where H is no power of two (arXiv 2108.12409)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    return slopes + [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: heads - power]


def temperature_factor(layer: int, layers: int, temperature: bool) -> float:
    """1 − l/(L−1) + 1e-5, or 1."""
    return 1 - layer / max(layers - 1, 1) + 1e-5 if temperature else 1.0


def official(heads: int, layer: int, layers: int, temperature: bool = True) -> list[float]:
    """The official code of TransNormerLLM."""
    return [slope * temperature_factor(layer, layers, temperature) for slope in alibi_slopes(heads)]


def all_layers(heads: int, layer: int, layers: int) -> list[float]:
    """2^(−8h/H)(1 − l/L): the last layer decays too."""
    return [slope * (1 - layer / layers) for slope in alibi_slopes(heads)]


def printed(heads: int, layer: int, layers: int, temperature: bool = True) -> list[float]:
    """(8h/H)(1 − l/L), as arXiv 2307.14995 prints it."""
    return [8 * h / heads * (1 - (layer + 1) / layers if temperature else 1.0) for h in range(heads)]


def retnet(heads: int, layer: int, layers: int) -> list[float]:
    """λ = 1 − 2^(−5−h) (arXiv 2307.08621)."""
    return [-math.log1p(-(2.0 ** (-5 - h))) for h in range(heads)]


def log_spaced(
    heads: int,
    layer: int,
    layers: int,
    shortest: float = 2.0,
    longest: float = 256.0,
    temperature: bool = True,
) -> list[float]:
    """Memory lengths log-spaced over the heads."""
    step = math.log(longest / shortest) / max(heads - 1, 1)
    factor = temperature_factor(layer, layers, temperature)
    return [factor / (shortest * math.exp(step * h)) for h in range(heads)]


def fixed(heads: int, layer: int, layers: int, value: float | list[float] = 0.99) -> list[float]:
    """A given λ for all heads, or one for each."""
    return [-math.log(x) for x in (value if isinstance(value, list | tuple) else [value] * heads)]


SLOPES = {
    "none": lambda heads, layer, layers: None,
    "official": official,
    "all-layers": all_layers,
    "printed": printed,
    "retnet": retnet,
    "log-spaced": log_spaced,
    "fixed": fixed,
}


class FixedDecay(Constant):
    """log λ per head, (heads,), fp32; None where nothing decays."""

    def __init__(self, slopes: list[float] | None) -> None:
        super().__init__()
        self.slopes = slopes

    def make(self) -> Tensor:
        return -torch.tensor(self.slopes, dtype=torch.float32)

    def forward(self, device: torch.device) -> Tensor | None:
        return None if self.slopes is None else self.constant(device)


class LearnedDecay(nn.Module):
    """log λ = −exp(a), a learned per head."""

    def __init__(self, heads: int, layer: int, layers: int, temperature: bool = True) -> None:
        super().__init__()
        self.log_slope = nn.Parameter(torch.tensor(official(heads, layer, layers, temperature)).log())

    def forward(self, device: torch.device) -> Tensor:
        return -wide(self.log_slope).exp()


def decay(spec: dict[str, Any], heads: int, layer: int, layers: int) -> nn.Module:
    """The decay of a layer, counted from 0 at the bottom."""
    if spec["name"] == "learned":
        return build({"learned": LearnedDecay}, spec, heads, layer, layers)
    return FixedDecay(build(SLOPES, spec, heads, layer, layers))


DECAYS = {*SLOPES, "learned"}


# Channel mixers


class GLU(nn.Module):
    """(act(x W_u) ⊙ x W_v) W_o."""

    def __init__(self, activation: str, width: int, inner: int) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(ACTIVATIONS[self.activation](gate) * value)


class FFN(nn.Module):
    """act(x W_1) W_2."""

    def __init__(self, width: int, inner: int, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


CHANNELS = {
    "sglu": lambda width, inner: GLU("none", width, inner),
    "swiglu": lambda width, inner: GLU("swish", width, inner),
    "geglu": lambda width, inner: GLU("gelu", width, inner),
    "glu": lambda width, inner: GLU("sigmoid", width, inner),
    "ffn": FFN,
}
