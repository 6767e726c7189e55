"""Draws from a categorical distribution by inversion of its distribution function."""

from __future__ import annotations

import tensorflow as tf


def draw(
    logits: tf.Tensor, uniform: tf.Tensor, temperature: float = 1.0, top_k: int | None = None
) -> tf.Tensor:
    """One category a row, which depends on that row alone.

    Args:
      logits: `[b, categories]`, floating.
      uniform: numbers in (0, 1), `[b]`, of the same dtype: where the draw falls in the distribution.
      temperature: logits are divided by it; below 1 the likely become likelier.
      top_k: if given, only the k most likely categories can be drawn (Fan et al. 2018); of equals the first. With 1,
        the most likely is.

    Returns:
      int32 `[b]`.
    """
    if top_k is None:
        return _invert(logits / temperature, uniform)
    # In the order of categories, so that a rounding error that swaps two equals moves no draw far.
    kept = tf.sort(tf.math.top_k(logits, top_k).indices, axis=1)
    place = _invert(tf.gather(logits, kept, batch_dims=1) / temperature, uniform)
    return tf.gather(kept, place, batch_dims=1)


def _invert(logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The first category up to which the probabilities sum to more than `uniform`."""
    sums = tf.cumsum(tf.nn.softmax(logits), axis=1)
    # The last sum is 1 but for rounding.
    below = sums[:, :-1] <= uniform[:, tf.newaxis] * sums[:, -1:]
    return tf.reduce_sum(tf.cast(below, tf.int32), 1)
