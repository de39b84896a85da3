"""Tokenizers: text to token ids and back, all behind one small interface.

| `data.tokenizer` | is |
|---|---|
| `bytes` | the 256 byte values and an end-of-text id: 257 ids, nothing to train, nothing unknown |
| `bpe-N` | byte-level BPE with N ids, trained on the training split, the last id being end of text |
| a folder, `hf:NAME` | a Hugging Face tokenizer, as it is |

Text never turns into the end-of-text id, even where it spells the token's name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tnbench.config import NO_TOKENIZER
from tnbench.data import hub
from tnbench.errors import RequestError, nearest

END_OF_TEXT = "<|endoftext|>"
SMALLEST, LARGEST = (
    258,
    1 << 18,
)  # of bpe-N: bytes, end of text and one merge; and what no small model can use


class Tokenizer(Protocol):
    """What tnbench asks of a tokenizer."""

    @property
    def name(self) -> str:
        """As it was asked for."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are below it."""
        ...

    @property
    def end_of_text(self) -> int:
        """The id that stands before, between and behind documents."""
        ...

    @property
    def hash(self) -> str:
        """Hash of its content: equal hashes give equal ids."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (tokens,), without end of text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts, faster."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; end of text is left out."""
        ...


class Bytes:
    """UTF-8 bytes as ids, and 256 for end of text.

    >>> Bytes().encode("é").tolist()
    [195, 169]
    """

    name = "bytes"
    vocab_size = 257
    end_of_text = 256
    hash = hashlib.sha256(b"bytes").hexdigest()[:12]

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (bytes,), uint8."""
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; broken UTF-8, as a model may write it, becomes U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class Subwords:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, name: str, backend: Backend, end_of_text: int) -> None:
        self.name = name
        self.end_of_text = end_of_text
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        backend.no_truncation()
        backend.no_padding()
        # Without this, a document that mentions "<|endoftext|>" would seem to end there.
        backend.encode_special_tokens = True
        content = f"{backend.to_str()}\0{end_of_text}"
        self.hash = hashlib.sha256(content.encode()).hexdigest()[:12]
        self._backend = backend

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (tokens,), uint32."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for many texts, on all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; end of text and other special tokens are left out."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True)

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json`."""
        path.write_text(self._backend.to_str(), encoding="utf-8")


def bpe_size(name: str) -> int | None:
    """N of `bpe-N`, None for other names.

    Raises:
        RequestError: N is out of range.
    """
    match = re.fullmatch(r"bpe-([1-9]\d{0,8})", name)
    if not match:
        return None
    size = int(match[1])
    if not SMALLEST <= size <= LARGEST:
        raise RequestError(f"data.tokenizer = {name!r}: N of bpe-N must be from {SMALLEST} to {LARGEST}")
    return size


def train_bpe(name: str, size: int, texts: Iterable[str], corpus: str) -> Subwords:
    """Byte-level BPE with GPT-2's word pattern (Radford et al., 2019); equal texts give equal tokenizers.

    Raises:
        RequestError: the texts do not have enough pairs for so many ids.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([END_OF_TEXT])
    found = backend.get_vocab_size()
    if found != size:
        raise RequestError(
            f"data.tokenizer = {name!r}: the training split of {corpus} yields only {found} ids; "
            f"use bpe-{found} or less, or a longer corpus"
        )
    return Subwords(name, backend, size - 1)


def load_bpe(name: str, path: Path) -> Subwords:
    """A trained `bpe-N` from its `tokenizer.json`."""
    backend = Backend.from_file(str(path))
    return Subwords(name, backend, backend.get_vocab_size() - 1)


def find_tokenizer(name: str) -> Callable[[], Tokenizer] | None:
    """How to load a tokenizer that exists without data; None for a valid `bpe-N`, which has to be trained.

    Raises:
        RequestError: there is none of that name. The returned function raises it when loading fails.
    """
    if name == "bytes":
        return Bytes
    if name == NO_TOKENIZER:
        raise RequestError(
            "data.tokenizer = 'none': the tokens of examples are no text, and have no tokenizer"
        )
    if bpe_size(name):
        return None
    if name.startswith("hf:") and len(name) > 3:
        return lambda: _load_hub(name, name.removeprefix("hf:"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return lambda: _load_hub(name, str(folder))
    raise RequestError(f"data.tokenizer = {name!r}: {_unknown(name, folder)}")


def _unknown(name: str, path: Path) -> str:
    almost = re.fullmatch(r"\W*bpe\D*(\d{1,6})(k?)\D*", name.lower())
    if almost:
        return f"did you mean bpe-{int(almost[1]) * (1024 if almost[2] else 1)}?"
    if path.exists():
        return "name the folder that holds the tokenizer, not a file"
    if "/" in name or name.startswith(("~", ".")):
        return "no such folder"
    near = nearest(name, ["bytes", "bpe-8192"])
    return near if near.startswith("did") else "known: bytes, bpe-N, a Hugging Face tokenizer folder, hf:NAME"


def _load_hub(name: str, source: str) -> Subwords:
    with hub.reach(source, "model") as reached:
        import transformers

        try:
            loaded = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:
            raise hub.failure(f"tokenizer {name}", reached, error) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise RequestError(f"tokenizer {name} has no tokenizer.json; convert it to that format first")
    if not isinstance(loaded.eos_token_id, int):
        raise RequestError(
            f"tokenizer {name} names no end-of-text token (eos_token in tokenizer_config.json)"
        )
    return Subwords(name, backend, loaded.eos_token_id)
