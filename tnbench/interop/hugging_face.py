"""A model as a folder that Hugging Face's Auto classes load, without tnbench.

The folder holds the weights under their own names, the tokenizer, a model card, and code in plain torch and
transformers that composes the model from config.json (`hf_template/`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tnbench.config import Component, ModelConfig
from tnbench.data import Tokenizer
from tnbench.data.tokenizers import END_OF_TEXT, Bytes, Subwords
from tnbench.errors import RequestError
from tnbench.interop import card
from tnbench.interop.folders import written
from tnbench.interop.hf_template import components_tnbench as components
from tnbench.interop.hf_template import mixers_tnbench as mixers
from tnbench.model import LanguageModel
from tnbench.records import write_json
from tnbench.training.checkpoint import save_weights

TEMPLATE = Path(components.__file__).parent
MANIFEST = "tnbench_manifest.json"
"""Not manifest.json, which would make the folder seem to be a run's."""

HELD = {
    "mixer": set(mixers.MIXERS),
    "position": {*components.POSITIONS, components.EMBEDDING_POSITION},
    "decay": components.DECAYS,
    "feature_map": set(components.FEATURE_MAPS),
    "token_norm": set(components.NORMS),
    "channel_norm": set(components.NORMS),
    "inner_norm": set(components.NORMS),
    "final_norm": set(components.NORMS),
    "channel": set(components.CHANNELS),
}
"""The components that the template knows, by key of the configuration."""

SHAPES = ("width", "layers", "heads", "channel_width", "gate", "scale_embeddings")


def export(
    model: LanguageModel, tokenizer: Tokenizer, folder: Path, manifest: Mapping[str, Any] | None = None
) -> None:
    """Write a model as a Hugging Face folder: all of it, or nothing.

    Args:
        model: with its weights, which are written in the dtype that they have.
        tokenizer: the one that it was trained with.
        folder: is new or empty; folders above it are made.
        manifest: the run's record, for the model card.

    Raises:
        RequestError: the folder is not empty or cannot be written, the model has a component that is not
            tnbench's own, or the tokenizer does not fit its vocabulary.
    """
    composition = _composition(model.config)
    if tokenizer.vocab_size > model.vocab_size:
        raise RequestError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, the model's vocabulary has "
            f"{model.vocab_size}"
        )
    context = _context(model, manifest)
    with written(folder) as place:
        save_weights(place / "model.safetensors", model, {"run_id": (manifest or {}).get("run_id")})
        write_json(place / "config.json", _config(model, tokenizer, composition, context))
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_of_text)
        write_json(place / "generation_config.json", special)
        write_tokenizer(place, tokenizer, context if model.position.limit else None)
        for source in sorted(TEMPLATE.glob("*.py")):
            shutil.copyfile(source, place / source.name)
        if manifest is not None:
            write_json(place / MANIFEST, card.public(manifest))
        (place / "README.md").write_text(card.text(model, tokenizer, manifest), encoding="utf-8")


def _named(config: ModelConfig) -> Iterator[tuple[str, Component]]:
    """The components of a configuration with their keys."""
    for key in HELD:
        value = getattr(config, key)
        for component in value if isinstance(value, tuple) else (value,):
            yield key, component


def _composition(config: ModelConfig) -> dict[str, Any]:
    """What config.json says about the model's architecture."""
    for key, component in _named(config):
        if component.name not in HELD[key]:
            raise RequestError(
                f"model.{key} = {component.name} is a plug-in's: an exported model is composed of tnbench's "
                f"own components ({', '.join(sorted(HELD[key]))})"
            )
    dump = config.model_dump(mode="json")
    return {key: dump[key] for key in (*SHAPES, *HELD)}


def _context(model: LanguageModel, manifest: Mapping[str, Any] | None) -> int:
    """Tokens in a training window; without a record, what learned positions allow, or 2048."""
    if model.position.limit:
        return model.position.limit
    return manifest["config"]["data"]["context"] if manifest else 2048


def _config(
    model: LanguageModel, tokenizer: Tokenizer, composition: dict[str, Any], context: int
) -> dict[str, Any]:
    end = tokenizer.end_of_text
    return {
        "architectures": ["TnbenchForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_tnbench.TnbenchConfig",
            "AutoModelForCausalLM": "modeling_tnbench.TnbenchForCausalLM",
        },
        "model_type": "tnbench",
        "composition": composition,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": model.config.tie_embeddings,
        "initializer_range": model.config.init_std,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "use_cache": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def write_tokenizer(folder: Path, tokenizer: Tokenizer, limit: int | None) -> None:
    """tokenizer.json and tokenizer_config.json, which give the ids that the model was trained with.

    Text never turns into special tokens, and none is added to it. Padding stands on the left, where
    generation needs it.
    """
    path = folder / "tokenizer.json"
    if isinstance(tokenizer, Bytes):
        backend = _bytes()
    elif isinstance(tokenizer, Subwords):
        tokenizer.save(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        backend = Backend.from_str(json.dumps({**values, "post_processor": None}))
    else:
        raise RequestError(f"tokenizer {tokenizer.name} cannot be written as a tokenizer.json")
    path.write_text(backend.to_str(pretty=True), encoding="utf-8")
    end = backend.id_to_token(tokenizer.end_of_text)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config | ({"model_max_length": limit} if limit else {}))


def _bytes() -> Backend:
    """Bytes as a tokenizer of the `tokenizers` library: byte-level BPE without merges, ids in byte order."""
    letters = _letters()
    backend = Backend(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend


def _letters() -> list[str]:
    """What byte-level tokenizers write for each byte: its own letter if it prints, else one from U+0100."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]
