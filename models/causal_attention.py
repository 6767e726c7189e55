"""Self-attention over the tokens of a text, of which each sees itself and those before it (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from models.layers import Dropout, widened
from models.lora import LoRA, of
from models.objective import Noise
from models.projection import Projection, child

Pair = Sequence[tf.Tensor]


class CausalAttention(keras.layers.Layer):
    """softmax(q kᵀ / √d) v of several heads, between one product that makes q, k and v of all, and one out.

    The weights of the softmax are float32 at least. (Keras' dot_product_attention has no flash kernel for TensorFlow.)

    Args:
      width: of inputs and outputs, which the heads share.
      heads: how many, each with d = width / heads numbers.
      noise: for initial weights.
      name: of the layer.
      stddev: of the initial weights of the first product.
      stddev_out: of those of the last.
      use_bias: whether the products have biases.
      dropout: rate, on the weights of the softmax.
      lora: how those products are adapted that it names; None for none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        noise: Noise,
        name: str,
        *,
        stddev: float,
        stddev_out: float,
        use_bias: bool,
        dropout: float,
        lora: LoRA | None = None,
    ):
        super().__init__(name=name)
        self.width, self.heads = width, heads
        # Columns q | k | v, in each of which the heads lie side by side, as in GPT-2.
        adapted = of(lora, "attention/qkv")
        self.qkv = Projection(
            3 * width, noise, "qkv", stddev=stddev, use_bias=use_bias, lora=adapted
        )
        adapted = of(lora, "attention/out")
        self.out = Projection(
            width, noise, "out", stddev=stddev_out, use_bias=use_bias, lora=adapted
        )
        self.dropout = Dropout(dropout, "dropout")

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.qkv.build((None, self.width))
        self.out.build((None, self.width))

    def call(
        self,
        x: tf.Tensor,
        hidden: tf.Tensor,
        *,
        rotation: Pair | None = None,
        cache: Pair | None = None,
        position: int | tf.Tensor = 0,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, Pair]:
        """What each token takes from those that it sees.

        Args:
          x: `[b, time, width]`, time static.
          hidden: whether a token does not see a key, bool `[time, keys]`: see `later`.
          rotation: cosines and sines `[time, d / 2]`, by which rotary embedding turns queries and keys.
          cache: keys and values `[b, heads, keys, d]`, among which those of x are put; None if those of x are all.
          position: within the cache, of the first token of x, scalar int32.
          noise: b rows, for dropout.
          training: whether to drop.

        Returns:
          As `x`; and the keys and values, `[b, heads, keys, d]`.
        """
        time, size = x.shape[1], self.width // self.heads
        qkv = self.qkv(x, **child(noise, "qkv", training))
        qkv = tf.reshape(qkv, [-1, time, 3, self.heads, size])
        query, key, value = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = (
                put(n, old, position, 2) for n, old in zip((key, value), cache, strict=True)
            )
        scores = widened(tf.matmul(query * size**-0.5, key, transpose_b=True))
        # A sum, whose gradient costs nothing: low enough for a weight of exactly 0.
        scores += tf.where(hidden, scores.dtype.min, tf.zeros([], scores.dtype))
        weights = tf.cast(tf.nn.softmax(scores), x.dtype)
        weights = self.dropout(weights, noise=noise, training=training)
        y = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        y = tf.reshape(y, [-1, time, self.width])
        return self.out(y, **child(noise, "out", training)), (key, value)


def later(time: int, keys: int, position: int | tf.Tensor = 0) -> tf.Tensor:
    """Whether key j comes after query i, the token at position + i: bool `[time, keys]`."""
    return tf.range(keys) > position + tf.range(time)[:, tf.newaxis]


def rotation_table(positions: int, size: int, base: float = 10_000.0) -> np.ndarray:
    """Cosines and sines of position · base^(-2i / size), by which a head's pair i is turned (Su et al. 2021).

    Args:
      positions: how many.
      size: numbers of a head, even.
      base: of the wave lengths, which grow from 2π towards 2π · base.

    Returns:
      float64 `[2, positions, size / 2]`.
    """
    angles = np.outer(np.arange(positions), base ** (-np.arange(0, size, 2) / size))
    return np.stack([np.cos(angles), np.sin(angles)])


def rotate(x: tf.Tensor, cos: tf.Tensor, sin: tf.Tensor) -> tf.Tensor:
    """Turns the pairs (i, i + d / 2) of `x` `[b, heads, time, d]` by angles `[time, d / 2]`."""
    first, second = tf.split(x, 2, -1)
    return tf.concat([first * cos - second * sin, second * cos + first * sin], -1)


def put(new: tf.Tensor, old: tf.Tensor, position: tf.Tensor, axis: int) -> tf.Tensor:
    """`old` with `new`, which is shorter along the axis of tokens, from a position on."""
    time = new.shape[axis]
    # Rows come first, so this is no scatter: each place takes the new token that belongs there, if there is one.
    place = tf.range(old.shape[axis]) - position
    there = (place >= 0) & (place < time)
    chosen = tf.gather(new, tf.clip_by_value(place, 0, time - 1), axis=axis)
    return tf.where(tf.reshape(there, [-1, *[1] * (len(old.shape) - axis - 1)]), chosen, old)
