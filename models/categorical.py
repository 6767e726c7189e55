"""Draws from a categorical distribution by inversion of its distribution function."""

from __future__ import annotations

import tensorflow as tf


def draw(
    logits: tf.Tensor,
    uniform: tf.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tf.Tensor:
    """One category a row, which depends on that row alone.

    Args:
      logits: `[b, categories]`, floating.
      uniform: numbers in (0, 1), `[b]`, of the same dtype: where the draw falls in the distribution.
      temperature: logits are divided by it; below 1 the likely become likelier.
      top_k: if given, only the k most likely categories can be drawn (Fan et al. 2018); of equals the first. With 1,
        the most likely is.
      top_p: if given, only the nucleus can be drawn (Holtzman et al. 2020): of what temperature and top_k leave, the fewest
        most likely categories that have together at least this probability; of equals the first. 1 leaves all.

    Returns:
      int32 `[b]`.
    """
    if top_k is None:
        return _invert(logits / temperature, uniform, top_p)
    # In the order of categories, so that a rounding error that swaps two equals moves no draw far.
    kept = tf.sort(tf.math.top_k(logits, top_k).indices, axis=1)
    place = _invert(tf.gather(logits, kept, batch_dims=1) / temperature, uniform, top_p)
    return tf.gather(kept, place, batch_dims=1)


def penalise(logits: tf.Tensor, seen: tf.Tensor, penalty: float) -> tf.Tensor:
    """Makes what was seen less likely (Keskar et al. 2019, section 4.1), if the penalty is above 1.

    The paper divides the logits of what was seen by the penalty, which would make the unlikely, of negative logits,
    likelier: those are multiplied by it, as is usual.

    Args:
      logits: `[b, categories]`, floating.
      seen: bool `[b, categories]`.
      penalty: above 0; 1 changes nothing.
    """
    return tf.where(seen, tf.where(logits > 0, logits / penalty, logits * penalty), logits)


def _invert(logits: tf.Tensor, uniform: tf.Tensor, top_p: float | None) -> tf.Tensor:
    """The first category up to which the probabilities sum to more than `uniform`, among those of the nucleus."""
    p = tf.nn.softmax(logits)
    if top_p is None or top_p == 1:
        sums = tf.cumsum(p, axis=1)
        # The last sum is 1 but for rounding.
        below = sums[:, :-1] <= uniform[:, tf.newaxis] * sums[:, -1:]
        return tf.reduce_sum(tf.cast(below, tf.int32), 1)
    kept = _nucleus(p, top_p)
    sums = tf.cumsum(tf.where(kept, p, tf.zeros_like(p)), axis=1)
    reached = kept & (sums > uniform[:, tf.newaxis] * sums[:, -1:])
    places = tf.range(tf.shape(p)[1])
    first = tf.reduce_min(tf.where(reached, places, places[-1]), 1)
    # XLA adds in another order for each sum, so the last of the nucleus may seem not to reach what all do.
    return tf.minimum(first, tf.reduce_max(tf.where(kept, places, 0), 1))


def _nucleus(p: tf.Tensor, top_p: float) -> tf.Tensor:
    """Which categories are in it, bool like p."""
    ordered, order = tf.math.top_k(p, p.shape[1])
    before = tf.cumsum(ordered, axis=1, exclusive=True)
    return tf.gather(before < top_p, tf.argsort(order, axis=1), batch_dims=1)
