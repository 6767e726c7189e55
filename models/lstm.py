"""Long short-term memory, with the recurrence and its gradient as two compiled loops."""

from __future__ import annotations

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
        )
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel",
            shape=(self.units, 4 * self.units),
            initializer=Uniform(self.noise("recurrent_kernel"), limit),
        )
        self.bias = self.add_weight(
            name="bias", shape=(4 * self.units,), initializer=self._initial_bias
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
        return tf.cast(outputs, x.dtype), (outputs[:, -1], c)

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

    Only what hangs on the state is in the loops, which XLA compiles unless they are small: one product for all gates, and what
    is between two of them. The inputs' share of the gates, and on the way back, which is written out, the gradients of inputs
    and weights are large products for all times, outside what is compiled: on CPU they are TensorFlow's, which are faster than
    XLA's, above all if their results have few columns: the inputs' share is a product for each gate, and the kernels' gradient
    is computed transposed, of both kernels at once. In a program that is compiled as a whole all are a part of it, and the
    inputs' share is one product. Measured by `scripts/benchmark lstm`. On a GPU where XLA compiles nothing it is cuDNN's.

    Args:
      x: `[b, time, inputs]`, of the dtype of the products.
      kernel: `[inputs, 4 units]`, in the dtype of the state, as the weights and state below.
      recurrent_kernel: `[units, 4 units]`.
      bias: `[4 units]`.
      h: before the first step, `[b, units]`.
      c: likewise.
      mask: of h before the product with the kernel, `[b, units]`, or None. It receives no gradient.

    Returns:
      h of all times `[b, time, units]` and the last c `[b, units]`.
    """
    compiled = in_xla()
    if lstm_cudnn.fits(x, h, mask) and not compiled:
        return lstm_cudnn.recurrence(x, kernel, recurrent_kernel, bias, h, c)
    large = h.shape.is_fully_defined() and h.shape.num_elements() >= LARGE and not compiled
    forward, backward = (_compiled_forward, _compiled_backward) if large else (_forward, _backward)

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
        x = tf.transpose(x, [1, 0, 2])
        weights = tf.cast(recurrent_kernel, low)

        def share(kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
            return tf.cast(_product(x, tf.cast(kernel, low)) + tf.cast(bias, low), dtype)

        if compiled:
            shares = tf.split(share(kernel, bias), 4, 2)
        else:
            shares = list(map(share, tf.split(kernel, 4, 1), tf.split(bias, 4)))
        outputs, last, factors = forward(shares, h, c, mask, weights)

        def gradient(d_outputs: tf.Tensor, d_c: tf.Tensor):
            d_outputs = tf.transpose(d_outputs, [1, 0, 2])
            d_z, d_h, d_c = backward(d_outputs, d_c, factors, mask, weights)
            d_x = _product(d_z, tf.cast(kernel, low), transpose_b=True)
            before = tf.concat([h[tf.newaxis], outputs[:-1]], 0)
            if mask is not None:
                before *= mask
            multiplied = tf.concat([x, tf.cast(before, low)], 2)
            # Sums over rows and times, in the dtype of the state.
            rows = _rows(tf.cast(d_z, dtype))
            d_kernels = tf.transpose(
                tf.matmul(rows, _rows(tf.cast(multiplied, dtype)), transpose_a=True)
            )
            d_kernels = tf.split(d_kernels, [x.shape[2], h.shape[1]])
            # A product is several times as fast as a sum of columns.
            d_bias = tf.matmul(tf.ones([1, tf.shape(rows)[0]], dtype), rows)[0]
            return tf.transpose(d_x, [1, 0, 2]), *d_kernels, d_bias, d_h, d_c

        return (tf.transpose(outputs, [1, 0, 2]), last), gradient

    return run(x, kernel, recurrent_kernel, bias, h, c)


def _forward(
    shares: Sequence[tf.Tensor],
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """The recurrence, and what its gradient needs.

    Args:
      shares: of each gate before its activation, the inputs' and the bias', `[time, b, units]`.
      h: before the first time, `[b, units]`.
      c: likewise.
      mask: of h before each product, `[b, units]`, or None.
      recurrent_kernel: `[units, 4 units]`, in the dtype of the products.

    Returns:
      h of all times `[time, b, units]`; the last c `[b, units]`; factors of the gradients, `[time, b, units]` each: of the
      cell by h, of the cell by the next, and of the gates, by the cell or, of the last, by h.
    """
    time, low, dtype = shares[0].shape[0], recurrent_kernel.dtype, c.dtype

    def step(t, h, c, outputs, d_cells, forgotten, *gates):
        before, h = c, tf.cast(h if mask is None else h * mask, low)
        products = tf.split(tf.cast(tf.matmul(h, recurrent_kernel), dtype), 4, 1)
        z_i, z_f, z_g, z_o = (
            gate.read(t) + product for gate, product in zip(gates, products, strict=True)
        )
        i, f, g, o = tf.sigmoid(z_i), tf.sigmoid(z_f), tf.tanh(z_g), tf.sigmoid(z_o)
        c = f * c + i * g
        tanh_c = tf.tanh(c)
        h = o * tanh_c
        d_gates = g * i * (1 - i), before * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o)
        # In the place of the gates, which are not needed any more.
        written = [gate.write(t, d_gate) for gate, d_gate in zip(gates, d_gates, strict=True)]
        d_cells, forgotten = d_cells.write(t, o * (1 - tanh_c**2)), forgotten.write(t, f)
        return t + 1, h, c, outputs.write(t, h), d_cells, forgotten, *written

    gates = [_array(time, c).unstack(share) for share in shares]
    start = 0, h, c, _array(time, c), _array(time, c), _array(time, c), *gates
    _, _, c, *arrays = _loop(time, step, start)
    outputs, *factors = (array.stack() for array in arrays)
    return outputs, c, factors


def _backward(
    d_outputs: tf.Tensor,
    d_c: tf.Tensor,
    factors: list[tf.Tensor],
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of the gates before their activation, in the dtype of the products `[time, b, 4 units]`, of h and of c."""
    time, low, dtype = d_outputs.shape[0], recurrent_kernel.dtype, d_c.dtype
    d_cells, forgotten, *d_gates = factors

    def step(n, d_h, d_c, d_z):
        t = time - 1 - n
        d_h += d_outputs[t]
        d_c += d_h * d_cells[t]
        i, f, g, o = (gate[t] for gate in d_gates)
        now = tf.cast(tf.concat([d_c * i, d_c * f, d_c * g, d_h * o], 1), low)
        d_h = tf.cast(tf.matmul(now, recurrent_kernel, transpose_b=True), dtype)
        return n + 1, d_h if mask is None else d_h * mask, d_c * forgotten[t], d_z.write(t, now)

    d_z = tf.TensorArray(low, time, element_shape=[*d_c.shape[:1], recurrent_kernel.shape[1]])
    _, d_h, d_c, d_z = _loop(time, step, (0, tf.zeros_like(d_c), d_c, d_z))
    return d_z.stack(), d_h, d_c


_compiled_forward = tf.function(_forward, jit_compile=True, autograph=False)
_compiled_backward = tf.function(_backward, jit_compile=True, autograph=False)


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
