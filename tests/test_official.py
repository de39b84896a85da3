"""OpenNLPLab's checkpoints: against the formulas of the official code, to and fro, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tnbench.errors import RequestError
from tnbench.interop import official, official_layout
from tnbench.interop.official_position import RoundedLRPE
from tnbench.model import LanguageModel
from tnbench.resolution import resolve

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


# ---------------------------------------------------------------------- files


def in_parts(folder: Path, stored: dict[str, Tensor], suffix: str) -> None:
    """Two files with their index."""
    names = list(stored)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{stem}-0000{n}-of-00002.{suffix}": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in files.items():
        part = {name: stored[name] for name in held}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


class Trap:
    """Pickled, it writes a file when it is read by code that executes what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["safetensors", "bin", "safetensors in parts", "bin in parts", "old bin"])
def test_every_form_of_file_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    want = official.load_model(save(tmp_path / "one", values, stored)).state_dict()
    folder = save(tmp_path / "two", values, stored)
    if form == "safetensors":  # comes first: what else is there is not even opened
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    else:
        (folder / "model.safetensors").unlink()
        if form.endswith("in parts"):
            in_parts(folder, stored, form.split()[0])
        else:
            new = form == "bin"
            torch.save(stored, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    (folder / "modeling_transnormer.py").write_text("raise SystemExit('executed')")
    found = official.load_model(folder).state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_and_fro_changes_no_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    values = config(decoder_attention_heads=6, init_std=0.01)
    stored = {name: tensor.to(dtype) for name, tensor in weights(values).items()}
    model = official.load_model(save(tmp_path / "theirs", values, stored))
    assert model.embedding.weight.dtype == dtype
    official.write_official(model, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)
    said = json.loads((tmp_path / "ours" / "config.json").read_text())
    other = {"linear_use_lrpe", "pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype", "auto_map"}
    assert {key: said[key] for key in values if key not in other} == {
        key: value for key, value in values.items() if key not in other
    }
    again = official.load_model(tmp_path / "ours")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def ours(**changes: Any) -> LanguageModel:
    values = {"model.size": "0.1m", "training.steps": 1} | {f"model.{key}": v for key, v in changes.items()}
    return LanguageModel(resolve(values).model, VOCABULARY, 32)


@torch.no_grad()
def test_a_model_of_ours_in_their_layout(tmp_path: Path) -> None:
    model = ours(tie_embeddings=False)
    official.write_official(model, tmp_path / "deep" / "folder")
    again = official.load_model(tmp_path / "deep" / "folder")
    assert torch.equal(model(tokens(20)), again(tokens(20)))


@pytest.mark.parametrize(("changes", "message"), [
    ({"preset": "transformer"}, "model.mixer = softmax (backend: auto)"),
    ({"convention": "v1"}, "model.position = lrpe (form: rotation, layers: all)"),
    ({"decay": "printed"}, "model.decay = printed (temperature: true)"),
    ({"channel": "swiglu"}, "model.channel = swiglu"),
    ({"gate": False}, "model.gate = false"),
    ({"inner_norm": "rmsnorm"}, "model.inner_norm = rmsnorm (eps: 1e-06)"),
    ({"feature_map": "softmax"}, "model.feature_map = softmax"),
])  # fmt: skip
def test_models_that_their_layout_cannot_hold(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        official.write_official(ours(**changes), tmp_path / "new")
    assert str(caught.value).startswith(f"{message} cannot be written in TransNormerLLM's layout: it has ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(RequestError, match="is not empty"):
        official.write_official(ours(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# ---------------------------------------------------------------------- bad input


def complaint(folder: str | Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        official.load_model(folder, **options)
    text = str(caught.value)
    assert text.isprintable(), "more than one line"
    assert len(text) < 400 + len(str(folder))
    return text.replace(str(folder), "HERE") if str(folder).strip() else text


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "llama", "architectures": ["Llama"]}, "another architecture: model_type 'llama'"),
    ({"model_type": None, "architectures": None}, "another architecture: no model_type"),
    ({"decoder_layers": None}, "decoder_layers = None: input should be a valid integer"),
    ({"decoder_embed_dim": "24"}, "decoder_embed_dim = '24': input should be a valid integer"),
    ({"vocab_size": 10**30}, "vocab_size = "),
    ({"decoder_attention_heads": 5}, "decoder_attention_heads = 5 does not divide decoder_embed_dim = 24"),
    ({"hidden_dim": 48}, "hidden_dim = 48 is not decoder_embed_dim = 24"),
    ({"glu_dim": 0}, "glu_dim = 0: expected a size"),
    ({"norm_type": "layernorm"}, "norm_type = 'layernorm': expected simplermsnorm"),
    ({"bias": True}, "bias = true"),
    ({"linear_act_fun": "swsh"}, "linear_act_fun = 'swsh', did you mean swish?"),
    ({"linear_use_lrpe_list": []}, "linear_use_lrpe_list has 0 entries for 3 layers"),
    ({"linear_use_lrpe_list": [0, 1, 0]}, "no layer, in the first alone or in all of them"),
    ({"gate_dim": 16}, "gate_dim = 16 is the low-rank gate of TNL3"),
])  # fmt: skip
def test_a_config_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = complaint(save(tmp_path / "x", config(**changes), {"a": torch.zeros(1)}))
    assert text.startswith("HERE/config.json")
    assert message in text


def test_a_key_that_config_lacks(tmp_path: Path) -> None:
    values = config()
    del values["glu_dim"]
    assert complaint(save(tmp_path / "x", values, {})) == "HERE/config.json: glu_dim is missing"


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "an empty name" in complaint(" ")
    assert "no such folder" in complaint("x" * 5000)
    (tmp_path / "file").touch()
    assert "it is a file" in complaint(tmp_path / "file")
    assert "HERE holds no config.json" in complaint(tmp_path)
    for content, message in (
        (b"", "is empty"),
        (b"{", "is no valid JSON"),
        (b"\xff\xfe", "is no valid JSON"),
        (b"[" * 200_000, "is no valid JSON"),
        (b"[1]", "expected a JSON object, got [1]"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        assert message in complaint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    assert "HERE holds no weights: none of model.safetensors, " in complaint(tmp_path)


MIXER = "model.layers.1.token_mixer"


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)

    def with_(changed: dict[str, Tensor], remove: str = "none") -> str:
        kept = {name: tensor for name, tensor in stored.items() if remove not in name}
        return complaint(save(tmp_path / "x", values, kept | changed))

    out, theta, embedding = f"{MIXER}.out_proj.weight", f"{MIXER}.lrpe.theta", "model.embed_tokens.weight"
    assert with_({}, remove=out) == f"HERE: the weights do not fit config.json: missing {out}"
    assert with_({theta: torch.zeros(4, 1, 6)}).endswith(f"config.json: left over {theta}")
    first = "model.layers.0.channel_mixer.l"
    assert with_({"a": torch.zeros(1)}, remove="layers").endswith(
        f"missing {first}1.weight, {first}2.weight, {first}3.weight, model.layers.0.token_mixer.lrpe.theta "
        "and 12 more; left over a"
    )
    assert with_({out: torch.zeros(24, 12)}) == f"HERE: {out} is (24, 12), config.json asks for (24, 24)"
    assert f"{out} is of bfloat16, {embedding} of float32" in with_({out: stored[out].bfloat16()})
    integers = {name: tensor.to(torch.int8) for name, tensor in stored.items()}
    assert f"{embedding} is of int8: expected one floating-point type" in with_(integers)
    other = {"lm_head.weight": stored["lm_head.weight"] + 1}
    assert "lm_head.weight differs from model.embed_tokens.weight" in with_(other)
    values = config(tie_word_embeddings=False)
    assert with_({}, remove="lm_head").endswith("missing lm_head.weight")
    assert "leave out faithful" in complaint(
        save(tmp_path / "y", config(decoder_layers=1), stored), faithful=True
    )


def test_damaged_files(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    folder = save(tmp_path / "x", values, stored)
    path, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (whole[:-7], whole[:100], b"\0" * 64):
        path.write_bytes(content)
        assert "HERE/model.safetensors is cut off or damaged" in complaint(folder)
    path.write_bytes(b"")
    assert "model.safetensors is empty" in complaint(folder)
    path.unlink()
    torch.save(stored, old)
    old.write_bytes(old.read_bytes()[:-100])
    assert "HERE/pytorch_model.bin is " in complaint(folder)
    old.write_bytes(b"not a checkpoint")
    assert "HERE/pytorch_model.bin is " in complaint(folder)
    torch.save([1, 2], old)
    assert "pytorch_model.bin is no checkpoint: expected tensors by name" in complaint(folder)
    torch.save({"a": Trap(tmp_path / "trapped")}, old)
    assert "no code of a checkpoint is executed" in complaint(folder)
    assert not (tmp_path / "trapped").exists()


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    values = config()
    stored = weights(values)
    folder = save(tmp_path / "x", values, stored)
    (folder / "model.safetensors").unlink()
    in_parts(folder, stored, "safetensors")
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())["weight_map"]

    def with_(weight_map: Any) -> str:
        path.write_text(json.dumps({"weight_map": weight_map}))
        return complaint(folder)

    assert "has no weight_map" in with_(None)
    assert "which is no file's name" in with_(good | {"a": "../x/model-00001-of-00002.safetensors"})
    assert "which is no file's name" in with_(good | {"a": 1})
    assert "names b.safetensors, which is not there" in with_(good | {"a": "b.safetensors"})
    first = "model-00001-of-00002.safetensors"
    assert f"does not fit {first}: a which it does not hold" in with_(good | {"a": first})
    assert "lm_head.weight left out by the index" in with_(
        {name: file for name, file in good.items() if name != "lm_head.weight"}
    )
    (folder / first).unlink()
    assert f"names {first}, which is not there" in with_(good)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    text = complaint("hf:tnbench/no-such-thing")
    assert text.startswith("checkpoint HERE: the Hugging Face hub cannot be reached")
    assert "Retrying" not in capfd.readouterr().err


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
