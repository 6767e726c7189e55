"""Long short-term memory, with the recurrence and its gradient as two compiled loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from models import lstm_cudnn
from models.initializers import Uniform
from models.objective import Noise
from models.xla import in_xla

State = tuple[tf.Tensor, tf.Tensor]
"""Output h and cell c of one layer, `[b, units]` each, in the variable dtype."""
LARGE = 2048
"""Numbers in h from which on the loops are compiled, which takes a second."""


class LSTM(keras.layers.Layer):
    """A layer of LSTM (Hochreiter & Schmidhuber 1997) with forget gates (Gers, Schmidhuber & Cummins 2000).

        i, f, g, o = split(x_t W + h_{t-1} U + b)
        c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

    Weights are those of `keras.layers.LSTM`, of the same names, shapes and order of gates: kernel W `[inputs, 4 units]`,
    recurrent_kernel U `[units, 4 units]`, bias b `[4 units]`. Under mixed precision the products are of low precision, gates
    and cell are not.

    Args:
      units: length of h and c.
      noise: for the initial weights.
      name: of the layer.
      initial_range: all weights start uniform in ± it; None for W and U in ±1/√units and no bias.
      forget_bias: with which the forget gate's bias starts besides (Jozefowicz et al. 2015).

    Raises:
      ValueError: if a number is out of range.
    """

    def __init__(
        self,
        units: int,
        noise: Noise,
        name: str,
        initial_range: float | None = None,
        forget_bias: float = 1.0,
    ):
        # The state must not be cast to a low precision: the casts below are explicit.
        super().__init__(name=name, autocast=False)
        if units < 1:
            raise ValueError(f"the width of {name} is {units}: it must be at least 1")
        if initial_range is not None and not initial_range > 0:
            raise ValueError(f"initial_range is {initial_range}: it must be above 0, or None")
        self.units = units
        self.initial_range = initial_range
        self.forget_bias = forget_bias
        self.noise = noise

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights for inputs `[…, inputs]`."""
        limit = self.initial_range or self.units**-0.5
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], 4 * self.units),
            initializer=Uniform(self.noise("kernel"), limit),
            autocast=False,
        )
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel",
            shape=(self.units, 4 * self.units),
            initializer=Uniform(self.noise("recurrent_kernel"), limit),
            autocast=False,
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(4 * self.units,),
            initializer=self._initial_bias,
            autocast=False,
        )

    def call(
        self, x: tf.Tensor, state: State | None = None, recurrent_mask: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, State]:
        """All outputs, and the state after the last.

        Args:
          x: `[b, time, inputs]`, time static.
          state: before the first input, zero if None.
          recurrent_mask: `[b, units]`, by which h_{t-1} is multiplied before U at all times, for dropout.

        Returns:
          h of all times, `[b, time, units]` in the compute dtype, and the state.
        """
        x = tf.cast(x, self.compute_dtype)
        h, c = self.zero_state(x.shape[0] or tf.shape(x)[0]) if state is None else state
        kernel, recurrent_kernel = self.kernel.value, self.recurrent_kernel.value
        outputs, c = _recurrence(x, kernel, recurrent_kernel, self.bias.value, h, c, recurrent_mask)
        return outputs, (tf.cast(outputs[:, -1], c.dtype), c)

    def zero_state(self, batch: int | tf.Tensor) -> State:
        """The state in which a sequence begins."""
        zero = tf.zeros([batch, self.units], self.variable_dtype)
        return zero, zero

    def _initial_bias(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        initial = tf.zeros(shape, dtype)
        if self.initial_range:
            initial = Uniform(self.noise("bias"), self.initial_range)(shape, dtype)
        is_forget = tf.one_hot(1, 4, dtype=initial.dtype)
        return initial + self.forget_bias * tf.repeat(is_forget, self.units)


def _recurrence(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The recurrence over time, differentiable once.

    Only what hangs on the state is in the loops: one product for all gates, and the cell, which is what is between two of them.
    The inputs' share of the gates, and on the way back, which is written out, the gradients of inputs and weights are large
    products for all times, outside of what is compiled: on CPU they are TensorFlow's, which are faster than XLA's, above all if
    their results have few columns: the inputs' share is a product for each gate, and the kernels' gradient is computed transposed,
    of both kernels at once. Of loops that are not small XLA compiles the whole, or in a low precision, of which TensorFlow's
    products are several times as fast as XLA's where the processor has it, the cells. In a program that is compiled as a whole
    all are a part of it, and the inputs' share is one product. Measured by `scripts/benchmark lstm`. On a GPU where XLA compiles
    nothing it is cuDNN's.

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
    large = h.shape.is_fully_defined() and h.shape.num_elements() >= LARGE and not compiled
    forward: Callable
    backward: Callable
    if large and x.dtype == c.dtype:
        forward, backward = _compiled_forward, _compiled_backward
    else:
        forward = functools.partial(_forward, _compiled_cell if large else _cell)
        backward = functools.partial(
            _backward, _compiled_cell_gradient if large else _cell_gradient
        )

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
        first = tf.cast(h, low)
        seen = None if mask is None else tf.cast(mask, low)
        x = tf.transpose(x, [1, 0, 2])
        weights = tf.cast(recurrent_kernel, low)
        kernels = tf.cast(kernel, low)
        if compiled:
            shares = tf.split(_product(x, kernels), 4, 2)
        else:
            shares = [_product(x, one) for one in tf.split(kernels, 4, 1)]
        outputs, last, kept = forward(shares, bias, first, c, seen, weights)

        def gradient(d_outputs: tf.Tensor, d_c: tf.Tensor):
            d_outputs = tf.transpose(d_outputs, [1, 0, 2])
            d_z, d_h, d_c = backward(d_outputs, d_c, kept, seen, weights)
            d_x = _product(d_z, kernels, transpose_b=True)
            before = tf.concat([first[tf.newaxis], outputs[:-1]], 0)
            if seen is not None:
                before *= seen
            multiplied = tf.concat([x, before], 2)
            rows = _rows(d_z)
            d_kernels = tf.transpose(tf.matmul(rows, _rows(multiplied), transpose_a=True))
            d_kernels = tf.split(tf.cast(d_kernels, dtype), [x.shape[2], h.shape[1]])
            # A product is several times as fast as a sum of columns.
            d_bias = tf.cast(tf.matmul(tf.ones([1, tf.shape(rows)[0]], low), rows)[0], dtype)
            return tf.transpose(d_x, [1, 0, 2]), *d_kernels, d_bias, d_h, d_c

        return (tf.transpose(outputs, [1, 0, 2]), last), gradient

    return run(x, kernel, recurrent_kernel, bias, h, c)


def _forward(
    cell: Callable,
    shares: Sequence[tf.Tensor],
    bias: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.TensorArray]]:
    """The recurrence, and what its gradient needs.

    Args:
      cell: `_cell`, or that compiled.
      shares: the inputs' of each gate before its activation, `[time, b, units]`, in the dtype of the products, as is h.
      bias: of all gates, `[4 units]`, in the dtype of c.
      h: before the first time, `[b, units]`.
      c: likewise.
      mask: of h before each product, `[b, units]`, or None.
      recurrent_kernel: `[units, 4 units]`.

    Returns:
      h of all times `[time, b, units]`; the last c `[b, units]`; for all times the c before, and what `_cell` keeps.
    """
    time = shares[0].shape[0]

    def step(t, h, c, outputs, cells, *kept):
        products = tf.matmul(h if mask is None else h * mask, recurrent_kernel)
        h, after, *found = cell(t, products, c, bias, *shares)
        written = [array.write(t, value) for array, value in zip(kept, found, strict=True)]
        return t + 1, h, after, outputs.write(t, h), cells.write(t, c), *written

    start = 0, h, c, _array(time, h), *(_array(time, c) for _ in range(6))
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
        d_h = tf.matmul(d_gates, transposed)
        return n + 1, d_h if mask is None else d_h * mask, d_c, d_z.write(t, d_gates)

    d_z = tf.TensorArray(low, time, element_shape=[*d_c.shape[:1], transposed.shape[0]])
    _, d_h, d_c, d_z = _loop(time, step, (0, tf.zeros_like(d_c, low), d_c, d_z))
    return d_z.stack(), tf.cast(d_h, dtype), d_c


def _cell(
    t: tf.Tensor, products: tf.Tensor, c: tf.Tensor, bias: tf.Tensor, *shares: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """One time, after the product with the recurrent kernel.

    Args:
      t: the time, int32.
      products: the state's share of all gates before their activation, `[b, 4 units]`.
      c: of the time before, `[b, units]`.
      bias: of all gates.
      *shares: see `_forward`.

    Returns:
      h in the dtype of the products, c, and what the gradient needs besides: gates i, f, g and o and tanh c; `[b, units]` each.
    """
    parts = zip(shares, tf.split(tf.cast(products, c.dtype) + bias, 4, 1), strict=True)
    # Not share[t], which is a program for each t, since XLA wants to know it.
    z_i, z_f, z_g, z_o = (tf.cast(tf.gather(share, t), c.dtype) + part for share, part in parts)
    i, f, g, o = tf.sigmoid(z_i), tf.sigmoid(z_f), tf.tanh(z_g), tf.sigmoid(z_o)
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
    """Gradients of all gates before their activation, in the dtype of d_h `[b, 4 units]`, and of the c before."""
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


@tf.function(jit_compile=True, autograph=False)
def _compiled_forward(shares, bias, h, c, mask, recurrent_kernel):
    """As `_forward`, but arrays cannot leave a program of XLA: tensors `[time, b, units]`."""
    outputs, c, kept = _forward(_cell, shares, bias, h, c, mask, recurrent_kernel)
    return outputs, c, [array.stack() for array in kept]


@tf.function(jit_compile=True, autograph=False)
def _compiled_backward(d_outputs, d_c, kept, mask, recurrent_kernel):
    """As `_backward` of the arrays' tensors."""
    arrays = [_array(d_outputs.shape[0], d_c).unstack(values) for values in kept]
    return _backward(_cell_gradient, d_outputs, d_c, arrays, mask, recurrent_kernel)


def _product(x: tf.Tensor, kernel: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """`[time, b, inputs]` by `[inputs, units]`, or by the transpose of `[units, inputs]`, as one product."""
    product = tf.matmul(_rows(x), kernel, transpose_b=transpose_b)
    return tf.reshape(product, [*x.shape[:1], -1, product.shape[1]])


def _rows(x: tf.Tensor) -> tf.Tensor:
    """`[time, b, units]` as `[time · b, units]`."""
    return tf.reshape(x, [-1, x.shape[2]])


def _array(time: int, like: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(like.dtype, time, element_shape=like.shape, clear_after_read=False)


def _loop(steps: int, body, start):
    """`steps` times `body`, of which the first variable counts them."""
    # XLA wants the number of iterations static.
    return tf.while_loop(lambda t, *_: t < steps, body, start, maximum_iterations=steps)
