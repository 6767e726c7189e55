"""Long short-term memory, the layer."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from models.initializers import Uniform
from models.lstm_recurrence import recurrence
from models.objective import Noise

State = tuple[tf.Tensor, tf.Tensor]
"""Output h and cell c of one layer, `[b, units]` each, in the variable dtype; under mixed precision h is of low precision."""


class LSTM(keras.layers.Layer):
    """A layer of LSTM (Hochreiter & Schmidhuber 1997) with forget gates (Gers, Schmidhuber & Cummins 2000).

        i, f, g, o = split(x_t W + h_{t-1} U + b)
        c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

    Weights are those of `keras.layers.LSTM`, of the same names, shapes and order of gates: kernel W `[inputs, 4 units]`,
    recurrent_kernel U `[units, 4 units]`, bias b `[4 units]`. Under mixed precision the products are of low precision, and
    h; gates and cell are not.

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
        # The cell must not be cast to a low precision: the casts below are explicit.
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
        outputs, c = recurrence(x, kernel, recurrent_kernel, self.bias.value, h, c, recurrent_mask)
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
