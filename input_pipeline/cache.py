"""Decoded pictures in memory."""

from __future__ import annotations

import numpy as np

CACHE_MIB = 1024
"""Of decoded pictures, if a source is not told another number."""


class Cache:
    """Decoded pictures that are kept in memory: of a training all but the first pass over a set finds them there.

    The system gives memory for what was written, so that it grows with what was read.

    Args:
      count: pictures of the set.
      shape: of each, `(height, width, channels)`.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._pictures = np.empty((count, *shape), np.uint8)
        self._read = np.full(count, -1, np.int64)
        """Ids of what was read for each; -1 of those that are not there."""

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Which pictures are not there, bool `[n]` of int64 `[n]`."""
        return self._read[ids] < 0

    def put(self, ids: np.ndarray, pictures: np.ndarray, read: np.ndarray) -> None:
        """Keeps pictures, uint8 `[n, *shape]`, and the ids, int64 `[n]`, of those that were read for `ids`."""
        self._pictures[ids] = pictures
        # Last, since other threads look at any time.
        self._read[ids] = read

    def take(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What was put for `ids`, all of which must be there."""
        return self._pictures.take(ids, axis=0), self._read[ids]
