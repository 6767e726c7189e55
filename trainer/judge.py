"""How good a model's samples are, in the eyes of a classifier that was trained by this project on the same data."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input_pipeline.batches import Source
from models.sample_metrics import frechet_distance, kernel_distance, neighbourhoods
from trainer.exits import ConfigError
from trainer.trainer import Trainer

MOST = 10_000
"""Pictures of a kind that are compared, if there are so many and no other number is asked for."""
BATCH = 500


class Judge:
    """Compares pictures in the features of a trained classifier.

    Args:
      classifier: a restored training of `models.classifier.Classifier`.

    Raises:
      ConfigError: if it is the training of something else.
    """

    def __init__(self, classifier: Trainer) -> None:
        recognise = getattr(classifier.objective, "recognise", None)
        if recognise is None:
            raise ConfigError(
                f"--features={classifier.workdir} is a run of {type(classifier.objective).__name__}: name one of a Classifier"
            )
        self._classifier, self._see = classifier, recognise

    def compare(
        self, trainer: Trainer, count: int | None, seed: int
    ) -> dict[str, dict[str, float]]:
        """What samples of a model are like, and beside it what as many real pictures are like: the floor.

        Both are compared with a third set of as many: held-out pictures, or where there are none the other half of the
        training pictures.

        Args:
          trainer: of the model, at the weights to judge.
          count: pictures of each kind; None for as many as there are, up to `MOST`.
          seed: of the samples.

        Returns:
          "samples" and "real" -> name -> value.
        """
        experiment = trainer.experiment
        ids = np.asarray(trainer.batches.ids(tf.range(len(experiment.source), dtype=tf.int64)))
        if experiment.validation is None:
            reference, floor = (experiment.source, ids[::2]), (experiment.source, ids[1::2])
        else:
            held_out = np.arange(len(experiment.validation))
            reference, floor = (experiment.validation, held_out), (experiment.source, ids)
        most = min(len(reference[1]), len(floor[1]), count or MOST)
        expected = self._recognise(_read(*reference, most))
        found = {
            "samples": self._recognise(trainer.sample(most, seed)),
            "real": self._recognise(_read(*floor, most)),
        }
        rows = {kind: _metrics(expected[0], *seen) for kind, seen in found.items()}
        if classes := getattr(trainer.objective, "classes", None):
            meant = np.arange(most) % classes
            rows["samples"]["recognised"] = float(np.mean(found["samples"][1].argmax(1) == meant))
        return rows

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
