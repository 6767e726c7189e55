"""Long short-term memory, with the recurrence and its gradient as two compiled loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from models.initializers import Uniform
from models.objective import Noise

State = tuple[tf.Tensor, tf.Tensor]
"""Output h and cell c of one layer, `[b, units]` each, in the variable dtype."""


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
        batch, time, inputs = x.shape[0] or tf.shape(x)[0], x.shape[1], x.shape[2]
        h, c = self.zero_state(batch) if state is None else state
        # The inputs' share of the gates for all times in one product; time goes first, which the loop indexes.
        x = tf.transpose(tf.cast(x, self.compute_dtype), [1, 0, 2])
        x = tf.reshape(x, [time * batch, inputs])
        gates = tf.matmul(x, tf.cast(self.kernel, x.dtype)) + tf.cast(self.bias, x.dtype)
        gates = tf.reshape(gates, [time, batch, 4 * self.units])
        kernel = tf.cast(self.recurrent_kernel, x.dtype)
        outputs, c = _recurrence(gates, kernel, h, c, recurrent_mask)
        return tf.cast(tf.transpose(outputs, [1, 0, 2]), x.dtype), (outputs[-1], c)

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
    gates: tf.Tensor, kernel: tf.Tensor, h: tf.Tensor, c: tf.Tensor, mask: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The recurrence over time, differentiable once.

    The gradient is written out so that the loop back in time holds one small product a step, and that for the kernel's
    gradient is a single large one after it. Measured on CPU (2 layers of 256, batch 32, 64 steps), this takes a third of
    the time of the gradient of a `tf.while_loop`; unrolling the steps is as fast without XLA, and with XLA takes 90 s to
    compile.

    Args:
      gates: the inputs' share, `[time, b, 4 units]`.
      kernel: `[units, 4 units]`, of the same dtype.
      h: before the first step, `[b, units]`, as `c`, in the dtype of the state.
      c: likewise.
      mask: of h before the product with the kernel, `[b, units]`, or None. It receives no gradient.

    Returns:
      h of all times `[time, b, units]` and the last c `[b, units]`.
    """
    time, batch, units, dtype = gates.shape[0], c.shape[0], c.shape[1], c.dtype

    def masked(h: tf.Tensor) -> tf.Tensor:
        return h if mask is None else h * mask

    @tf.custom_gradient
    def run(
        gates: tf.Tensor, kernel: tf.Tensor, first_h: tf.Tensor, first_c: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        def array(width: int) -> tf.TensorArray:
            return tf.TensorArray(dtype, time, element_shape=[batch, width])

        def forward(t, h, c, activations, cells, outputs):
            z = gates[t] + tf.matmul(tf.cast(masked(h), kernel.dtype), kernel)
            i, f, g, o = tf.split(tf.cast(z, dtype), 4, 1)
            i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
            c = f * c + i * g
            h = o * tf.tanh(c)
            activations = activations.write(t, tf.concat([i, f, g, o], 1))
            return t + 1, h, c, activations, cells.write(t, c), outputs.write(t, h)

        start = (0, first_h, first_c, array(4 * units), array(units), array(units))
        _, _, c, activations, cells, outputs = _loop(time, forward, start)
        activations, cells, outputs = activations.stack(), cells.stack(), outputs.stack()

        def gradient(d_outputs: tf.Tensor, d_c: tf.Tensor):
            cells_before = tf.concat([first_c[tf.newaxis], cells[:-1]], 0)
            outputs_before = tf.concat([first_h[tf.newaxis], outputs[:-1]], 0)

            def backward(n, d_h, d_c, d_gates):
                t = time - 1 - n
                i, f, g, o = tf.split(activations[t], 4, 1)
                tanh_c = tf.tanh(cells[t])
                d_h += d_outputs[t]
                d_c += d_h * o * (1 - tanh_c**2)
                d_i, d_f = d_c * g * i * (1 - i), d_c * cells_before[t] * f * (1 - f)
                d_g, d_o = d_c * i * (1 - g**2), d_h * tanh_c * o * (1 - o)
                d_z = tf.concat([d_i, d_f, d_g, d_o], 1)
                d_h = tf.matmul(tf.cast(d_z, kernel.dtype), kernel, transpose_b=True)
                return n + 1, masked(tf.cast(d_h, dtype)), d_c * f, d_gates.write(t, d_z)

            start = (0, tf.zeros_like(d_c), d_c, array(4 * units))
            _, d_h, d_c, d_gates = _loop(time, backward, start)
            d_gates = tf.cast(d_gates.stack(), kernel.dtype)
            d_kernel = tf.matmul(
                tf.reshape(tf.cast(masked(outputs_before), kernel.dtype), [-1, units]),
                tf.reshape(d_gates, [-1, 4 * units]),
                transpose_a=True,
            )
            return d_gates, d_kernel, d_h, d_c

        return (outputs, c), gradient

    return run(gates, kernel, h, c)


def _loop(steps: int, body, start):
    """`steps` times `body`, of which the first variable counts them."""
    # XLA wants the number of iterations static.
    return tf.while_loop(lambda t, *_: t < steps, body, start, maximum_iterations=steps)
