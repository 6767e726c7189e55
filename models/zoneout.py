"""Zoneout (Krueger et al. 2017): at random, units of an LSTM keep what they had at the time before."""

from __future__ import annotations

import tensorflow as tf

from models.lstm import LSTM, State
from models.objective import Noise


class Zoneout:
    """How often units of LSTM layers keep their state; at evaluation they take the mean of old and new in these shares.

        c_t = k_c c_{t-1} + (1 - k_c) ĉ_t,   h_t = k_h h_{t-1} + (1 - k_h) σ(o) tanh(ĉ_t)

    with ĉ_t the cell of the layer without it, and k 1 or 0 for each example, time and unit.

    Args:
      hidden: rate, at which k_h is 1.
      cell: rate, at which k_c is 1.

    Raises:
      ValueError: if a rate is out of range.
    """

    def __init__(self, hidden: float, cell: float) -> None:
        for name, rate in (("zoneout_h", hidden), ("zoneout_c", cell)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}: it must be at least 0 and below 1")
        self.rates = {"h": hidden, "c": cell}

    def __bool__(self) -> bool:
        return any(self.rates.values())

    def run(
        self,
        layer: LSTM,
        x: tf.Tensor,
        state: State | None = None,
        recurrent_mask: tf.Tensor | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, State]:
        """As a call of the layer, which has faster paths, but none of this.

        Args:
          layer: with its weights.
          x: `[b, time, inputs]`, time static.
          state: before the first input, zero if None.
          recurrent_mask: `[b, units]`, by which h_{t-1} is multiplied before U at all times, for dropout.
          noise: b rows, with a name of its own for each layer.
          training: whether k is drawn.
        """
        batch, time = x.shape[0] or tf.shape(x)[0], x.shape[1]
        h, c = layer.zero_state(batch) if state is None else state
        x = tf.cast(x, layer.compute_dtype)
        kernel, recurrent_kernel = (
            tf.cast(weight, x.dtype) for weight in (layer.kernel, layer.recurrent_kernel)
        )
        rows = tf.cast(tf.matmul(tf.reshape(x, [-1, x.shape[2]]), kernel), h.dtype) + layer.bias
        gates = tf.transpose(tf.reshape(rows, [batch, time, 4 * layer.units]), [1, 0, 2])
        kept = [self._kept(name, layer, time, noise, training, h.dtype) for name in "hc"]

        def one(before: State, at_time: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> State:
            (h, c), (gates, keep_h, keep_c) = before, at_time
            seen = h if recurrent_mask is None else h * recurrent_mask
            z = gates + tf.cast(tf.matmul(tf.cast(seen, x.dtype), recurrent_kernel), h.dtype)
            i, f, g, o = tf.split(z, 4, 1)
            new = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            out = tf.sigmoid(o) * tf.tanh(new)
            return keep_h * h + (1 - keep_h) * out, keep_c * c + (1 - keep_c) * new

        h, c = tf.scan(one, (gates, *kept), (h, c))
        return tf.cast(tf.transpose(h, [1, 0, 2]), x.dtype), (h[-1], c[-1])

    def _kept(
        self,
        name: str,
        layer: LSTM,
        time: int,
        noise: Noise | None,
        training: bool,
        dtype: tf.DType,
    ) -> tf.Tensor:
        """k `[time, b, units]`, or its mean `[time, 1, 1]`."""
        rate = self.rates[name]
        if not training or rate == 0:
            return tf.fill([time, 1, 1], tf.constant(rate, dtype))
        if noise is None:
            raise ValueError(
                f"{layer.name} keeps its state at a rate of {rate}: give it noise to train"
            )
        drawn = noise(name).bernoulli(rate, [time, layer.units])
        # As numbers: that it cannot transpose booleans oneDNN says on stderr.
        return tf.transpose(tf.cast(drawn, dtype), [1, 0, 2])
