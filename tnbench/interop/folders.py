"""Folders that are written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tnbench.errors import RequestError, first_line
from tnbench.records import sync, unfinished


def require_free(folder: Path) -> None:
    """A folder that is new or empty, and not the current one.

    Raises:
        RequestError: it is something else.
    """
    place = folder.expanduser()
    try:
        if place.is_dir():
            if next(place.iterdir(), None) is not None:
                raise RequestError(f"{folder} is not empty: name a new folder, or remove it first")
            if place.resolve() == Path.cwd():
                raise RequestError(f"{folder} is the current folder, which is to be replaced: name a new one")
        elif os.path.lexists(place):
            raise RequestError(f"{folder} is no folder: name a new one")
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {_reason(error)}") from error


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside its place, which it takes when the block has ended without an error.

    Args:
        folder: as `require_free` wants it; folders above it are made.

    Raises:
        RequestError: it cannot be written.
    """
    require_free(folder)
    place = folder.expanduser().resolve()
    temporary = unfinished(place)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        readable = temporary.stat().st_mode & 0o666
        for path in temporary.iterdir():
            path.chmod(readable)  # safetensors lets nobody else read its files
            sync(path)
        os.replace(temporary, place)  # an empty folder at `place` is replaced, any other is an error
        sync(place.parent)
    except OSError as error:
        raise RequestError(f"{folder} cannot be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: OSError) -> str:
    return error.strerror.lower() if error.strerror else first_line(error)
