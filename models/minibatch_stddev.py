"""How much images of a group differ, shown to the discriminator (Karras et al. 2018, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from models.layers import grouped, widened

EPSILON = 1e-8


class MinibatchStddev(keras.layers.Layer):
    """Appends a channel: the standard deviation over a group of consecutive examples, the mean over channels and positions.

    A group has a fixed size, so that the number is the same on any number of replicas. Held-out examples are grouped as they
    come, the last ones with copies: metrics of a discriminator hang on their order.

    Args:
      group: examples a group, at least 2; it must divide the batch of one replica and the microbatch.
      name: of the layer.
    """

    def __init__(self, group: int, name: str):
        super().__init__(name=name)
        if group < 2:
            raise ValueError(f"the group of {name} is {group}: it must be at least 2 examples")
        self.group = group

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """`[b, height, width, channels]` -> `[b, height, width, channels + 1]`."""
        groups = grouped(widened(x), self.group, f'"{self.path}" compares')
        mean = tf.reduce_mean(groups, 1, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(groups, mean), 1, keepdims=True)
        # The root has no finite slope at 0, where all are the same.
        deviation = tf.reduce_mean(
            tf.sqrt(variance + EPSILON), list(range(2, len(groups.shape))), keepdims=True
        )
        channel = tf.broadcast_to(tf.cast(deviation, x.dtype), [*groups.shape[:-1], 1])
        return tf.concat([x, tf.reshape(channel, [*x.shape[:-1], 1])], -1)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        assert input_shape[-1] is not None
        return *input_shape[:-1], input_shape[-1] + 1
