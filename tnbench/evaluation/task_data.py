"""Benchmarks from a folder of saved data sets, for tasks whose data the hub cannot give.

    DIR/ai2_arc/ARC-Easy/validation/        data set, configuration, split, as `save_to_disk` writes them

A data set is found by its name or the last part of it; a configuration without a name is the only one there,
or `none`. Of splits that are missing, `test` is the validation split. Where examples are asked for and there
is no training split, they are the last documents of the validation split, which are not asked then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnbench.config import digest
from tnbench.errors import RequestError, first_line

MARKS = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` has written: of a data set with splits, of one split."""
EXAMPLES = 64
"""Documents that are kept for examples where there is no training split."""
RENAMED = {"boolq": {"answer": "label"}}
"""Columns that some saved data sets have under another name than lm-eval's tasks."""
BUILDERS = ("json", "csv", "text", "parquet", "arrow", "xml", "pandas", "imagefolder", "audiofolder")
"""Data sets of this name are local files."""


class OutOfReach(Exception):
    """A data set cannot be loaded."""

    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(first_line(error))
        self.hub = path not in BUILDERS and not Path(path).exists()
        """Whether it would come from the hub."""


def require(folder: Path) -> None:
    """Raises RequestError unless the folder holds saved data sets."""
    if not folder.is_dir():
        what = "that is a file" if folder.exists() else "there is no such folder"
        raise RequestError(f"--task-data {folder}: {what}; give a folder of saved data sets")
    if not any(next(folder.rglob(mark), None) for mark in MARKS):
        raise RequestError(
            f"--task-data {folder} holds no saved data set: DATASET/CONFIGURATION/SPLIT, from save_to_disk"
        )


def fingerprint(folder: Path) -> str:
    """12 hex digits that change with the data: names and sizes of their files, and what `save_to_disk` has
    written about their content."""
    files = sorted(path for kind in ("*.arrow", "*.json") for path in folder.rglob(kind))
    sizes = [[str(path.relative_to(folder)), path.stat().st_size] for path in files]
    states = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name == "state.json"]
    return digest([sizes, states])


@contextmanager
def local(folder: Path | None, examples: bool) -> Iterator[None]:
    """Within the block `datasets.load_dataset` takes what the folder holds from there, and raises OutOfReach
    where it cannot load something.

    Args:
        folder: of saved data sets, or None.
        examples: whether examples will stand before questions.
    """
    import datasets

    plain = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        if not path:
            raise ValueError("its file names no data (dataset_path)")
        place = None if folder is None else find(folder, path, name)
        try:
            return plain(path, name, **options) if place is None else _loaded(place, path, name, examples)
        except Exception as error:
            raise OutOfReach(str(place or path), error) from error

    datasets.load_dataset = load  # lm-eval calls it by this name
    try:
        yield
    finally:
        datasets.load_dataset = plain


def find(folder: Path, path: str, name: str | None) -> Path | None:
    """Where a data set and configuration lie, or None."""
    for base in (path, path.rpartition("/")[2], name or path):
        for place in (folder / base / name if name else folder / base, folder / base / "none", folder / base):
            if _is_saved(place):
                return place
        inner = [one for one in sorted((folder / base).glob("*")) if _is_saved(one)]
        if len(inner) == 1 and name is None:
            return inner[0]
    return None


def _is_saved(place: Path) -> bool:
    return any((place / mark).is_file() for mark in MARKS) or bool(_splits(place))


def _splits(place: Path) -> list[Path]:
    return [one.parent for one in sorted(place.glob("*/state.json"))]


def _loaded(place: Path, path: str, name: str | None, examples: bool) -> Any:
    import datasets

    splits: dict[str, Any]
    if (place / "dataset_dict.json").is_file():
        splits = dict(datasets.load_from_disk(str(place)))  # type: ignore[arg-type]
    elif (place / "state.json").is_file():
        splits = {"validation": datasets.load_from_disk(str(place))}
    else:
        splits = {one.name: datasets.load_from_disk(str(one)) for one in _splits(place)}
    for old, new in RENAMED.get(name or path, {}).items():
        splits = {
            key: one.map(lambda row, old=old, new=new: {new: int(row[old])})
            if old in one.column_names and new not in one.column_names
            else one
            for key, one in splits.items()
        }
    asked = splits.get("validation", next(iter(splits.values())))
    if "train" not in splits:
        held = asked
        if examples:
            count = max(1, min(EXAMPLES, len(asked) // 2))
            held, asked = (
                asked.select(range(len(asked) - count, len(asked))),
                asked.select(range(len(asked) - count)),
            )
        splits = {**splits, "train": held, "validation": asked}
    return datasets.DatasetDict({"validation": asked, "test": asked, **splits})
