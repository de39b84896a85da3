"""Random numbers that do not change with releases of numpy: made of raw Philox output alone."""

from __future__ import annotations

import hashlib
import math

import numpy as np


class Draws:
    """A stream of random numbers, named by a text."""

    def __init__(self, name: str) -> None:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
        self._stream = np.random.Philox(np.random.SeedSequence(seed))

    def below(self, bound: int, shape: tuple[int, ...]) -> np.ndarray:
        """Integers from 0 to bound − 1, int64, uniform to one part in 2³² / bound."""
        assert 0 < bound < 1 << 31, bound
        return ((self._raw(shape) >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)

    def unit(self, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers in (0, 1], float64."""
        return ((self._raw(shape) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53

    def distinct(self, bound: int, count: int, rows: int) -> np.ndarray:
        """Per row, `count` different integers below `bound` in random order, (rows, count), int64."""
        assert 0 < count <= bound, (count, bound)
        if count * count > 2 * bound:
            return _smallest(self._raw((rows, bound)), count)
        found = self.below(bound, (rows, count))
        while True:  # rows in which one came twice are drawn again as a whole: more than a third are kept
            ordered = np.sort(found, axis=1)
            again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
            if not len(again):
                return found
            found[again] = self.below(bound, (len(again), count))

    def weighted(self, weights: np.ndarray, count: int, rows: int) -> np.ndarray:
        """Per row, `count` different indices, drawn one after another in proportion to `weights`.

        Of independent exponential waiting times with these rates, the first `count` in their order have this
        distribution (Efraimidis and Spirakis, 2006).

        Args:
            weights: (n,), positive.
            count: at most n.
            rows: number of rows.

        Returns:
            (rows, count), int64.
        """
        assert 0 < count <= len(weights), (count, len(weights))
        return _smallest(-np.log(self.unit((rows, len(weights)))) / weights, count)

    def _raw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._stream.random_raw(math.prod(shape)).reshape(shape)


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Per row, the indices of the `count` smallest values, in their order."""
    found = np.argpartition(values, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
