"""Samples and other pictures from an objective's weights as they stand, decoded to what a person reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.batches import Batches, Slice
from models.objective import Objective
from trainer.exits import ConfigError
from trainer.step import Step

CHUNK = 256
"""Samples drawn at once."""
PICTURED = 8
"""Examples whose pictures are shown."""


class Sampling:
    """Draws samples; sample i depends on the weights, the seed and i alone."""

    def __init__(self, objective: Objective, batches: Batches, step: Step) -> None:
        self._objective, self._batches, self._step = objective, batches, step
        self._pictured: Callable | None = getattr(objective, "pictures", None)

    def __call__(self, count: int, seed: int) -> Any:
        """`count` samples, as `Source.decode` gives them.

        Raises:
          ConfigError: if the objective draws none.
        """
        self.check()
        firsts = range(0, count, CHUNK)
        parts = [
            self._draw(seed, min(CHUNK, count - first), tf.constant(first, tf.int64)).numpy()
            for first in firsts
        ]
        return self._batches.source.decode(np.concatenate(parts))

    def check(self) -> None:
        """Raises ConfigError if the objective draws no samples."""
        if self._objective.sample is None:
            raise ConfigError(
                f"{type(self._objective).__name__} draws no samples: set Experiment.samples = 0, and evaluate it"
            )

    def pictures(self) -> Mapping[str, np.ndarray]:
        """The tables of `models.objective.Pictured`, uint8 `[rows, columns, height, width, channels]`; none of other objectives."""
        if self._pictured is None:
            return {}
        tables = self._show(self._examples())
        return {name: self._decode_table(table.numpy()) for name, table in sorted(tables.items())}

    def _decode_table(self, table: np.ndarray) -> np.ndarray:
        rows, columns = table.shape[:2]
        decoded = self._batches.source.decode(table.reshape(rows * columns, *table.shape[2:]))
        return decoded.reshape(rows, columns, *decoded.shape[1:])

    def _examples(self) -> dict[str, tf.Tensor]:
        """The first held-out examples, or else the first of the training."""
        if self._batches.validation is not None:
            batch, _ = next(iter(self._batches.evaluation(Slice(), batch=PICTURED)))
            return batch
        batch = next(iter(self._batches.training(Slice())))
        return {name: x[0][:PICTURED] for name, x in batch.items()}

    @functools.cached_property
    def _draw(self) -> Callable:
        sample = self._objective.sample
        assert sample is not None

        def draw(seed: int, rows: int, first: tf.Tensor) -> tf.Tensor:
            noise = self._step.noise("sample", rows=rows, first=first, seed=seed)
            return sample(noise)

        return tf.function(draw, autograph=False)

    @functools.cached_property
    def _show(self) -> Callable:
        pictured = self._pictured
        assert pictured is not None

        def show(batch: dict[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
            rows = next(iter(batch.values())).shape[0]
            return pictured(self._step.cast(batch), self._step.noise("pictures", rows=rows))

        return tf.function(show, autograph=False)
