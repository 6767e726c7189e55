"""What the gates of an LSTM do along a text."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models.lstm import LSTM, State

UNITS = 24
"""Of a layer that are shown."""


def gates(
    layer: LSTM, run: Callable[[tf.Tensor, State], tuple[tf.Tensor, State]], x: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """What a layer does along one text, which it reads from its start: the gates and the cells of some units.

    They are the units whose cells vary the most, those that remember longest first, the same in each row.

    Args:
      layer: with its weights.
      run: what the layer makes of inputs `[1, 1, inputs]` and the state before: outputs, and the state after.
      x: `[1, time, inputs]`.

    Returns:
      Name -> numbers `[rows, time]`, the gates' from 0 to 1, tanh of the cell from -1 to 1; and the outputs
      `[1, time, units]`.
    """
    zero = layer.zero_state(1)

    def one(state: State, x: tf.Tensor) -> State:
        return run(x[:, tf.newaxis], state)[1]

    h, c = tf.scan(one, tf.transpose(x, [1, 0, 2]), zero)  # [time, 1, units]
    before = tf.concat([zero[0], h[:-1, 0]], 0)
    weights = (layer.kernel, layer.recurrent_kernel, layer.bias)
    kernel, recurrent_kernel, bias = (tf.cast(weight, h.dtype) for weight in weights)
    z = tf.cast(x[0], h.dtype) @ kernel + before @ recurrent_kernel + bias
    i, f, _, o = tf.split(z, 4, 1)
    cell = tf.tanh(c[:, 0])
    chosen = tf.math.top_k(tf.math.reduce_variance(cell, 0), min(UNITS, layer.units)).indices
    memory = tf.reduce_mean(tf.sigmoid(f), 0)
    chosen = tf.gather(chosen, tf.argsort(tf.gather(memory, chosen), direction="DESCENDING"))
    panels = {
        "input gate": tf.sigmoid(i),
        "forget gate": tf.sigmoid(f),
        "output gate": tf.sigmoid(o),
        "tanh of the cell": cell,
    }
    rows = {name: tf.gather(tf.transpose(panel), chosen) for name, panel in panels.items()}
    return rows, tf.transpose(h, [1, 0, 2])
