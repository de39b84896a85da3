"""Baichuan's tokenizer, that of the official checkpoints: a SentencePiece model, read by `sentencepiece`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tnbench.errors import RequestError
from tnbench.interop.official_files import require_content

FILE = "tokenizer.model"
PADDING = 128
"""Vocabularies are padded to a multiple of this at most."""


class SentencePiece:
    """A SentencePiece model behind the interface of `tnbench.data.Tokenizer`.

    Text never turns into control symbols, even where it spells them, and none is added to it.

    Args:
        name: as it was asked for.
        content: the bytes of the tokenizer.model.
        end_of_text: the id between documents; None for the model's own.

    Raises:
        RequestError: sentencepiece is not installed, the content is no such model, or it lacks the id.
    """

    def __init__(self, name: str, content: bytes, end_of_text: int | None = None) -> None:
        try:
            import sentencepiece  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RequestError(
                f"{name}: reading a tokenizer.model needs sentencepiece; pip install sentencepiece"
            ) from error
        self._backend = sentencepiece.SentencePieceProcessor()
        try:
            self._backend.LoadFromSerializedProto(content)
            self.vocab_size = int(self._backend.get_piece_size())
        except Exception as error:  # the binding raises RuntimeError for some damage, others for other
            raise RequestError(f"{name} is no SentencePiece model, or is damaged; copy it again") from error
        self.name, self.content = name, content
        self.end_of_text = int(self._backend.eos_id()) if end_of_text is None else end_of_text
        if not 0 <= self.end_of_text < self.vocab_size:
            raise RequestError(
                f"{name} has {self.vocab_size} ids: {self.end_of_text}, the end of text, is none of them"
            )
        self.hash = hashlib.sha256(content + f"\0{self.end_of_text}".encode()).hexdigest()[:12]

    @property
    def special(self) -> dict[str, int | None]:
        """`pad_token_id`, `bos_token_id` and `eos_token_id`; None for what the model does not have."""
        found = {"pad_token_id": self._backend.pad_id(), "bos_token_id": self._backend.bos_id()}
        return {name: i if i >= 0 else None for name, i in found.items()} | {"eos_token_id": self.end_of_text}

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (tokens,), uint32."""
        return np.array(self._backend.encode(text), dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts, on all cores."""
        return [np.array(ids, dtype=np.uint32) for ids in self._backend.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control symbols, and ids that only pad the vocabulary, are left out."""
        spoken = [i for i in map(int, ids) if i != self.end_of_text and i < self.vocab_size]
        return self._backend.decode([i for i in spoken if not self._backend.is_control(i)])


def load_tokenizer(folder: Path, vocab_size: int, end_of_text: int | None) -> SentencePiece:
    """The tokenizer of a checkpoint's folder.

    Args:
        folder: holds the tokenizer.model.
        vocab_size: the model's.
        end_of_text: as in `SentencePiece`.

    Raises:
        RequestError: there is none, it cannot be read, or it does not fit the model's vocabulary.
    """
    path = folder / FILE
    if not path.is_file():
        raise RequestError(f"{folder} holds no {FILE}: copy the checkpoint's own into it")
    tokenizer = SentencePiece(str(path), require_content(path), end_of_text)
    if not 0 <= vocab_size - tokenizer.vocab_size < PADDING:
        raise RequestError(
            f"{path} does not fit the model: it has {tokenizer.vocab_size} ids, the vocabulary of "
            f"config.json has {vocab_size}"
        )
    return tokenizer
