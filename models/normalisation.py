"""Normalisation of each vector by itself, which no batch and no replica changes."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from models.layers import widened

EPSILON = 1e-5


class Norm(keras.layers.Layer):
    """y γ + β over the last axis, where y has mean 0 and variance 1 ("layer", Ba et al. 2016), or mean square 1 and no β
    ("rms", Zhang & Sennrich 2019).

    With float16 and bfloat16 it is computed in float32; γ and β are in the variable dtype.

    Args:
      kind: "layer" or "rms".
      name: of the layer.
      use_bias: whether layer normalisation has β.
      epsilon: added to the variance or the mean square.

    Raises:
      ValueError: if there is no such kind.
    """

    def __init__(self, kind: str, name: str, *, use_bias: bool = True, epsilon: float = EPSILON):
        super().__init__(name=name)
        if kind not in ("layer", "rms"):
            raise ValueError(f'norm is "{kind}": it must be "layer" or "rms"')
        self.centred = kind == "layer"
        self.use_bias = use_bias and self.centred
        self.epsilon = epsilon

    def build(self, input_shape: Sequence[int | None]) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", autocast=False)
        if self.use_bias:
            self.beta = self.add_weight(
                name="beta", shape=shape, initializer="zeros", autocast=False
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """`x` `[…, n]` -> the same."""
        y = _normalised(widened(x), self.centred, self.epsilon) * self.gamma
        return tf.cast(y + self.beta if self.use_bias else y, x.dtype)


def _normalised(x: tf.Tensor, centred: bool, epsilon: float) -> tf.Tensor:
    """(x - mean) / √(variance + ε), or x / √(mean x² + ε), over the last axis; differentiable once.

    The gradient is written out: with TensorFlow's own a step of a transformer of 4 layers of 128 takes 3 % longer on CPU.
    """

    @tf.custom_gradient
    def of(x: tf.Tensor) -> tf.Tensor:
        centre = x - _mean(x) if centred else x
        factor = tf.math.rsqrt(_mean(tf.square(centre)) + epsilon)
        y = centre * factor

        def gradient(d_y: tf.Tensor) -> tf.Tensor:
            d_centre = d_y - y * _mean(d_y * y)
            return factor * (d_centre - _mean(d_y) if centred else d_centre)

        return y, gradient

    return of(x)


def _mean(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(x, -1, keepdims=True)
