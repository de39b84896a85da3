"""Causal language models of other makers, asked by lm-eval's own Hugging Face model: rivals and anchors.

No code of a folder is run: an architecture that transformers itself does not have is refused.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError, first_line
from tnbench.evaluation.task_loading import without_bars

HUB = "hf:"
"""What the name of a model on the Hugging Face hub begins with."""
GGUF, PACKAGE = ".gguf", "gguf"
BATCH = {"cpu": 4, "cuda": "auto"}


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


def open_foreign(path: Path, *, device: str, precision: str, max_length: int | None) -> Any:
    """An lm-eval model of a folder in transformers' layout, or of a .gguf file.

    Args:
        path: the folder, or the file.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        max_length: tokens that it is given at a time; None for as many as it says that it takes.

    Raises:
        RequestError: it cannot be loaded.
    """
    from lm_eval.models import huggingface
    from transformers.utils import logging

    theirs: Any = huggingface.HFLM

    class Foreign(theirs):
        """With what is asked of a `HarnessModel` beside lm-eval's questions."""

        def loses(self, context: str, following: str | int) -> bool:
            """As `HarnessModel.loses`."""
            tokens = following if isinstance(following, int) else len(self.tok_encode(following)) - 1
            return len(self.tok_encode(context)) + tokens > self.max_length

    where: dict[str, Any] = {"pretrained": str(path)}
    if path.suffix == GGUF:
        if importlib.util.find_spec(PACKAGE) is None:
            raise RequestError(f"{path} needs a package: pip install {PACKAGE}")
        where = {"pretrained": str(path.parent), "gguf_file": path.name}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with without_bars():
            return Foreign(
                **where,
                device=device,
                dtype={"fp32": "float32", "bf16": "bfloat16"}[precision],
                batch_size=BATCH[device],
                max_length=max_length,
                trust_remote_code=False,
            )
    except Exception as error:
        raise RequestError(f"{path} cannot be loaded by transformers: {first_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
