"""Samples from an objective's weights as they stand, decoded to what a person reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.batches import Source
from input_pipeline.noise import Noise
from models.objective import Objective
from trainer.precision import Precision

CHUNK = 256
"""Samples drawn at once."""


class Sampling:
    """Draws samples; sample i depends on the weights, the seed and i alone."""

    def __init__(self, objective: Objective, source: Source, precision: Precision) -> None:
        self._objective, self._source, self._precision = objective, source, precision

    def __call__(self, count: int, seed: int) -> Any:
        """`count` samples, as `Source.decode` gives them."""
        firsts = range(0, count, CHUNK)
        parts = [
            self._draw(seed, min(CHUNK, count - first), tf.constant(first, tf.int64)).numpy()
            for first in firsts
        ]
        return self._source.decode(np.concatenate(parts))

    @functools.cached_property
    def _draw(self) -> Callable:
        def draw(seed: int, rows: int, first: tf.Tensor) -> tf.Tensor:
            dtype = self._precision.loss_dtype
            return self._objective.sample(
                Noise(seed, "sample", rows=rows, first=first, dtype=dtype)
            )

        return tf.function(draw, autograph=False)
