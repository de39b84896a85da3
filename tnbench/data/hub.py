"""The Hugging Face hub: data sets and tokenizers by name, and a quick, clear answer where it is out of reach.

The hub's libraries retry for up to a minute when there is no network. So one short request comes first; if it
fails, the libraries are told to work offline, which leaves what their local cache holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tnbench.errors import RequestError

TIMEOUT = 5.0  # seconds
HEADING = re.compile(r" = [^=]+ = ")


@contextmanager
def reach(repository: str, kind: str) -> Iterator[bool]:
    """Within the block the hub's libraries are offline if the hub does not answer; yields whether it does.

    `kind` is `dataset` or `model`. A folder of that name counts as reached.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    reached = True
    if not Path(repository).is_dir():
        try:
            huggingface_hub.HfApi().repo_info(repository, repo_type=kind, timeout=TIMEOUT)
        except (errors.HfHubHTTPError, errors.HFValidationError):
            pass  # the hub answered, or the name is no name: what loads it next says what is wrong
        except Exception:  # the transport's own errors: the library has changed it, and with it their types
            reached = False
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reached
    try:
        yield reached
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def datasets_offline(offline: bool) -> Iterator[None]:
    """Within the block `datasets` asks nobody, if `offline`."""
    from datasets import config as settings

    before = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before


def failure(name: str, reached: bool, error: Exception) -> RequestError:
    """One line about something of the hub that could not be loaded."""
    if reached:
        text = " ".join((str(error) or type(error).__name__).split())
        return RequestError(f"{name}: {text if len(text) <= 200 else text[:197] + '...'}")
    return RequestError(
        f"{name}: the Hugging Face hub cannot be reached, and the local cache does not hold it"
    )


@dataclass(frozen=True)
class DataSet:
    """The training split of a data set (its own other splits are left alone), one text a row."""

    name: str
    repository: str
    configuration: str | None
    text_field: str

    @cached_property
    def _rows(self) -> Any:
        import datasets

        bars = datasets.are_progress_bars_disabled()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        with reach(self.repository, "dataset") as reached, datasets_offline(not reached):
            try:
                rows = datasets.load_dataset(self.repository, self.configuration, split="train")
            except Exception as error:
                raise failure(f"corpus {self.name}", reached, error) from error
            finally:
                if not bars:
                    datasets.enable_progress_bars()
        if self.text_field not in rows.features:
            raise RequestError(
                f"corpus {self.name}: no field {self.text_field!r} (fields: {', '.join(rows.features)}); "
                "name another with data.text_field"
            )
        return rows

    def fingerprint(self) -> str:
        """The library's own: repository, configuration, split and the hash of the loaded revision's files."""
        return str(self._rows._fingerprint)

    def read(self) -> Iterator[bytes]:
        """The documents in UTF-8."""
        batches = self._rows.select_columns([self.text_field]).iter(batch_size=1000)
        texts = (text for batch in batches for text in batch[self.text_field] if isinstance(text, str))
        for document in join_lines(texts):
            yield document.encode()


def join_lines(rows: Iterable[str]) -> Iterator[str]:
    """Rows as documents. Where many rows are blank they are the lines of one text, as in WikiText.

    Such a text is cut at its top-level headings (` = Title = `).

    >>> list(join_lines(["a", "b"]))
    ['a', 'b']
    >>> list(join_lines(["", " = A = \\n", "", " x \\n", " = B = \\n", "", " y \\n"]))
    ['\\n = A = \\n\\n x \\n', ' = B = \\n\\n y \\n']
    """
    rows = iter(rows)
    first = list(islice(rows, 1000))
    if sum(not row.strip() for row in first) * 10 < max(len(first), 1):
        yield from (row for row in chain(first, rows) if row.strip())
        return
    document: list[str] = []
    for row in chain(first, rows):
        line = row if row.endswith("\n") else row + "\n"
        if HEADING.fullmatch(line.rstrip("\n")) and any(part.strip() for part in document):
            yield "".join(document)
            document = []
        document.append(line)
    if any(part.strip() for part in document):
        yield "".join(document)
