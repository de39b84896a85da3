"""Folders of the cache: each written under another name, and renamed when it is complete.

A folder's name is its data's hash, and `meta.json` in it names its files with their sizes. A folder of that
name is a whole one, whoever else builds it at the same time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tnbench.errors import RequestError
from tnbench.records import sync

ABANDONED = 24 * 3600  # seconds after which an unfinished folder is taken for a dead process's

Opened = TypeVar("Opened")


def cache_folder() -> Path:
    """`$TNBENCH_CACHE`, else `$XDG_CACHE_HOME/tnbench`, else `~/.cache/tnbench`."""
    if own := os.environ.get("TNBENCH_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "tnbench"


def opened(
    folder: Path, load: Callable[[], Opened], build: Callable[[], None], what: str, quiet: bool
) -> Opened:
    """What a folder of the cache holds, built first if need be.

    Args:
        folder: where it lies.
        load: reads it; FileNotFoundError where another process takes it away meanwhile.
        build: writes it, with `write`.
        what: the folder in words, for a message about a damaged one.
        quiet: no such message.

    Raises:
        RequestError: the folder changes again and again, or as `build`.
    """
    for _ in range(3):  # more than once only where other processes rebuild the same damaged folder
        wrong = problem(folder)
        if wrong is None:
            try:
                return load()
            except FileNotFoundError:
                continue
        if folder.exists() and not quiet:
            print(f"tnbench: {what} {folder} is damaged ({wrong}): building it again", file=sys.stderr)
        build()
    raise RequestError(f"{what} {folder} changes while it is used: remove it, or set TNBENCH_CACHE")


def write(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Build a folder in full and move it to its place.

    Args:
        folder: its place.
        fill: writes the files into the folder that it is given, and returns what `meta.json` says of them
            beside their sizes.

    Raises:
        RequestError: the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = _fresh(folder)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        meta = fill(temporary)
        meta["files"] = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        _install(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def problem(folder: Path) -> str | None:
    """What is wrong with a cached folder, judged by the files' sizes alone; None if nothing is."""
    try:
        sizes = json.loads((folder / "meta.json").read_bytes())["files"]
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {(error.strerror or str(error)).lower()}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "meta.json cannot be read"
    return None


def _install(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to its place, unless another process has put a good one there."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
        if problem(folder) is None:
            return
        aside = _fresh(folder)
        try:
            os.rename(folder, aside / "damaged")
            os.rename(temporary, folder)
        except OSError:
            if problem(folder) is not None:  # nobody else has put a good one there either
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _fresh(folder: Path) -> Path:
    """A new hidden folder beside a folder; unlike tempfile's, readable by whoever shares the cache."""
    path = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    path.mkdir()
    return path


def _sweep(root: Path) -> None:
    """Remove what processes that died left behind long ago."""
    for path in root.glob(".*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _unwritable(error: OSError) -> RequestError:
    reason = (error.strerror or str(error)).lower()
    return RequestError(
        f"cannot write the token cache {cache_folder()}: {reason}; name another folder with TNBENCH_CACHE"
    )
