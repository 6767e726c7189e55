"""The recurrence of an LSTM and its gradient, by the fastest way for device and precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from models import lstm_cudnn
from models.xla import in_xla

LARGE = 2048
"""Numbers in h from which on XLA compiles loops or cells, which takes a second."""


def recurrence(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The recurrence over time (`models.lstm.LSTM`), differentiable once.

    Only what hangs on the state is in the loops: one product for all gates, and the cell, which is what is between two of them.
    The inputs' share of the gates, and on the way back, which is written out, the gradients of inputs and weights are large
    products for all times, outside of what is compiled: on CPU they are TensorFlow's, which are faster than XLA's. Of loops that
    are not small XLA compiles the whole; of those in bfloat16, in which TensorFlow's products are several times as fast as XLA's on
    processors that have it, the cells. In a program that is compiled as a whole all are a part of it. Measured by
    `scripts/benchmark lstm`. On a GPU where XLA compiles nothing it is cuDNN's.

    Args:
      x: `[b, time, inputs]`, of the dtype of the products.
      kernel: `[inputs, 4 units]`, in the dtype of the state, as the weights and state below.
      recurrent_kernel: `[units, 4 units]`.
      bias: `[4 units]`.
      h: before the first step, `[b, units]`.
      c: likewise.
      mask: of h before the product with the kernel, `[b, units]`, or None. It receives no gradient.

    Returns:
      h of all times `[b, time, units]`, in the dtype of the products, and the last c `[b, units]`.
    """
    compiled = in_xla()
    if lstm_cudnn.fits(x, h, mask) and not compiled:
        return lstm_cudnn.recurrence(x, kernel, recurrent_kernel, bias, h, c)
    forward: Callable
    backward: Callable
    if compiled or not h.shape.is_fully_defined() or h.shape.num_elements() < LARGE:
        forward, backward = _loop_forward, _loop_backward
    elif x.dtype == tf.bfloat16:
        forward = functools.partial(_forward, _compiled_cell)
        backward = functools.partial(_backward, _compiled_cell_gradient)
    else:
        forward, backward = _compiled_forward, _compiled_backward

    @tf.custom_gradient
    def run(
        x: tf.Tensor,
        kernel: tf.Tensor,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
        h: tf.Tensor,
        c: tf.Tensor,
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        low, dtype = x.dtype, c.dtype
        x, low_h = tf.transpose(x, [1, 0, 2]), tf.cast(h, low)
        low_kernel, low_recurrent_kernel = tf.cast(kernel, low), tf.cast(recurrent_kernel, low)
        share = tf.reshape(tf.matmul(_rows(x), low_kernel), [x.shape[0], -1, kernel.shape[1]])
        outputs, last, kept = forward(share, bias, low_h, c, mask, low_recurrent_kernel)

        def gradient(d_outputs: tf.Tensor, d_c: tf.Tensor):
            d_outputs = tf.transpose(d_outputs, [1, 0, 2])
            d_z, d_h, d_c = backward(d_outputs, d_c, kept, mask, low_recurrent_kernel)
            before = tf.concat([low_h[tf.newaxis], outputs[:-1]], 0)
            # The bias counts as weights of an input of 1: alone, its gradient would be another pass over that of the gates.
            multiplied = tf.concat([x, _masked(before, mask), tf.ones_like(x[:, :, :1])], 2)
            d_weights = tf.matmul(_rows(multiplied), _rows(d_z), transpose_a=True)
            *d_kernels, d_bias = tf.split(tf.cast(d_weights, dtype), [x.shape[2], h.shape[1], 1])
            if compiled:  # XLA's einsum knows no precision: a TPU takes the lowest.
                d_x = tf.reshape(tf.matmul(_rows(d_z), low_kernel, transpose_b=True), tf.shape(x))
            else:  # As a product with transpose_b it has three quarters of the speed with AVX-512.
                d_x = tf.einsum("tbz,iz->tbi", d_z, low_kernel)
            return tf.transpose(d_x, [1, 0, 2]), *d_kernels, d_bias[0], d_h, d_c

        return (tf.transpose(outputs, [1, 0, 2]), last), gradient

    return run(x, kernel, recurrent_kernel, bias, h, c)


def _forward(
    cell: Callable,
    share: tf.Tensor,
    bias: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.TensorArray]]:
    """The recurrence, and what its gradient needs.

    Args:
      cell: `_cell`, or that compiled.
      share: the inputs' of all gates before their activation, `[time, b, 4 units]`, in the dtype of the products, as is h.
      bias: of all gates, `[4 units]`, in the dtype of c.
      h: before the first time, `[b, units]`.
      c: likewise.
      mask: of h before each product, `[b, units]`, in the dtype of c, or None.
      recurrent_kernel: `[units, 4 units]`.

    Returns:
      h of all times `[time, b, units]`; the last c `[b, units]`; for all times the c before, and what `_cell` keeps.
    """
    time = share.shape[0]

    def step(t, h, c, outputs, cells, *kept):
        products = tf.matmul(_masked(h, mask), recurrent_kernel)
        h, after, *found = cell(t, products, c, bias, share)
        written = [array.write(t, value) for array, value in zip(kept, found, strict=True)]
        return t + 1, h, after, outputs.write(t, h), cells.write(t, c), *written

    start = tf.constant(0), h, c, _array(time, h), *(_array(time, c) for _ in range(6))
    _, _, c, outputs, *kept = _loop(time, step, start)
    return outputs.stack(), c, kept


def _backward(
    cell_gradient: Callable,
    d_outputs: tf.Tensor,
    d_c: tf.Tensor,
    kept: Sequence[tf.TensorArray],
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of the gates before their activation, in the dtype of the products `[time, b, 4 units]`, of h and of c."""
    time, low, dtype = d_outputs.shape[0], recurrent_kernel.dtype, d_c.dtype
    transposed = tf.transpose(recurrent_kernel)

    def step(n, d_h, d_c, d_z):
        t = time - 1 - n
        d_gates, d_c = cell_gradient(t, d_h, d_c, d_outputs, *(array.read(t) for array in kept))
        d_h = _masked(tf.matmul(d_gates, transposed), mask)
        return n + 1, d_h, d_c, d_z.write(t, d_gates)

    d_z = tf.TensorArray(low, time, element_shape=[*d_c.shape[:1], transposed.shape[0]])
    _, d_h, d_c, d_z = _loop(time, step, (tf.constant(0), tf.zeros_like(d_c, low), d_c, d_z))
    return d_z.stack(), tf.cast(d_h, dtype), d_c


def _cell(
    t: tf.Tensor, products: tf.Tensor, c: tf.Tensor, bias: tf.Tensor, share: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """One time, after the product with the recurrent kernel.

    It takes its part of the sequence itself, which is faster than to be given it by TensorFlow. By `tf.gather`: of an index as
    in share[t] XLA wants to know the value, and would make a program for each. All gates are one function, since
    σ(z) = ½ tanh(½ z) + ½: for XLA one loop in place of four.

    Args:
      t: the time, int32.
      products: the state's share of all gates before their activation, `[b, 4 units]`.
      c: of the time before, `[b, units]`.
      bias: of all gates.
      share: see `_forward`.

    Returns:
      h in the dtype of the products, c, and what the gradient needs besides: gates i, f, g and o and tanh c; `[b, units]` each.
    """
    z = tf.cast(tf.gather(share, t), c.dtype) + tf.cast(products, c.dtype) + bias
    scale = tf.repeat(tf.constant([0.5, 0.5, 1, 0.5], c.dtype), c.shape[1])
    i, f, g, o = tf.split(scale * tf.tanh(scale * z) + (1 - scale), 4, 1)
    c = f * c + i * g
    tanh_c = tf.tanh(c)
    return tf.cast(o * tanh_c, products.dtype), c, i, f, g, o, tanh_c


def _cell_gradient(
    t: tf.Tensor,
    d_h: tf.Tensor,
    d_c: tf.Tensor,
    d_outputs: tf.Tensor,
    before: tf.Tensor,
    i: tf.Tensor,
    f: tf.Tensor,
    g: tf.Tensor,
    o: tf.Tensor,
    tanh_c: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradients of all gates before their activation, in the dtype of d_h `[b, 4 units]`, and of the c before.

    Args:
      t: the time, int32.
      d_h: of h by what follows it, `[b, units]` as all but d_outputs.
      d_c: likewise.
      d_outputs: of h of all times by the loss, `[time, b, units]`.
      before: the c before.
      i: gates, as f, g and o.
      tanh_c: of the c after.
    """
    low, dtype = d_h.dtype, d_c.dtype
    d_h = tf.cast(d_h, dtype) + tf.cast(tf.gather(d_outputs, t), dtype)
    d_c += d_h * o * (1 - tanh_c**2)
    d_gates = (
        d_c * g * i * (1 - i),
        d_c * before * f * (1 - f),
        d_c * i * (1 - g**2),
        d_h * tanh_c * o * (1 - o),
    )
    return tf.concat([tf.cast(d_gate, low) for d_gate in d_gates], 1), d_c * f


_compiled_cell = tf.function(_cell, jit_compile=True, autograph=False)
_compiled_cell_gradient = tf.function(_cell_gradient, jit_compile=True, autograph=False)


def _loop_forward(share, bias, h, c, mask, recurrent_kernel):
    """As `_forward`, but tensors `[time, b, units]` in place of arrays, which cannot leave a program of XLA."""
    outputs, c, kept = _forward(_cell, share, bias, h, c, mask, recurrent_kernel)
    return outputs, c, [array.stack() for array in kept]


def _loop_backward(d_outputs, d_c, kept, mask, recurrent_kernel):
    """As `_backward`, of such tensors."""
    arrays = [_array(d_outputs.shape[0], d_c).unstack(values) for values in kept]
    return _backward(_cell_gradient, d_outputs, d_c, arrays, mask, recurrent_kernel)


_compiled_forward = tf.function(_loop_forward, jit_compile=True, autograph=False)
_compiled_backward = tf.function(_loop_backward, jit_compile=True, autograph=False)


def _masked(h: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Its product with the mask, in the precision of that, in the dtype of h."""
    return h if mask is None else tf.cast(tf.cast(h, mask.dtype) * mask, h.dtype)


def _rows(x: tf.Tensor) -> tf.Tensor:
    """`[time, b, units]` as `[time · b, units]`."""
    return tf.reshape(x, [-1, x.shape[2]])


def _array(time: int, like: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(like.dtype, time, element_shape=like.shape, clear_after_read=False)


def _loop(steps: int, body, start):
    """`steps` times `body`, of which the first variable counts them."""
    # XLA wants the number of iterations static.
    return tf.while_loop(lambda t, *_: t < steps, body, start, maximum_iterations=steps)
