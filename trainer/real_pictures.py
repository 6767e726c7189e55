"""The pictures of a data set as people see them, and those among them that are nearest to samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics.pairwise import euclidean_distances

from input_pipeline.batches import Batches, Feature, Slice, Source, Unindexed

SEARCHED = 100_000
"""Training pictures among which neighbours are searched."""
BATCH = 500
THERE = "there"


class RealPictures:
    """The pictures of a data set in random order, each once, as people see them: those of training, or of another source."""

    def __init__(self, batches: Batches, source: Source | Unindexed) -> None:
        self._decode = batches.source.decode
        self._more = None if isinstance(source, Unindexed) else len(source)
        shown = dataclasses.replace(
            batches,
            source=_OnePass(source) if isinstance(source, Unindexed) else source,
            transforms=batches.validation_transforms,
            validation=None,
            global_batch=BATCH,
            seed=0,
        )
        if shown.element_spec["image"].shape != batches.element_spec["image"].shape:
            shown = dataclasses.replace(shown, transforms=batches.transforms)
        self._data = iter(shown.training(Slice()))
        self._left = np.empty([0])

    def take(self, count: int) -> np.ndarray:
        """The next ones, uint8 `[count, height, width, channels]`, fewer if there are no more."""
        parts = [self._left] if len(self._left) else []
        while sum(map(len, parts)) < count and (batch := self._next()) is not None:
            parts.append(batch)
        pictures = np.concatenate(parts) if parts else self._left
        self._left = pictures[count:]
        return pictures[:count]

    def _next(self) -> np.ndarray | None:
        """The next `BATCH`, fewer at the end, None behind it."""
        batch = None if self._more == 0 else next(self._data, None)
        if batch is None:
            return None
        pictures = self._decode(batch["image"][0])
        if self._more is None:
            return pictures[batch[THERE][0].numpy()]
        pictures = pictures[: self._more]
        self._more -= len(pictures)
        return pictures


class _OnePass:
    """An unindexed source once, with a feature `THERE`, which is False of what fills up the last batch."""

    def __init__(self, source: Unindexed) -> None:
        self._source = source
        self.element_spec = {**source.element_spec, THERE: Feature((), "bool")}
        self.inexact, self.decode = source.inexact, source.decode

    def records(self, worker: int, workers: int, seed: int, step: int) -> tf.data.Dataset:
        data = self._source.once(seed)
        filling = data.repeat().take(BATCH - 1)
        return data.map(_marked(True)).concatenate(filling.map(_marked(False)))

    def once(self, seed: int) -> tf.data.Dataset:
        return self._source.once(seed).map(_marked(True))

    def read(self, records: Any) -> dict[str, tf.Tensor]:
        record, there = records
        return {**self._source.read(record), THERE: there}


def _marked(there: bool) -> Callable[..., Any]:
    return lambda *record: (record, there)


def nearest(batches: Batches, pictures: np.ndarray, neighbours: int = 7) -> np.ndarray:
    """Each picture beside the training pictures nearest to it, pixel by pixel: a model that memorises shows twins.

    Args:
      batches: the data whose training pictures are searched, `SEARCHED` of them at random if there are more.
      pictures: uint8 `[n, height, width, channels]`.
      neighbours: training pictures beside each.

    Returns:
      uint8 `[n, 1 + neighbours, height, width, channels]`.
    """
    known, wanted = RealPictures(batches, batches.source), _flat(pictures)
    found = np.empty([len(pictures), 0, *pictures.shape[1:]], np.uint8)
    distances = np.empty([len(pictures), 0])
    for first in range(0, SEARCHED, BATCH):
        block = known.take(min(BATCH, SEARCHED - first))
        if not len(block):
            break
        further = euclidean_distances(wanted, _flat(block))
        near = np.argsort(further, 1, kind="stable")[:, :neighbours]
        # Of the best so far and the best of the block, the best.
        distances = np.concatenate([distances, np.take_along_axis(further, near, 1)], 1)
        found = np.concatenate([found, block[near]], 1)
        best = np.argsort(distances, 1, kind="stable")[:, :neighbours]
        distances = np.take_along_axis(distances, best, 1)
        found = found[np.arange(len(found))[:, np.newaxis], best]
    return np.concatenate([pictures[:, np.newaxis], found], 1)


def _flat(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(len(pictures), -1).astype(np.float32)
