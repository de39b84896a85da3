"""Causal language models of other makers, asked by lm-eval's own Hugging Face model: rivals and anchors.

No code of a folder is run: an architecture that transformers itself does not have is refused.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from tnbench.errors import RequestError, first_line
from tnbench.evaluation.task_loading import without_bars

HUB = "hf:"
"""What the name of a model on the Hugging Face hub begins with."""
GGUF, PACKAGE = ".gguf", "gguf"
MAGIC = b"GGUF"
WEIGHTS = ("*.safetensors", "*.bin")
PROBE, CAUSAL = 8, 1e-5
"""Tokens before and after the place at which causality is tried, and how far the logits before it may move,
as a share of the largest."""
BATCH = {"cpu": 4, "cuda": "auto"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""In transformers' words."""


def is_known(kind: str) -> bool:
    """Whether transformers has an architecture of that `model_type` that can be asked for likelihoods."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def of_hub(name: str) -> Path:
    """The folder of `hf:OWNER/NAME`, downloaded or from the local cache.

    Raises:
        RequestError: there is no such model, or no way to it.
    """
    from huggingface_hub import snapshot_download

    repository = name.removeprefix(HUB)
    wanted = ["*.json", "*.model", "*.safetensors", "*.txt"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repository, allow_patterns=["*.bin"])
        return folder
    except Exception as error:
        raise RequestError(
            f"{name} cannot be had from the Hugging Face hub: {first_line(error)}; a local folder in "
            "transformers' layout, or a .gguf file, needs no network"
        ) from error


def require(path: Path) -> None:
    """What can be known of a folder or a .gguf file before it is loaded.

    Raises:
        RequestError: it is no such file, has no weights, or a package is missing that reads it.
    """
    if path.suffix == GGUF:
        if importlib.util.find_spec(PACKAGE) is None:
            raise RequestError(f"{path} needs a package: pip install {PACKAGE}")
        try:
            with open(path, "rb") as file:
                magic = file.read(len(MAGIC))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
        if magic != MAGIC:
            raise RequestError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    elif not any(found for ending in WEIGHTS for found in path.glob(ending)):
        raise RequestError(f"{path} holds no weights: {' or '.join(WEIGHTS)}")


def open_foreign(path: Path, *, device: str, precision: str, max_length: int | None) -> Any:
    """An lm-eval model of a folder in transformers' layout, or of a .gguf file.

    Args:
        path: the folder, or the file.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`.
        max_length: tokens that it is given at a time; None for as many as it says that it takes.

    Raises:
        RequestError: it cannot be loaded, some of its weights are missing, or it reads what comes after a
            token.
    """
    from lm_eval.models import huggingface
    from transformers.utils import logging

    theirs: Any = huggingface.HFLM

    class Foreign(theirs):
        """With what is asked of a `HarnessModel` beside lm-eval's questions."""

        def _create_model(self, *arguments: Any, **options: Any) -> None:
            """Weights that the folder does not have would be random ones, with a warning."""
            super()._create_model(*arguments, output_loading_info=True, **options)
            self._model, said = self._model
            if missing := sorted(said["missing_keys"]):
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise RequestError(f"{path} lacks weights of its model: {', '.join(missing[:3])}{more}")

        def _model_call(self, inps: Any, *others: Any, **named: Any) -> Any:
            rows = _tokens(self.model)
            if int(inps.max()) >= rows:
                raise ValueError(
                    f"its tokenizer gives token {int(inps.max())}, and its embeddings have {rows}: they are "
                    "not of one model"
                )
            try:
                logits = super()._model_call(inps, *others, **named)
            except IndexError as error:
                raise ValueError(
                    f"its positions do not reach {inps.shape[1]} tokens; give a shorter --max-length"
                ) from error
            if bool(logits.isnan().any()):
                raise FloatingPointError("the model's logits are not numbers: its weights are damaged")
            return logits

        def loses(self, context: str, following: str | int) -> bool:
            """As `HarnessModel.loses`."""
            tokens = following if isinstance(following, int) else len(self.tok_encode(following)) - 1
            return len(self.tok_encode(context)) + tokens > self.max_length

    where: dict[str, Any] = {"pretrained": str(path)}
    if path.suffix == GGUF:
        where = {"pretrained": str(path.parent), "gguf_file": path.name}
    bars, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would tell of missing weights in a table
    try:
        with without_bars():
            model = Foreign(
                **where,
                device=device,
                dtype=DTYPES[precision],
                batch_size=BATCH[device],
                max_length=max_length,
                trust_remote_code=False,
            )
            causal = _is_causal(model.model)
    except RequestError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RequestError(
            f"{path} cannot be loaded by transformers: {type(error).__name__}: {reason}"
        ) from error
    finally:
        logging.set_verbosity(told)
        if bars:
            logging.enable_progress_bar()
    if not causal:
        raise RequestError(
            f"{path} reads what comes after a token, as encoders do: the likelihoods that it gives are none"
        )
    return model


def _is_causal(model: Any) -> bool:
    """Whether logits do not change with the tokens that come after."""
    ids = torch.arange(1, 1 + 2 * PROBE, device=model.device) % _tokens(model)
    other = torch.cat([ids[:PROBE], ids[PROBE:].flip(0)])
    with torch.no_grad():
        before, after = (model(row[None]).logits[0, :PROBE].float() for row in (ids, other))
    size = float(before[before.isfinite()].abs().max()) if bool(before.isfinite().any()) else 0.0
    return torch.allclose(before, after, rtol=0, atol=CAUSAL * size, equal_nan=True)


def _tokens(model: Any) -> int:
    """Rows of a model's embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])
