"""How good a model's samples are, in the eyes of a network: beside real pictures, in its features."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics.pairwise import euclidean_distances

from input_pipeline.batches import Batches, Feature, Slice, Source, Unindexed
from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods
from trainer import durable
from trainer.exits import ConfigError
from trainer.features import FeatureNet, Seen
from trainer.trainer import Trainer

MOST = 10_000
"""Pictures of a kind that are compared, if there are so many and no other number is asked for."""
SEARCHED = 100_000
"""Training pictures among which neighbours are searched."""
NEIGHBOURS = 5
"""By which neighbourhoods are measured, as Naeem et al. (2020) do."""
BATCH = 500
THERE = "there"


class Judge:
    """Compares pictures with those of a data set in the features of a network.

    The yardstick are held-out pictures; where there are none, half of the training pictures. Beside it the floor: what as many
    other training pictures have. All are taken at random, the same ones whatever the experiment's seed, as
    `Experiment.validation_transforms` make them; training pictures that these leave of another size than the model's, as
    `Experiment.transforms` do.

    Args:
      net: gives the features.
      data: the training whose data set and samples are compared.
      count: pictures of each kind; None for as many as there are, up to `MOST`.

    Raises:
      ConfigError: if the model has no pictures or draws none; if the network is not for such pictures; if they are too few to
        have neighbours.
    """

    def __init__(self, net: FeatureNet, data: Trainer, count: int | None = None) -> None:
        if "image" not in data.batches.element_spec or data.objective.sample is None:
            raise ConfigError(
                f"{type(data.objective).__name__} draws no pictures, which --features compares: leave it out"
            )
        self._net = net
        self.name = net.name
        held_out = data.batches.validation
        training = _Pictures(data.batches, data.batches.source)
        wanted = count or MOST
        if held_out is None:
            both = training.take(2 * wanted)
            wanted = min(wanted, len(both) // 2)
            yardstick, floor = both[:wanted], both[wanted : 2 * wanted]
        else:
            yardstick = _Pictures(data.batches, held_out).take(wanted)
            floor = training.take(len(yardstick))
            yardstick = yardstick[: len(floor)]
        self.count = len(floor)
        if self.count <= NEIGHBOURS:
            raise ConfigError(
                f"{self.count} pictures of a kind are too few to compare: take more than {NEIGHBOURS}"
            )
        self._yardstick = self._remembered(yardstick).features
        self.floor = _metrics(self._yardstick, self._remembered(floor))

    def __call__(self, pictures: np.ndarray, classes: int | None = None) -> dict[str, float]:
        """Name -> value, of `count` pictures, uint8 `[count, height, width, channels]`.

        With `classes`, picture i is meant to show class i modulo them, and "recognised" is the share that does; of a network
        that knows as many.
        """
        seen = self._net(pictures)
        found = _metrics(self._yardstick, seen)
        if classes and seen.probabilities is not None and seen.probabilities.shape[1] == classes:
            meant = np.arange(len(pictures)) % classes
            found["recognised"] = float(np.mean(seen.probabilities.argmax(1) == meant))
        return found

    def _remembered(self, pictures: np.ndarray) -> Seen:
        """What the network sees, kept in its folder under a key of the pictures and of its weights."""
        key = hashlib.sha256(self._net.digest)
        key.update(pictures.tobytes())
        path = self._net.folder / "seen" / f"{key.hexdigest()}.npz"
        # What is damaged is seen once more.
        with (
            contextlib.suppress(OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile),
            np.load(path, allow_pickle=False) as kept,
        ):
            return Seen(**kept)
        seen = self._net(pictures)
        with contextlib.suppress(OSError):  # Another's folder may be read-only.
            path.parent.mkdir(exist_ok=True)
            file = io.BytesIO()
            np.savez(file, **{n: array for n, array in vars(seen).items() if array is not None})
            durable.write(path, file.getvalue())
        return seen


class _Pictures:
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


def nearest(data: Trainer, pictures: np.ndarray, neighbours: int = 7) -> np.ndarray:
    """Each picture beside the training pictures nearest to it, pixel by pixel: a model that memorises shows twins.

    Args:
      data: the training whose pictures are searched, the first `SEARCHED` of them in its order.
      pictures: uint8 `[n, height, width, channels]`.
      neighbours: training pictures beside each.

    Returns:
      uint8 `[n, 1 + neighbours, height, width, channels]`.
    """
    known, wanted = _Pictures(data.batches, data.batches.source), _flat(pictures)
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


def _metrics(expected: np.ndarray, seen: Seen) -> dict[str, float]:
    near = neighbourhoods(expected, seen.features, NEIGHBOURS)
    found = {
        "frechet_distance": frechet_distance(expected, seen.features),
        "kernel_distance": kernel_distance(expected, seen.features),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }
    if seen.probabilities is not None:
        count, classes = seen.probabilities.shape
        shares = np.bincount(seen.probabilities.argmax(1), minlength=classes) / count
        found |= {
            "confidence": float(seen.probabilities.max(1).mean()),
            "rarest_class": float(shares.min()),
            "commonest_class": float(shares.max()),
        }
    return found
