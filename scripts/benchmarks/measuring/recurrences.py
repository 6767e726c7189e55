"""Other ways to compute an LSTM layer in TensorFlow: they map inputs `[b, time, inputs]` and the weights of `models.lstm.LSTM` to
outputs `[b, time, units]`."""

from __future__ import annotations

import math

import tensorflow as tf


def block(
    x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """TensorFlow's kernel of a whole layer on CPU, with one product a time of inputs and state together; float32.

    Not BlockLSTMV2, of which TensorFlow 2.21 takes the gradient as if its gates were in the first one's order, i, g, f, o.
    """
    time, rows, units = x.shape[1], x.shape[0], recurrent_kernel.shape[0]
    zero, none = tf.zeros([rows, units], x.dtype), tf.zeros([units], x.dtype)
    *_, outputs = tf.raw_ops.BlockLSTM(
        seq_len_max=tf.constant(time, tf.int64),
        x=tf.transpose(x, [1, 0, 2]),
        cs_prev=zero,
        h_prev=zero,
        w=_reordered(tf.concat([kernel, recurrent_kernel], 0)),
        wci=none,
        wcf=none,
        wco=none,
        b=_reordered(bias),
        forget_bias=0.0,
        cell_clip=-1.0,  # None.
    )
    return tf.transpose(outputs, [1, 0, 2])


def _reordered(weights: tf.Tensor) -> tf.Tensor:
    i, f, g, o = tf.split(weights, 4, -1)
    return tf.concat([i, g, f, o], -1)


def unrolled(
    x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """Operations of each time, one after the other, without a loop; one product of all inputs before."""
    zero = tf.zeros([x.shape[0], recurrent_kernel.shape[0]], x.dtype)
    state, outputs = (zero, zero), []
    for share in tf.unstack(tf.matmul(x, kernel) + bias, axis=1):
        state = _next(state, share, recurrent_kernel)
        outputs.append(state[0])
    return tf.stack(outputs, 1)


def loop(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    chunk: int = 1,
) -> tf.Tensor:
    """A loop of TensorFlow's over the times, so many an iteration, with TensorFlow's gradient; one product of all inputs before."""
    rows, units = x.shape[0], recurrent_kernel.shape[0]
    shares = tf.transpose(tf.matmul(x, kernel) + bias, [1, 0, 2])

    def several(before: tuple[tf.Tensor, tf.Tensor], shares: tf.Tensor):
        outputs, c = before
        state, outputs = (outputs[-1], c), []
        for share in tf.unstack(shares):
            state = _next(state, share, recurrent_kernel)
            outputs.append(state[0])
        return tf.stack(outputs), state[1]

    start = tf.zeros([chunk, rows, units], x.dtype), tf.zeros([rows, units], x.dtype)
    outputs, _ = tf.scan(several, tf.reshape(shares, [-1, chunk, *shares.shape[1:]]), start)
    return tf.transpose(tf.reshape(outputs, [-1, rows, units]), [1, 0, 2])


def chunks(
    x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """That loop over chunks of ten times, or of what of ten divides them."""
    return loop(x, kernel, recurrent_kernel, bias, math.gcd(x.shape[1], 10))


def _next(
    state: tuple[tf.Tensor, tf.Tensor], share: tf.Tensor, recurrent_kernel: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """h and c `[b, units]` after those before, with the inputs' share of the gates `[b, 4 units]`."""
    h, c = state
    i, f, g, o = tf.split(share + tf.matmul(h, recurrent_kernel), 4, 1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c
