"""A watch for a generator's collapse: how much two of its images differ."""

from __future__ import annotations

import tensorflow as tf


def diversity(images: tf.Tensor) -> tf.Tensor:
    """The mean absolute difference of the two images of a pair of consecutive examples, of pixels from black 0 to white 1.

    Args:
      images: `[b, height, width, channels]` in [-1, 1], b even: example 2k is the neighbour of 2k + 1.

    Returns:
      `[b]`, alike for both of a pair.

    Raises:
      ValueError: if b is odd.
    """
    rows = images.shape[0]
    if rows % 2:
        raise ValueError(
            f"GAN compares two examples with each other, and its batch on a replica is {rows}: choose an even batch and "
            "microbatch, or set GAN.watch_diversity = False"
        )
    pairs = tf.reshape(images, [rows // 2, 2, -1])
    return tf.repeat(tf.reduce_mean(tf.abs(pairs[:, 0] - pairs[:, 1]), 1) / 2, 2)
