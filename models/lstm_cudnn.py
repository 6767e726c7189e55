"""The recurrence of an LSTM as cuDNN's fused kernel, for GPUs where XLA does not compile the model (TRAPS 10)."""

from __future__ import annotations

import tensorflow as tf


def fits(x: tf.Tensor, h: tf.Tensor, mask: tf.Tensor | None) -> bool:
    """Whether what is traced here goes to a GPU, and is what the kernel computes.

    It knows no mask of h, and keeps gates and cell in the precision of the products: with lower ones than the state's it would
    learn something else than the other paths.
    """
    return mask is None and x.dtype == h.dtype and _on_gpu()


def _on_gpu() -> bool:
    device = tf.constant(0).device
    # Without a device it goes to a GPU if there is one, and so it is traced where there is one device (OneDeviceStrategy).
    return ":GPU:" in device if device else bool(tf.config.list_logical_devices("GPU"))


def recurrence(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """h of all times `[b, time, units]` and the last c `[b, units]`; see `models.lstm`. Differentiable once.

    Args:
      x: `[b, time, inputs]`.
      kernel: `[inputs, 4 units]`, gates i, f, g, o, as below; all of one dtype.
      recurrent_kernel: `[units, 4 units]`.
      bias: `[4 units]`.
      h: before the first step, `[b, units]`.
      c: likewise.
    """
    time, rows = x.shape[1], tf.shape(x)[0]
    outputs, _, last, _, _ = tf.raw_ops.CudnnRNNV3(
        input=tf.transpose(x, [1, 0, 2]),
        input_h=h[tf.newaxis],
        input_c=c[tf.newaxis],
        params=parameters(kernel, recurrent_kernel, bias),
        sequence_lengths=tf.fill([rows], time),
        rnn_mode="lstm",
        # What the gradient needs is kept.
        is_training=True,
        time_major=True,
    )
    return tf.transpose(outputs, [1, 0, 2]), last[0]


def parameters(kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """The weights in cuDNN's order, one vector.

    cudnnGetRNNWeightParams: of gates i, f, g, o the matrices of x, then those of h, each `[units, inputs]`, then as many biases of
    x, which are 0 here, and of h.
    """
    matrices = [*tf.split(kernel, 4, 1), *tf.split(recurrent_kernel, 4, 1)]
    flat = [tf.reshape(tf.transpose(matrix), [-1]) for matrix in matrices]
    return tf.concat([*flat, tf.zeros_like(bias), bias], 0)
