"""How good a model's samples are, in the eyes of a classifier that was trained by this project on the same data."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from sklearn.neighbors import NearestNeighbors

from input_pipeline.batches import Source
from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods
from trainer import durable
from trainer.exits import ConfigError
from trainer.trainer import Trainer

MOST = 10_000
"""Pictures of a kind that are compared, if there are so many and no other number is asked for."""
SEARCHED = 100_000
"""Training pictures among which neighbours are searched."""
BATCH = 500


class Judge:
    """Compares pictures with those of a data set in the features of a trained classifier.

    The yardstick are held-out pictures; where there are none, half of the training pictures. Beside it the floor: what as many
    other training pictures have.

    Args:
      classifier: a restored training of `models.classifier.Classifier`.
      data: the training whose data set it is.
      count: pictures of each kind; None for as many as there are, up to `MOST`.

    Raises:
      ConfigError: if the classifier is the training of something else, or of pictures of another size.
    """

    def __init__(self, classifier: Trainer, data: Trainer, count: int | None = None) -> None:
        recognise = getattr(classifier.objective, "recognise", None)
        if recognise is None:
            raise ConfigError(
                f"--features={classifier.workdir} is a run of {type(classifier.objective).__name__}: name one of a Classifier"
            )
        self._classifier, self._see = classifier, recognise
        source, held_out = data.experiment.source, data.experiment.validation
        ids = np.asarray(data.batches.ids(tf.range(len(source), dtype=tf.int64)))
        if held_out is None:
            yardstick, floor = (source, ids[::2]), (source, ids[1::2])
        else:
            yardstick, floor = (held_out, np.arange(len(held_out))), (source, ids)
        self.count = min(len(yardstick[1]), len(floor[1]), count or MOST)
        self._yardstick, _ = self._remembered(_read(*yardstick, self.count))
        self.floor = _metrics(self._yardstick, *self._remembered(_read(*floor, self.count)))

    def __call__(self, pictures: np.ndarray, classes: int | None = None) -> dict[str, float]:
        """Name -> value, of `count` pictures, uint8 `[count, height, width, channels]`.

        With `classes`, picture i is meant to show class i modulo them, and "recognised" is the share that does.
        """
        features, probabilities = self._recognise(pictures)
        found = _metrics(self._yardstick, features, probabilities)
        if classes:
            meant = np.arange(len(pictures)) % classes
            found["recognised"] = float(np.mean(probabilities.argmax(1) == meant))
        return found

    def _remembered(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `_recognise`, kept in the classifier's folder under a key of the pictures and of its weights."""
        digest = hashlib.sha256(pictures.tobytes())
        for name, network in sorted(self._classifier.objective.networks.items()):
            for weight in network.weights:
                digest.update(f"{name} {weight.path}".encode())
                digest.update(weight.numpy().tobytes())
        path = pathlib.Path(self._classifier.workdir or "") / "seen" / f"{digest.hexdigest()}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                return kept["features"], kept["probabilities"]
        features, probabilities = self._recognise(pictures)
        with contextlib.suppress(OSError):  # Another's folder may be read-only.
            path.parent.mkdir(exist_ok=True)
            file = io.BytesIO()
            np.savez(file, features=features, probabilities=probabilities)
            durable.write(path, file.getvalue())
        return features, probabilities

    def _recognise(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and probabilities of uint8 pictures `[n, height, width, channels]`."""
        shape = self._classifier.batches.element_spec["image"].shape
        if pictures.shape[1:] != shape:
            raise ConfigError(
                f"the pictures are {list(pictures.shape[1:])}, and the classifier of {self._classifier.workdir} is for "
                f"{list(shape)}: train one on the same data"
            )
        parts = [
            self._run(tf.constant(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)
        ]
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities

    @functools.cached_property
    def _run(self) -> Callable:
        def run(pictures: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self._see(tf.cast(pictures, tf.float32) / 255)

        return tf.function(run, autograph=False, reduce_retracing=True)


def nearest(data: Trainer, pictures: np.ndarray, neighbours: int = 7) -> np.ndarray:
    """Each picture beside the training pictures nearest to it, pixel by pixel: a model that memorises shows twins.

    Args:
      data: the training whose pictures are searched, the first `SEARCHED` of them in its order.
      pictures: uint8 `[n, height, width, channels]`.
      neighbours: training pictures beside each.

    Returns:
      uint8 `[n, 1 + neighbours, height, width, channels]`.
    """
    source = data.experiment.source
    count = min(len(source), SEARCHED)
    ids = np.asarray(data.batches.ids(tf.range(count, dtype=tf.int64)))
    known = _read(source, ids, count)
    search = NearestNeighbors(n_neighbors=min(neighbours, count), algorithm="brute")
    search.fit(known.reshape(count, -1).astype(np.float32))
    found = search.kneighbors(pictures.reshape(len(pictures), -1), return_distance=False)
    return np.concatenate([pictures[:, np.newaxis], known[found]], 1)


def _read(source: Source, ids: np.ndarray, count: int) -> np.ndarray:
    """The first `count` pictures of these ids, as people see them."""
    chosen = ids[:count]
    parts = [
        source.decode(source.read(tf.constant(chosen[i : i + BATCH], tf.int64))["image"])
        for i in range(0, count, BATCH)
    ]
    return np.concatenate(parts)


def _metrics(
    expected: np.ndarray, features: np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    near = neighbourhoods(expected, features)
    shares = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(features)
    return {
        "frechet_distance": frechet_distance(expected, features),
        "kernel_distance": kernel_distance(expected, features),
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
        "confidence": float(probabilities.max(1).mean()),
        "rarest_class": float(shares.min()),
        "commonest_class": float(shares.max()),
    }
