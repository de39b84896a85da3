"""RULER's tasks (arXiv 2404.06654) in lm-eval: texts made on the spot, as long as a tokenizer counts.

Here it counts bytes, so that every model gets the same texts and items can be paired: the metric "4096" is
that of texts of 4,096 bytes, about 1,000 tokens of a model of subwords.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tnbench.data import cache_folder
from tnbench.data.tokenizers import Bytes
from tnbench.errors import RequestError
from tnbench.interop.folders import written
from tnbench.interop.hugging_face import write_tokenizer

BYTES = 4096
"""The shortest of RULER's lengths."""
NEEDED = ("wonderwords", "nltk")


def is_ruler(task: str) -> bool:
    """Whether a task, or the group, is RULER's."""
    return task.startswith(("niah_", "ruler"))


def content() -> str:
    """What a record of such a task follows from, beside lm-eval."""
    return f"{BYTES} bytes, {Bytes().hash}"


def metadata() -> dict[str, Any]:
    """For lm-eval's index: the lengths, and a folder with the tokenizer.

    Raises:
        RequestError: a package that the tasks need is missing, or the folder cannot be written.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"RULER's tasks need {' and '.join(missing)}: pip install -e '.[eval]'")
    return {"tokenizer": str(_tokenizer()), "max_seq_lengths": [BYTES]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block nothing is printed: the tasks tell of a download that they do without."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _tokenizer() -> Path:
    folder = cache_folder() / "tokenizers" / f"bytes-{Bytes().hash}"
    if not (folder / "tokenizer_config.json").is_file():
        with written(folder) as place:
            write_tokenizer(place, Bytes(), None)
    return folder
