"""Benchmarks from a folder of saved data sets, for tasks whose data the hub cannot give.

    DIR/ai2_arc/ARC-Easy/validation/        data set, configuration, split, as `save_to_disk` writes them

A data set is found by its name or the last part of it; a configuration without a name is the only one there,
or `none`. Of splits that are missing, `test` is the validation split. Where examples are asked for and there
is no training split, they are the last documents of the validation split, which are not asked then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnbench.config import digest
from tnbench.errors import RequestError

MARKS = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` has written: of a data set with splits, of one split."""
EXAMPLES = 64
"""Documents that are kept for examples where there is no training split."""
RENAMED = {"boolq": {"answer": "label"}}
"""Columns that some saved data sets have under another name than lm-eval's tasks."""


def require(folder: Path) -> None:
    """Raises RequestError unless the folder holds saved data sets."""
    if not folder.is_dir():
        raise RequestError(f"--task-data {folder}: there is no such folder")
    if not any(next(folder.rglob(mark), None) for mark in MARKS):
        raise RequestError(
            f"--task-data {folder} holds no saved data set: DATASET/CONFIGURATION/SPLIT, from save_to_disk"
        )


def fingerprint(folder: Path) -> str:
    """12 hex digits that change with the names and sizes of the folder's data."""
    files = sorted(folder.rglob("*.arrow"))
    return digest([[str(path.relative_to(folder)), path.stat().st_size] for path in files])


@contextmanager
def local(folder: Path | None, examples: bool) -> Iterator[None]:
    """Within the block `datasets.load_dataset` takes what the folder holds from there.

    Args:
        folder: of saved data sets; None: nothing changes.
        examples: whether examples will stand before questions.
    """
    import datasets

    plain = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        place = None if folder is None else find(folder, path, name)
        return plain(path, name, **options) if place is None else _loaded(place, path, name, examples)

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
