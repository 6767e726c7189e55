"""Initial weights from named noise: the same bits for one seed on any layout and in any order of creation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from models.objective import Noise


class Normal(keras.initializers.Initializer):
    """Weights from a normal distribution of mean 0, not truncated.

    Args:
      noise: one row, under a name that no other weight has: then the weight has the same bits in any order of creation.
      stddev: standard deviation.
    """

    def __init__(self, noise: Noise, stddev: float):
        self.noise = noise
        self.stddev = stddev

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        return _weight(self.noise.normal(shape) * self.stddev, dtype)


class Uniform(keras.initializers.Initializer):
    """Weights from the uniform distribution on (-limit, limit); `noise` as for `Normal`."""

    def __init__(self, noise: Noise, limit: float):
        self.noise = noise
        self.limit = limit

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        return _weight((2 * self.noise.uniform(shape) - 1) * self.limit, dtype)


class VarianceScaling(keras.initializers.Initializer):
    """Normal weights of variance scale / fan (Glorot & Bengio 2010), not truncated; `noise` as for `Normal`.

    The fan is the mean of Keras' two: the receptive field times the last dimension but one (in) and the last (out).
    """

    def __init__(self, noise: Noise, scale: float = 1.0):
        self.noise = noise
        self.scale = scale

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        field = math.prod(shape[:-2])
        fan = field * (shape[-2] + shape[-1]) / 2
        return _weight(self.noise.normal(shape) * math.sqrt(self.scale / fan), dtype)


def _weight(rows: tf.Tensor, dtype: str | None) -> tf.Tensor:
    return rows[0] if dtype is None else tf.cast(rows[0], dtype)
