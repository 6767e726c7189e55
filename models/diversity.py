"""A watch for a generator's collapse: how much two of its images differ."""

from __future__ import annotations

import tensorflow as tf


def diversity(images: tf.Tensor, labels: tf.Tensor | None = None) -> tf.Tensor:
    """The mean absolute difference of the two images of a pair of consecutive examples, of pixels from black 0 to white 1.

    Images of two classes, which differ in any case, count as alike: a mean over pairs is smaller by the share of those of one
    class, and is to be compared with that of other images of the same labels.

    Args:
      images: `[b, height, width, channels]` in [-1, 1], b even: example 2k is the neighbour of 2k + 1.
      labels: their classes, integers `[b]`, or None.

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
    differences = tf.reduce_mean(tf.abs(pairs[:, 0] - pairs[:, 1]), 1) / 2
    if labels is not None:
        first, second = tf.unstack(tf.reshape(labels, [rows // 2, 2]), axis=1)
        differences *= tf.cast(first == second, differences.dtype)
    return tf.repeat(differences, 2)
