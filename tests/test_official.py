"""OpenNLPLab's checkpoints: against the formulas of the official code, to and fro, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tnbench.interop import official, official_layout
from tnbench.interop.official_position import RoundedLRPE
from tnbench.model import LanguageModel

VOCABULARY = 97
SLOPES = {4: (2**-2, 2**-4, 2**-6, 2**-8), 6: (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)}
"""ALiBi's, by number of heads: 6 are those of 4, then the odd ones of 8."""


def config(**changes: Any) -> dict[str, Any]:
    """A small config.json."""
    return {
        "architectures": ["TransnormerForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_transnormer.TransnormerForCausalLM"},
        "model_type": "transnormer",
        "vocab_size": VOCABULARY,
        "decoder_embed_dim": 24,
        "hidden_dim": 24,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "glu_dim": 40,
        "linear_act_fun": "swish",
        "linear_use_lrpe": 1,
        "linear_use_lrpe_list": [1, 0, 0],
        "no_scale_embedding": False,
        "norm_type": "simplermsnorm",
        "bias": False,
        "init_std": 0.02,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }


def weights(values: dict[str, Any], *, tied: bool = True) -> dict[str, Tensor]:
    """Random weights under the official names, large enough that every part shows."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    width, inner, heads = values["decoder_embed_dim"], values["glu_dim"], values["decoder_attention_heads"]
    found = {"model.embed_tokens.weight": draw(VOCABULARY, width)}
    for layer in range(values["decoder_layers"]):
        mixer, channel = f"model.layers.{layer}.token_mixer", f"model.layers.{layer}.channel_mixer"
        found[f"{mixer}.qkvu_proj.weight"] = draw(4 * width, width)
        found[f"{mixer}.out_proj.weight"] = draw(width, width)
        found[f"{channel}.l1.weight"], found[f"{channel}.l2.weight"] = draw(inner, width), draw(inner, width)
        found[f"{channel}.l3.weight"] = draw(width, inner)
        if values["linear_use_lrpe_list"][layer]:
            theta = 10000.0 ** (-2 * torch.arange(width) / width)
            found[f"{mixer}.lrpe.theta"] = theta.view(heads, 1, -1) + 0.1 * draw(heads, 1, width // heads)
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone() if tied else draw(VOCABULARY, width)
    return found


def save(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def expected_logits(values: dict[str, Any], stored: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The official model's formulas, in float64, every score on its own."""
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    width, heads, layers = (values[f"decoder_{key}"] for key in ("embed_dim", "attention_heads", "layers"))
    act = {"silu": F.silu, "swish": F.silu, "1+elu": lambda x: 1 + F.elu(x), "none": lambda x: x}
    phi = act[values["linear_act_fun"]]

    def norm(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, width // heads)).transpose(1, 2)  # (batch, head, time, channel)

    x = tensors["model.embed_tokens.weight"][tokens]
    x = x if values["no_scale_embedding"] else math.sqrt(width) * x
    steps = torch.arange(tokens.shape[1], dtype=torch.float64)
    apart = steps[:, None] - steps[None, :]
    for layer in range(layers):
        w = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        q, k, v, u = (norm(x) @ w["token_mixer.qkvu_proj.weight"].T).chunk(4, dim=-1)
        q, k, v = split(phi(q)), split(phi(k)), split(v)
        if values["linear_use_lrpe_list"][layer]:  # Σ_j q_j k_j cos(θ_j (t − s))
            cosines = torch.cos(w["token_mixer.lrpe.theta"][:, None] * apart[None, :, :, None])
            scores = torch.einsum("bhtj,bhsj,htsj->bhts", q, k, cosines)
        else:
            scores = q @ k.transpose(-1, -2)
        slopes = torch.tensor(SLOPES[heads], dtype=torch.float64) * (1 - layer / (layers - 1) + 1e-5)
        slopes = slopes.float().double()  # the official ones are in fp32
        decay = torch.exp(-slopes[:, None, None] * apart).masked_fill(apart < 0, 0)
        mixed = ((scores * decay) @ v).transpose(1, 2).flatten(-2)
        x = x + (norm(mixed) * u) @ w["token_mixer.out_proj.weight"].T
        y = norm(x)
        inner = (y @ w["channel_mixer.l1.weight"].T) * (y @ w["channel_mixer.l2.weight"].T)
        x = x + inner @ w["channel_mixer.l3.weight"].T
    return norm(x) @ tensors["lm_head.weight"].T


def tokens(time: int, batch: int = 2) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(5))


VARIANTS = {
    "four heads": {},
    "six heads": {"decoder_attention_heads": 6, "no_scale_embedding": True, "linear_act_fun": "silu"},
    "lrpe everywhere": {
        "linear_use_lrpe_list": [1, 1, 1],
        "linear_act_fun": "1+elu",
        "decoder_attention_heads": 6,
    },
    "no lrpe, own head": {
        "linear_use_lrpe_list": [0, 0, 0],
        "linear_act_fun": "none",
        "tie_word_embeddings": False,
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_official_formulas(name: str, tmp_path: Path) -> None:
    values = config(**VARIANTS[name])
    stored = weights(values, tied=values.get("tie_word_embeddings", True))
    folder = save(tmp_path / "checkpoint", values, stored)
    text = tokens(150)  # beyond the length up to which the quadratic form is taken
    wanted = expected_logits(values, stored, text)
    single = official.load_model(folder)
    largest = float(wanted.abs().max())
    assert largest > 1
    torch.testing.assert_close(single(text).double(), wanted, atol=1e-5 * largest, rtol=0)
    double = official.load_model(folder, dtype=torch.float64)
    torch.testing.assert_close(double(text), wanted, atol=1e-10, rtol=0)

    state = single.allocate(2, 150)
    last = [single.prefill(text[:, :140], state, last_only=True)[0][:, 0]]
    last += [single.decode(text[:, step], state) for step in range(140, 150)]
    found = torch.stack(last, 1).double()
    torch.testing.assert_close(found, wanted[:, 139:], atol=1e-5 * largest, rtol=0)


def test_mistakes_show_in_the_formulas(tmp_path: Path) -> None:
    """Each of these would be a wrong reading of the layout; the bound above sees it."""
    values = config(decoder_attention_heads=6)
    stored, text = weights(values), tokens(40)
    wanted = expected_logits(values, stored, text)

    def gap(**changed: Tensor) -> float:
        folder = save(tmp_path / "changed", values, stored | changed)
        with torch.no_grad():
            return float((official.load_model(folder)(text).double() - wanted).abs().max())

    mixer = "model.layers.0.token_mixer"
    q, k, v, u = stored[f"{mixer}.qkvu_proj.weight"].chunk(4)
    assert gap() < 1e-5
    assert gap(**{f"{mixer}.qkvu_proj.weight": torch.cat([k, q, u, v])}) > 1e-3
    assert gap(**{f"{mixer}.lrpe.theta": stored[f"{mixer}.lrpe.theta"].flip(0).contiguous()}) > 1e-3
    values = config(decoder_attention_heads=6, no_scale_embedding=True)
    assert gap() > 1e-3


@pytest.mark.parametrize(("layers", "width", "heads", "inner", "total"), [
    (24, 1024, 8, 2816, 398_984_192),
    (16, 2048, 16, 5632, 1_020_266_496),
    (30, 4096, 32, 11008, 6_836_719_616),
])  # fmt: skip
def test_published_sizes(layers: int, width: int, heads: int, inner: int, total: int) -> None:
    values = config(
        vocab_size=64000, decoder_embed_dim=width, hidden_dim=width, decoder_layers=layers,
        decoder_attention_heads=heads, glu_dim=inner, linear_use_lrpe_list=[1] + [0] * (layers - 1),
    )  # fmt: skip
    ours = official_layout.to_ours(official_layout.read_config(Path("config.json"), values))
    stored = [part for parts in official_layout.layout(ours, 64000).values() for part in parts]
    assert sum(math.prod(part.shape) for part in stored) == total
    assert len(stored) == 5 * layers + 2
    with torch.device("meta"):
        assert LanguageModel(ours, 64000, 2).parameter_counts()["total"] == total
    assert ours.size in ("385m", "1b", "7b")


# ---------------------------------------------------------------------- the official code's errors


def rounded(n: int) -> int:
    """n with 8 binary digits, ties to even, as bf16 has it."""
    unit = 2 ** max(n.bit_length() - 8, 0)
    low, rest = divmod(n, unit)
    return unit * (low + (2 * rest > unit or (2 * rest == unit and low % 2 == 1)))


def test_rounded_positions_are_those_of_the_official_code() -> None:
    position = RoundedLRPE(2, 1, 0)
    position.theta.data.fill_(0.01)
    q = torch.ones(1, 700, 1, 2, dtype=torch.bfloat16)
    assert len({rounded(n) for n in range(2048)}) == 641
    theta = position.theta.detach()[0, 0].item()
    wanted = torch.tensor([math.cos(theta * rounded(n)) for n in range(700)])
    found = position.rotate(q, q, 0)[0][0, :, 0, 0]
    assert torch.equal(found, wanted.to(torch.bfloat16))
    for start in (300, torch.tensor([300])):
        one = position.rotate(q[:, :1], q[:, :1], start)[1]
        assert one[0, 0, 0, 0] == wanted[300].bfloat16()


@torch.no_grad()
def test_faithful_models(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    stored["model.layers.0.token_mixer.lrpe.theta"].clamp_(min=0.3)
    folder, text = save(tmp_path / "x", values, stored), tokens(420, batch=1)
    right, faithful = official.load_model(folder), official.load_model(folder, faithful=True)
    assert torch.equal(right(text), faithful(text)), "in fp32 positions are exact"
    right, faithful = (
        official.load_model(folder, faithful=mode, dtype=torch.bfloat16) for mode in (False, True)
    )
    exact = expected_logits(
        values, {name: tensor.bfloat16() for name, tensor in stored.items()}, text[:, :420]
    )[:, 300:]
    errors = [float((model(text)[:, 300:] - exact).square().mean().sqrt()) for model in (right, faithful)]
    assert errors[1] > 2 * errors[0]

    whole = faithful(text).float()
    state = faithful.allocate(1, 420)
    faithful.prefill(text[:, :419], state)
    last = faithful.decode(text[:, 419], state).float()
    assert float((last - whole[:, 419]).abs().max()) < 0.5 * float((whole - right(text))[:, 419].abs().max())
    assert faithful.state_dict().keys() == right.state_dict().keys()
