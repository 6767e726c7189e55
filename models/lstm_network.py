"""A recurrent network of tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from models.embedding import embed
from models.gates import gates
from models.initializers import Normal, Uniform
from models.layers import Dropout
from models.lstm import LSTM, State
from models.objective import Noise
from models.zoneout import Zoneout


class LSTMNetwork(keras.layers.Layer):
    """Embedding, LSTM layers, logits of the next token.

    Implements `models.token_network.TokenNetwork`.

    Args:
      vocabulary: number of tokens.
      noise: for the initial weights.
      name: of the network.
      embedding: width of a token's vector.
      widths: of the LSTM layers, from below.
      dropout: rate, on the inputs of each LSTM layer and of the logits (Zaremba et al. 2014); or one rate of each of these, from
        below, `len(widths) + 1`.
      variational: whether it has one mask for all times of a window (Gal & Ghahramani 2016).
      recurrent_dropout: rate on h within each layer, with one mask for all times of a window.
      zoneout_h: rate at which units keep h of the time before (Krueger et al. 2017), on a slower path: see `zoneout.Zoneout`.
      zoneout_c: the same of their cells.
      initial_range: all weights start uniform in ± it (Zaremba et al. 2014); None for ±1/√units of the matrices of LSTM layers
        and logits, no biases, and normal vectors of variance 1, if tied 1 / embedding.
      forget_bias: of the LSTM layers at the start, besides.
      tied: whether the logits' weights are the embedding's (Press & Wolf 2017); the last width is then `embedding`.

    Raises:
      ValueError: if a number is out of range.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        noise: Noise,
        name: str,
        embedding: int = 128,
        widths: Sequence[int] = (256, 256),
        dropout: float | Sequence[float] = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        initial_range: float | None = None,
        forget_bias: float = 1.0,
        tied: bool = False,
    ):
        super().__init__(name=name, autocast=False)  # As in LSTM, because of its state.
        if embedding < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"embedding is {embedding} and widths {list(widths)}: give at least one layer, each at least 1 wide"
            )
        if tied and widths[-1] != embedding:
            raise ValueError(
                f"tied weights need embedding, which is {embedding}, to be the last of widths, {widths[-1]}"
            )
        self.vocabulary = vocabulary
        self.embedding = embedding
        self.tied = tied
        self.context = None
        self.pretrained = False
        self.noise = noise
        self.initial_range = initial_range
        self.layers = [
            LSTM(n, noise(f"lstm_{i}"), f"lstm_{i}", initial_range, forget_bias)
            for i, n in enumerate(widths)
        ]
        self.carry = {name: (layer.units,) for layer in self.layers for name in _names(layer)}
        places = len(widths) + 1
        rates = dropout if isinstance(dropout, Sequence) else [dropout] * places
        if len(rates) != places:
            raise ValueError(
                f"dropout is {list(rates)}: give one rate, or {places}, of the inputs of {len(widths)} layers and of the logits"
            )
        self.dropouts = [Dropout(rate, f"dropout_{i}", variational) for i, rate in enumerate(rates)]
        # Its masks are not in a low precision.
        self.recurrent_dropout = Dropout(recurrent_dropout, "recurrent_dropout", autocast=False)
        self.zoneout = Zoneout(zoneout_h, zoneout_c)
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        # Vectors of variance 1 make Adam's first steps count: 187 of them on pydoc reach 1.61 nats, from variance 1/128
        # it takes 290 to reach 1.92. As weights of the logits they would be too large.
        stddev, noise = self.embedding**-0.5 if self.tied else 1.0, self.noise("embedding")
        self.table = self.add_weight(
            name="embedding",
            shape=(self.vocabulary, self.embedding),
            initializer=Uniform(noise, self.initial_range)
            if self.initial_range
            else Normal(noise, stddev),
        )
        width = self.embedding
        for layer in self.layers:
            layer.build((None, None, width))
            width = layer.units
        if not self.tied:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(width, self.vocabulary),
                initializer=Uniform(self.noise("kernel"), self.initial_range or width**-0.5),
            )
        self.bias = self.add_weight(
            name="bias",
            shape=(self.vocabulary,),
            initializer=Uniform(self.noise("bias"), self.initial_range)
            if self.initial_range
            else "zeros",
        )

    def start(self, rows: int, length: int) -> dict[str, tf.Tensor]:
        """Zeros; of any `length`."""
        zero = {name: (rows, *shape) for name, shape in self.carry.items()}
        return {name: tf.zeros(shape, self.variable_dtype) for name, shape in zero.items()}

    def call(
        self,
        tokens: tf.Tensor,
        state: Mapping[str, tf.Tensor] | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Logits of each next token, and h and c of each layer after the last."""
        x = embed(tf.cast(self.table, self.compute_dtype), tokens)
        after: dict[str, tf.Tensor] = {}
        for i, layer in enumerate(self.layers):
            names = _names(layer)
            before = None if state is None else (state[names[0]], state[names[1]])
            mask = self._recurrent_mask(layer, tokens.shape[0], noise, training)
            x = self._drop(i, x, noise, training)
            x, new = self._run(layer, x, before, mask, noise, training)
            after |= dict(zip(names, new, strict=True))
        x = self._drop(len(self.layers), x, noise, training)
        rows = tf.reshape(x, [-1, x.shape[-1]])
        kernel = tf.cast(self.table if self.tied else self.kernel, x.dtype)
        logits = tf.matmul(rows, kernel, transpose_b=self.tied) + tf.cast(self.bias, x.dtype)
        return tf.reshape(logits, [-1, x.shape[1], self.vocabulary]), after

    def charts(self, tokens: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        """By layer, what its gates do along one text, int32 `[time]`: see `models.gates.gates`."""
        x = embed(tf.cast(self.table, self.compute_dtype), tokens[tf.newaxis])
        charts = {}
        for layer in self.layers:
            charts[layer.name], x = gates(layer, functools.partial(self._run, layer), x)
        return charts

    def _run(
        self,
        layer: LSTM,
        x: tf.Tensor,
        state: State | None,
        mask: tf.Tensor | None = None,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, State]:
        """Outputs of a layer and the state after the last."""
        if not self.zoneout:
            return layer(x, state, mask)
        child = noise(f"{layer.name}_zoneout") if noise is not None else None
        return self.zoneout.run(layer, x, state, mask, noise=child, training=training)

    def _recurrent_mask(
        self, layer: LSTM, rows: int, noise: Noise | None, training: bool
    ) -> tf.Tensor | None:
        if not training or self.recurrent_dropout.rate == 0:
            return None
        ones = tf.ones([rows, layer.units], self.variable_dtype)
        child = noise(f"{layer.name}_recurrent") if noise is not None else None
        return self.recurrent_dropout(ones, noise=child, training=True)

    def _drop(self, i: int, x: tf.Tensor, noise: Noise | None, training: bool) -> tf.Tensor:
        child = noise(f"dropout_{i}") if noise is not None else None
        return self.dropouts[i](x, noise=child, training=training)


def _names(layer: LSTM) -> tuple[str, str]:
    """Under which h and c of a layer are kept."""
    return f"{layer.name}/h", f"{layer.name}/c"
