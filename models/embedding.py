"""A vector for each token."""

from __future__ import annotations

import tensorflow as tf


@tf.custom_gradient
def embed(table: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Rows of a table, with a dense gradient.

    TensorFlow's own gradient of a gather is sparse, which replicas cannot add up under XLA (TRAPS 9). Here it is a
    product with the tokens one-hot, which also has one order of summation on every device; it costs as much as the
    product by which a language model makes its logits.

    Args:
      table: `[vocabulary, width]`.
      tokens: integers below vocabulary `[…]`.

    Returns:
      `[…, width]`.
    """
    vocabulary, width = table.shape

    def gradient(d_rows: tf.Tensor):
        one_hot = tf.one_hot(tf.reshape(tokens, [-1]), vocabulary, dtype=d_rows.dtype)
        return tf.matmul(one_hot, tf.reshape(d_rows, [-1, width]), transpose_a=True), None

    return tf.gather(table, tokens), gradient
