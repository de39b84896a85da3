"""Ways in and out: models as other projects' programs read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tnbench.data import Tokenizer
    from tnbench.model import LanguageModel

__all__ = ["export"]


def export(
    model: LanguageModel, tokenizer: Tokenizer, folder: Path, manifest: Mapping[str, Any] | None = None
) -> None:
    """Write a model as a Hugging Face folder: see `tnbench.interop.hugging_face.export`."""
    from tnbench.interop import hugging_face  # torch, which the command line starts without

    hugging_face.export(model, tokenizer, folder, manifest)
