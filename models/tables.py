"""Ways through a latent space, for tables of pictures that people look at: see `objective.Pictured`."""

from __future__ import annotations

import tensorflow as tf

COLUMNS = 8
"""Pictures in a row of a table."""


def line(start: tf.Tensor, end: tf.Tensor, columns: int) -> tf.Tensor:
    """Points at equal distances from start to end, both included: `[n, d]`, `[n, d]` -> `[n, columns, d]`."""
    share = _shares(columns, start.dtype)
    return start[:, tf.newaxis] * (1 - share) + end[:, tf.newaxis] * share


def arc(start: tf.Tensor, end: tf.Tensor, columns: int) -> tf.Tensor:
    """As `line` at equal angles (Shoemake 1985), which keeps the length that a normal latent of many dimensions has."""
    share = _shares(columns, start.dtype)
    start, end = start[:, tf.newaxis], end[:, tf.newaxis]
    cosine = (
        tf.reduce_sum(start * end, 2, keepdims=True)
        / (tf.norm(start, axis=2) * tf.norm(end, axis=2))[..., tf.newaxis]
    )
    angle = tf.acos(tf.clip_by_value(cosine, -1 + 1e-6, 1 - 1e-6))
    return (start * tf.sin((1 - share) * angle) + end * tf.sin(share * angle)) / tf.sin(angle)


def axes(centre: tf.Tensor, chosen: tf.Tensor, reach: float, columns: int) -> tf.Tensor:
    """Lines through a point along some axes, from -reach to reach.

    Args:
      centre: `[d]`.
      chosen: numbers of the axes `[n]`.
      reach: the value of that coordinate at the end.
      columns: points of each line.

    Returns:
      `[n, columns, d]`.
    """
    mask = tf.one_hot(chosen, centre.shape[0], dtype=centre.dtype)[:, tf.newaxis]
    values = reach * (2 * _shares(columns, centre.dtype) - 1)
    return centre * (1 - mask) + values * mask


def _shares(columns: int, dtype: tf.DType) -> tf.Tensor:
    """From 0 to 1, `[1, columns, 1]`."""
    return tf.reshape(tf.cast(tf.linspace(0.0, 1.0, columns), dtype), [1, columns, 1])
