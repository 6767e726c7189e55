"""Long short-term memory, with the recurrence and its gradient as two compiled loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

from models import lstm_cudnn
from models.initializers import Uniform
from models.objective import Noise
from models.xla import in_xla

State = tuple[tf.Tensor, tf.Tensor]
"""Output h and cell c of one layer, `[b, units]` each, in the variable dtype."""
LARGE = 4096
"""Numbers in h from which on the loops are compiled, which takes a second, and on CPU the rows are done in two halves."""


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
      initial_range: W and U start uniform in ± it; None for 1/√units.
      forget_bias: with which the forget gate's bias starts (Jozefowicz et al. 2015); the others start at 0.
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
        self.units = units
        self.initial_range = initial_range or units**-0.5
        self.forget_bias = forget_bias
        self.noise = noise

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights for inputs `[…, inputs]`."""
        limit = self.initial_range
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

    def compute_output_shape(self, input_shape: Sequence[int | None], state_shape=None):
        state = (input_shape[0], self.units)
        return (*input_shape[:-1], self.units), (state, state)

    def _initial_bias(self, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
        zero = tf.zeros([self.units], dtype)
        return tf.concat([zero, zero + self.forget_bias, zero, zero], 0)


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

    The gradient is written out, so that the loop back in time holds the small products alone, and those for the weights'
    gradients are large ones after it. Both loops are compiled by XLA, unless they are small; in a program that is compiled as a
    whole they are a part of it. On CPU the rows are done in two halves side by side: while one multiplies, the other does what is between two
    products. Measured against loops of TensorFlow with one product for all gates (2 layers of 512 units, 64 × 100, 2
    cores): 1.5 times as fast, and faster than PyTorch's fused layers; `scripts/benchmark lstm`. On a GPU where XLA compiles nothing it is
    cuDNN's.

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
    if lstm_cudnn.fits(x, h, mask) and not in_xla():
        return lstm_cudnn.recurrence(x, kernel, recurrent_kernel, bias, h, c)
    large = h.shape.is_fully_defined() and h.shape.num_elements() >= LARGE and not in_xla()
    forward, backward = (_compiled_forward, _compiled_backward) if large else (_forward, _backward)
    parts = 2 if large and h.shape[0] % 2 == 0 and not _accelerated() else 1
    masks = [None] * parts if mask is None else tf.split(mask, parts)

    @tf.custom_gradient
    def run(
        x: tf.Tensor,
        kernel: tf.Tensor,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
        h: tf.Tensor,
        c: tf.Tensor,
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        xs, hs, cs = (tf.split(each, parts) for each in (x, h, c))
        weights = kernel, recurrent_kernel, bias
        done = [forward(*each, *weights) for each in zip(xs, hs, cs, masks, strict=True)]
        outputs, last, multiplied, factors = zip(*done, strict=True)

        def gradient(d_outputs: tf.Tensor, d_c: tf.Tensor):
            d_ends = zip(
                tf.split(d_outputs, parts), tf.split(d_c, parts), factors, masks, strict=True
            )
            *d_rows, d_gates = zip(
                *(backward(*each, kernel, recurrent_kernel, x.dtype) for each in d_ends),
                strict=True,
            )
            d_x, d_h, d_c = (tf.concat(each, 0) for each in d_rows)
            return d_x, *_weight_gradients(multiplied, d_gates, h.dtype), d_h, d_c

        return (tf.concat(outputs, 0), tf.concat(last, 0)), gradient

    return run(x, kernel, recurrent_kernel, bias, h, c)


def _forward(
    x: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    mask: tf.Tensor | None,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
    """The recurrence, and what its gradient needs.

    Each gate has arrays of its own: XLA is slow where it slices one from an array that they share.

    Returns:
      h of all times `[b, time, units]`; the last c `[b, units]`; what was multiplied by the kernels, x `[time, b, inputs]` and h
      before each time `[time, b, units]`; factors of the gradients, six of `[time, b, units]`.
    """
    time, low, dtype = x.shape[1], x.dtype, c.dtype
    x = tf.transpose(x, [1, 0, 2])
    kernels = tf.split(tf.cast(recurrent_kernel, low), 4, 1)
    # The inputs' share of the gates for all times in one product each.
    shares = zip(tf.split(tf.cast(kernel, low), 4, 1), tf.split(tf.cast(bias, low), 4), strict=True)
    gates = [tf.cast(_product(x, k) + b, dtype) for k, b in shares]
    gates = [_array(time, c).unstack(gate) for gate in gates]

    def step(t, h, c, outputs, inputs, d_cells, forgotten, *gates):
        before, h = c, tf.cast(h if mask is None else h * mask, low)
        inputs = inputs.write(t, h)
        z = [
            gate.read(t) + tf.cast(tf.matmul(h, k), dtype)
            for gate, k in zip(gates, kernels, strict=True)
        ]
        i, f, g, o = tf.sigmoid(z[0]), tf.sigmoid(z[1]), tf.tanh(z[2]), tf.sigmoid(z[3])
        c = f * c + i * g
        tanh_c = tf.tanh(c)
        h = o * tanh_c
        # In the place of each gate, by what its gradient is that of the cell or, of the last, of the output.
        now = (g * i * (1 - i), before * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o))
        written = (array.write(t, value) for array, value in zip(gates, now, strict=True))
        d_cells, forgotten = d_cells.write(t, o * (1 - tanh_c**2)), forgotten.write(t, f)
        return t + 1, h, c, outputs.write(t, h), inputs, d_cells, forgotten, *written

    arrays = _array(time, c), _array(time, tf.cast(h, low)), _array(time, c), _array(time, c)
    _, _, c, *arrays = _loop(time, step, (0, h, c, *arrays, *gates))
    outputs, inputs, *factors = (array.stack() for array in arrays)
    return tf.transpose(outputs, [1, 0, 2]), c, (x, inputs), factors


def _backward(
    d_outputs: tf.Tensor,
    d_c: tf.Tensor,
    factors: list[tf.Tensor],
    mask: tf.Tensor | None,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    low: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Gradients of x, h and c, and of each gate `[time, b, units]`."""
    time = d_outputs.shape[1]
    kernels, recurrent_kernels = (
        [tf.transpose(k) for k in tf.split(tf.cast(all_gates, low), 4, 1)]
        for all_gates in (kernel, recurrent_kernel)
    )
    d_outputs = tf.transpose(d_outputs, [1, 0, 2])
    d_cell, forgotten, d_i, d_f, d_g, d_o = factors

    def step(n, d_h, d_c, *d_gates):
        t = time - 1 - n
        d_h += d_outputs[t]
        d_c += d_h * d_cell[t]
        d_z = [tf.cast(d, low) for d in (d_c * d_i[t], d_c * d_f[t], d_c * d_g[t], d_h * d_o[t])]
        written = (array.write(t, d) for array, d in zip(d_gates, d_z, strict=True))
        products = map(tf.matmul, d_z, recurrent_kernels)
        d_h = tf.add_n([tf.cast(product, d_h.dtype) for product in products])
        return n + 1, d_h if mask is None else d_h * mask, d_c * forgotten[t], *written

    arrays = (_array(time, tf.cast(d_c, low)) for _ in range(4))
    _, d_h, d_c, *d_gates = _loop(time, step, (0, tf.zeros_like(d_c), d_c, *arrays))
    d_gates = [array.stack() for array in d_gates]
    d_x = tf.add_n([_product(d, k) for d, k in zip(d_gates, kernels, strict=True)])
    return tf.transpose(d_x, [1, 0, 2]), d_h, d_c, d_gates


def _weight_gradients(
    multiplied: Sequence[tuple[tf.Tensor, tf.Tensor]],
    d_gates: Sequence[list[tf.Tensor]],
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of kernel, recurrent kernel and bias: sums over rows and times, in the dtype of the state.

    Not in what is compiled: on CPU TensorFlow's products with the first factor transposed are a quarter faster than XLA's.

    Args:
      multiplied: x and h of each part of the rows, `[time, b, …]`.
      d_gates: of each part the gradients of the gates, four of `[time, b, units]`.
      dtype: of the state.
    """

    def rows(parts: Iterable[tf.Tensor]) -> tf.Tensor:
        return tf.concat([tf.reshape(tf.cast(a, dtype), [-1, a.shape[2]]) for a in parts], 0)

    x, h = map(rows, zip(*multiplied, strict=True))
    d_z = tf.concat([rows(gate) for gate in zip(*d_gates, strict=True)], 1)
    d_kernels = (tf.matmul(each, d_z, transpose_a=True) for each in (x, h))
    return *d_kernels, tf.reduce_sum(d_z, 0)


_compiled_forward = tf.function(_forward, jit_compile=True, autograph=False)
_compiled_backward = tf.function(_backward, jit_compile=True, autograph=False)


def _accelerated() -> bool:
    return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))


def _product(rows: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`[time, b, inputs]` by `[inputs, units]`, as one product."""
    shape = tf.concat([tf.shape(rows)[:2], tf.shape(kernel)[1:]], 0)
    return tf.reshape(tf.matmul(tf.reshape(rows, [-1, rows.shape[2]]), kernel), shape)


def _array(time: int, like: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(like.dtype, time, element_shape=like.shape, clear_after_read=False)


def _loop(steps: int, body, start):
    """`steps` times `body`, of which the first variable counts them."""
    # XLA wants the number of iterations static.
    return tf.while_loop(lambda t, *_: t < steps, body, start, maximum_iterations=steps)
