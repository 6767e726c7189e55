"""Self-attention over the positions of a feature map (Zhang et al. 2019, SAGAN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.layers import built, widened
from models.objective import Noise
from models.spectral_norm import Convolution

REDUCTION = 8


class SelfAttention(keras.layers.Layer):
    """x + γ · W_v h(x) softmax(f(x)ᵀ g(x)): each position looks at all others of its image; γ is learnt and starts at 0.

    f, g and h are 1×1 convolutions to an eighth of the channels, W_v one back to all of them.

    Args:
      channels: of the feature map, at least 8.
      noise: one row, for initial weights, and `name`, of the layer: the stream is the child of that name.
      spectral: whether the convolutions have spectral norm.
    """

    def __init__(self, channels: int, noise: Noise, name: str, *, spectral: bool = False):
        super().__init__(name=name)
        if channels < REDUCTION:
            raise ValueError(
                f"{name} attends over {channels} channels: it needs at least {REDUCTION}, since it looks at an eighth of them"
            )
        noise = noise(name)

        def convolution(outputs: int, name: str) -> Convolution:
            return Convolution(outputs, 1, noise, name, spectral=spectral, use_bias=False)

        self.query = convolution(channels // REDUCTION, "query")
        self.key = convolution(channels // REDUCTION, "key")
        self.value = convolution(channels // REDUCTION, "value")
        self.out = convolution(channels, "out")

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        for layer in (self.query, self.key):
            built(layer, shape)
        built(self.out, built(self.value, shape))
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="zeros")

    def call(
        self, x: tf.Tensor, *, training: bool = False, update_statistics: bool = True
    ) -> tf.Tensor:
        """`[b, height, width, channels]` -> the same; weights of the softmax are float32 at least."""
        state = {"training": training, "update_statistics": update_statistics}
        height, width, _ = x.shape[1:]

        def positions(layer: Convolution) -> tf.Tensor:
            return tf.reshape(layer(x, **state), [-1, height * width, layer.outputs])

        scores = tf.matmul(positions(self.query), positions(self.key), transpose_b=True)
        attended = tf.cast(tf.nn.softmax(widened(scores)), x.dtype) @ positions(self.value)
        attended = tf.reshape(attended, [-1, height, width, self.value.outputs])
        return x + self.gamma * self.out(attended, **state)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return tuple(input_shape)
