"""OpenNLPLab's TransNormerLLM checkpoints as our models, and our models in their layout.

    model, tokenizer, config = load_official("TransNormerLLM-1B")
    write_official(model, Path("copy"), tokenizer)

The 385M, 1B, 7B and TNL2 checkpoints can be read: config.json, model.safetensors or pytorch_model.bin (whole,
or in parts with their index), and Baichuan's tokenizer.model. Code in the folder is never executed. What the
official code gets wrong, and what of that `faithful` repeats, is in docs/checkpoints.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tnbench.config import ModelConfig
from tnbench.data import Tokenizer
from tnbench.errors import RequestError, shortened
from tnbench.interop import official_files as files
from tnbench.interop import official_layout as layouts
from tnbench.interop.folders import written
from tnbench.interop.official_layout import EMBEDDING, HEAD, OfficialConfig, Stored
from tnbench.interop.official_position import RoundedLRPE
from tnbench.interop.official_tokenizer import FILE, SentencePiece, load_tokenizer
from tnbench.model import LanguageModel
from tnbench.model.block import build
from tnbench.model.mixers.linear import LinearMixer
from tnbench.model.positions import LRPE
from tnbench.records import write_json

CONTEXT = 2048
"""Tokens in a training window, which a model without learned absolute positions does not depend on."""


def load_official(
    folder: str | Path,
    device: torch.device | str = "cpu",
    faithful: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[LanguageModel, Tokenizer, dict[str, Any]]:
    """A checkpoint's model and tokenizer, and its config.json.

    Args:
        folder: the checkpoint's, or `hf:NAME` for one of the hub.
        device: where the model is put.
        faithful: whether the model repeats the errors of the official code that docs/checkpoints.md names.
        dtype: of the weights; None leaves them as they are stored.

    Raises:
        RequestError: the folder is missing, incomplete or damaged, or its parts do not fit each other or our
            model; sentencepiece is not installed.
    """
    place = files.locate(folder)
    values, config = _config(place)
    tokenizer = load_tokenizer(place, config.vocab_size, config.eos_token_id)
    return _model(place, config, device, faithful, dtype), tokenizer, values


def require(folder: Path) -> None:
    """Raises RequestError, as `load_official` does, unless a checkpoint is whole; values are not compared."""
    values, official = _config(folder)
    context_of(folder, values)
    load_tokenizer(folder, official.vocab_size, official.eos_token_id)
    config = layouts.to_ours(official)
    tensors = files.read_tensors(folder)
    _require_fit(folder, layouts.layout(config, official.vocab_size), tensors, config.tie_embeddings)


def context_of(folder: Path, values: Mapping[str, Any]) -> int:
    """Tokens in a training window: config.json's `model_max_length`, or 2048.

    Raises:
        RequestError: it is no such number.
    """
    context = values.get("model_max_length") or CONTEXT
    if not isinstance(context, int) or not 2 <= context < 1 << 31:
        raise RequestError(f"{folder / files.CONFIG}: model_max_length = {shortened(context)} is no length")
    return context


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    faithful: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The model alone, for folders without a tokenizer; else as `load_official`."""
    place = files.locate(folder)
    return _model(place, _config(place)[1], device, faithful, dtype)


def _config(folder: Path) -> tuple[dict[str, Any], OfficialConfig]:
    path = folder / files.CONFIG
    values = files.read_json(path)
    return values, layouts.read_config(path, values)


def _model(
    folder: Path,
    official: OfficialConfig,
    device: torch.device | str,
    faithful: bool,
    dtype: torch.dtype | None,
) -> LanguageModel:
    config = layouts.to_ours(official)
    if faithful and config.layers == 1:
        raise RequestError(f"{folder}: with one layer the official code divides by zero; leave out faithful")
    layout = layouts.layout(config, official.vocab_size)
    tensors = files.read_tensors(folder)
    _require_fit(folder, layout, tensors, config.tie_embeddings)
    model = _empty(config, official.vocab_size)
    if faithful:
        _round_positions(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for name, stored in layout.items():
        joined = torch.cat([tensors[part.name] for part in stored])  # a copy, out of the mapped files
        weights[name] = joined.reshape(shapes[name]).to(device=device, dtype=dtype)
    model.load_state_dict(weights, assign=True)
    if model.embedding.weight.dtype == torch.float64:
        model.double()  # the decays too, which stay in fp32 beside narrower weights
    return model.to(device).eval()


def _empty(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """A model whose parameters have no memory yet; drawing billions of weights first would take minutes."""
    with torch.device("meta"):
        model = LanguageModel(config, vocab_size, CONTEXT)
    for layer, block in enumerate(model.layers):  # decays are no parameters: they are computed
        assert isinstance(block.token_mixer, LinearMixer)
        block.token_mixer.decay = build("decay", config.decay, config.heads, layer, config.layers)
    return model


def _round_positions(model: LanguageModel) -> None:
    """Give the layers with LRPE the official code's rounding."""
    config = model.config
    for layer, block in enumerate(model.layers):
        mixer = block.token_mixer
        assert isinstance(mixer, LinearMixer)
        if isinstance(mixer.position, LRPE) and mixer.position.active:
            with torch.device("meta"):
                mixer.position = RoundedLRPE(
                    config.head_dim, config.heads, layer, **config.position.parameters
                )


def _require_fit(
    folder: Path, layout: Mapping[str, list[Stored]], tensors: Mapping[str, Tensor], tied: bool
) -> None:
    """Raises RequestError unless the tensors are those of the layout, in one dtype."""
    expected = {part.name: part.shape for stored in layout.values() for part in stored}
    missing, left = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if tied:
        left -= {HEAD}
    if missing or left:
        wrong = [f"missing {files.named(missing)}"] if missing else []
        wrong += [f"left over {files.named(left)}"] if left else []
        raise RequestError(f"{folder}: the weights do not fit {files.CONFIG}: {'; '.join(wrong)}")
    shapes = {name: tuple(tensors[name].shape) for name in expected}
    different = [name for name in expected if shapes[name] != expected[name]]
    if different:
        first = different[0]
        others = f" (and {files.named(different[1:])})" if different[1:] else ""
        raise RequestError(
            f"{folder}: {first} is {shapes[first]}, {files.CONFIG} asks for {expected[first]}{others}"
        )
    dtypes = {name: tensors[name].dtype for name in expected if not name.endswith(".theta")}
    embedding = dtypes[EMBEDDING]
    odd = [name for name, dtype in dtypes.items() if dtype != embedding or not dtype.is_floating_point]
    if odd:
        what = f"{odd[0]} is of {_name(dtypes[odd[0]])}"
        if embedding.is_floating_point:
            what += f", {EMBEDDING} of {_name(embedding)}"
        raise RequestError(f"{folder}: {what}: expected one floating-point type for all matrices")
    if tied and HEAD in tensors and not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        raise RequestError(
            f"{folder}: {HEAD} differs from {EMBEDDING}, but {files.CONFIG} ties them; if the output layer "
            "is its own, say tie_word_embeddings: false there"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_official(model: LanguageModel, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a model as a folder in OpenNLPLab's layout: all of it, or nothing.

    Written are config.json, model.safetensors with the weights in the dtype that they have, and, for a
    SentencePiece tokenizer, tokenizer.model. A tied output layer is written too: the official class under
    transformers 5 would draw it at random otherwise.

    Args:
        model: with its weights.
        folder: is new or empty; folders above it are made.
        tokenizer: the model's; it gives the ids of the special tokens.

    Raises:
        RequestError: the model has parts that the layout does not know, the tokenizer does not fit it, or the
            folder cannot be written.
    """
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise RequestError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, the model's vocabulary has "
            f"{model.vocab_size}"
        )
    config = layouts.from_ours(model.config, model.vocab_size, _special(tokenizer))
    config["torch_dtype"] = _name(model.embedding.weight.dtype)
    with written(folder) as place:
        save_file(dict(_official_tensors(model)), place / files.WEIGHTS[0], {"format": "pt"})
        write_json(place / files.CONFIG, config)
        if isinstance(tokenizer, SentencePiece):
            (place / FILE).write_bytes(tokenizer.content)


def _special(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    if isinstance(tokenizer, SentencePiece):
        return tokenizer.special
    end = None if tokenizer is None else tokenizer.end_of_text
    return {"pad_token_id": None, "bos_token_id": end, "eos_token_id": end}


def _official_tensors(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(model.named_parameters())
    for name, stored in layouts.layout(model.config, model.vocab_size).items():
        flat = parameters[name].detach().cpu().flatten()
        parts = flat.split([torch.Size(part.shape).numel() for part in stored])
        for part, values in zip(stored, parts, strict=True):
            yield part.name, values.reshape(part.shape).clone()
    if model.head is None:
        yield HEAD, model.embedding.weight.detach().cpu().clone()
