"""A recurrent language model of token windows, trained by teacher forcing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from models.categorical import draw
from models.embedding import embed
from models.initializers import Normal, Uniform
from models.layers import Dropout
from models.lstm import LSTM, State
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase

CLIPPED_ADAM = Optimizer(clip_norm=1.0)


class RecurrentNetwork(keras.layers.Layer):
    """Embedding, LSTM layers, logits of the next token; dropout on all that is not recurrent (Zaremba et al. 2014).

    Args:
      vocabulary: number of tokens.
      embedding: width of a token's vector.
      widths: of the LSTM layers, from below.
      dropout: rate, on the inputs of each LSTM layer and of the logits.
      tied: whether the logits' weights are the embedding's (Press & Wolf 2017); the last width is then `embedding`.
      noise: for the initial weights.
      name: of the network.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        widths: Sequence[int],
        *,
        dropout: float,
        tied: bool,
        noise: Noise,
        name: str,
    ):
        super().__init__(name=name, autocast=False)  # As in LSTM, because of its state.
        self.vocabulary = vocabulary
        self.embedding = embedding
        self.tied = tied
        self.noise = noise
        self.layers = [LSTM(n, noise(f"lstm_{i}"), f"lstm_{i}") for i, n in enumerate(widths)]
        self.dropouts = [Dropout(dropout, f"dropout_{i}") for i in range(len(widths) + 1)]
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        # Vectors of variance 1 make Adam's first steps count: 187 of them on pydoc reach 1.61 nats, from variance 1/128
        # it takes 290 to reach 1.92. As weights of the logits they would be too large.
        stddev = self.embedding**-0.5 if self.tied else 1.0
        self.table = self.add_weight(
            name="embedding",
            shape=(self.vocabulary, self.embedding),
            initializer=Normal(self.noise("embedding"), stddev),
        )
        width = self.embedding
        for layer in self.layers:
            layer.build((None, None, width))
            width = layer.units
        if not self.tied:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(width, self.vocabulary),
                initializer=Uniform(self.noise("kernel"), width**-0.5),
            )
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary,), initializer="zeros")

    def call(
        self,
        tokens: tf.Tensor,
        states: Sequence[State] | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, list[State]]:
        """Logits of each next token.

        Args:
          tokens: int32 `[b, time]`.
          states: of the LSTM layers before the first token, zero if None.
          noise: b rows, for dropout.
          training: whether to drop.

        Returns:
          Logits `[b, time, vocabulary]` in the compute dtype, and the states after the last token.
        """
        x = embed(tf.cast(self.table, self.compute_dtype), tokens)
        after = []
        for i, layer in enumerate(self.layers):
            x, state = layer(self._drop(i, x, noise, training), states[i] if states else None)
            after.append(state)
        x = self._drop(len(self.layers), x, noise, training)
        rows = tf.reshape(x, [-1, x.shape[-1]])
        kernel = tf.cast(self.table if self.tied else self.kernel, x.dtype)
        logits = tf.matmul(rows, kernel, transpose_b=self.tied) + tf.cast(self.bias, x.dtype)
        return tf.reshape(logits, [-1, x.shape[1], self.vocabulary]), after

    def _drop(self, i: int, x: tf.Tensor, noise: Noise | None, training: bool) -> tf.Tensor:
        child = noise(f"dropout_{i}") if noise is not None else None
        return self.dropouts[i](x, noise=child, training=training)


class LSTMLanguageModel:
    """Predicts each token of a window from those before it. Implements `objective.Objective`, `Carrying` and `Summarised`.

    Along streams of text the state is carried from a window to the next, and the gradient is cut between them (truncated
    back-propagation through time; Zaremba et al. 2014). Of other windows it is zero at the start of each, which the first
    tokens pay for.

    Args:
      element_spec: of the data, with integers "tokens" `[window + 1]` and their cardinality, the vocabulary.
      embedding: width of a token's vector.
      widths: of the LSTM layers, from below.
      dropout: rate on all connections that are not recurrent.
      tied: whether embedding and logits share their weights; `embedding` is then the last width.
      optimizer: moves the network.
      prompt: tokens that samples go on from, of which they do not contain any.
      sample_length: tokens of a sample.
      temperature: of samples: below 1 the likely tokens become likelier.
      top_k: if given, samples are drawn from the k likeliest tokens.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        embedding: int = 128,
        widths: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        tied: bool = False,
        optimizer: Optimizer = CLIPPED_ADAM,
        prompt: Sequence[int] = (0,),
        sample_length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
    ):
        self.vocabulary = _vocabulary(element_spec)
        self.streamed = "begins" in element_spec
        if embedding < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"embedding is {embedding} and widths {list(widths)}: give at least one layer, each at least 1 wide"
            )
        if tied and widths[-1] != embedding:
            raise ValueError(
                f"tied weights need embedding, which is {embedding}, to be the last of widths, {widths[-1]}"
            )
        if not prompt or min(prompt) < 0 or max(prompt) >= self.vocabulary:
            raise ValueError(
                f"prompt is {list(prompt)}: give one or more tokens from 0 to {self.vocabulary - 1}"
            )
        if top_k is not None and not 1 <= top_k <= self.vocabulary:
            raise ValueError(f"top_k is {top_k}: it must be None or from 1 to {self.vocabulary}")
        if temperature <= 0 or sample_length < 1:
            raise ValueError(
                f"temperature is {temperature} and sample_length {sample_length}: both must be positive"
            )
        self.embedding = embedding
        self.widths = tuple(widths)
        self.dropout = dropout
        self.tied = tied
        self.optimizer = optimizer
        self.prompt = tuple(prompt)
        self.sample_length = sample_length
        self.temperature = temperature
        self.top_k = top_k

    def build(self, noise: Noise) -> None:
        self.network = RecurrentNetwork(
            self.vocabulary,
            self.embedding,
            self.widths,
            dropout=self.dropout,
            tied=self.tied,
            noise=noise("network"),
            name="network",
        )
        self.networks = {"network": self.network}
        self.carry = {
            name: (layer.units,) for layer in self.network.layers for name in _names(layer)
        }
        self.phases = [
            Phase(
                name="next_token",
                variables=self.network.trainable_variables,
                loss=self.loss,
                optimizer=self.optimizer,
            )
        ]

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """-log p of a window's targets, in nats divided by the length of a window, `[b]`; the metrics are the same in bits, the
        share of targets that were the likeliest tokens, and the carried state."""
        nats, right, _, carried = self._predict(batch, noise, training=True)
        loss = tf.reduce_mean(nats, 1)
        metrics = {"bits_per_token": loss / math.log(2), "accuracy": tf.reduce_mean(right, 1)}
        return loss, metrics | carried

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Of each place in a window, `[b, window]`: "nats", "right" and "targets", for `summary`; and the carried state."""
        nats, right, targets, carried = self._predict(batch, noise, training=False)
        return {"nats": nats, "right": right, "targets": targets} | carried

    def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of all targets together: "loss" in nats a token, "bits_per_token", "perplexity", its exponential, and "accuracy", the
        share of targets that were the likeliest token.

        Of windows that begin with no state also the loss at places 1, 2, 4, … in nats, "loss_at_1" and so on.
        """
        nats, right, targets = means["nats"], means["right"], means["targets"]
        loss = nats.sum() / targets.sum()
        metrics = {
            "loss": loss,
            "bits_per_token": loss / math.log(2),
            "perplexity": np.exp(loss),
            "accuracy": right.sum() / targets.sum(),
        }
        if not self.streamed:
            places = [2**i for i in range(len(nats).bit_length())]
            metrics |= {f"loss_at_{place}": nats[place - 1] for place in places}
        return metrics

    def sample(self, noise: Noise) -> tf.Tensor:
        """Tokens drawn one after the other, each fed back; int32 `[rows, sample_length]`."""
        uniform = tf.transpose(noise("token").uniform([self.sample_length]))
        prompt = tf.tile(tf.constant([self.prompt], tf.int32), [noise.rows, 1])
        logits, states = self.network(prompt)

        def body(t, logits, states, tokens):
            drawn = draw(tf.cast(logits, noise.dtype), uniform[t], self.temperature, self.top_k)
            logits, states = self.network(drawn[:, tf.newaxis], states)
            return t + 1, logits[:, 0], states, tokens.write(t, drawn)

        tokens = tf.TensorArray(tf.int32, self.sample_length, element_shape=[noise.rows])
        *_, tokens = tf.while_loop(
            lambda t, *_: t < self.sample_length,
            body,
            (0, logits[:, -1], states, tokens),
            maximum_iterations=self.sample_length,
        )
        return tf.transpose(tokens.stack())

    def _predict(
        self, batch: Batch, noise: Noise, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """-log p of targets in nats, 1 where they were the likeliest, 1 where there are any, `[b, window]`; and what is carried."""
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits, states = self.network(
            inputs, self._states(batch), noise=noise("network"), training=training
        )
        logits = tf.cast(logits, noise.dtype)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        right = tf.equal(tf.argmax(logits, 2, output_type=targets.dtype), targets)
        there = tf.ones_like(nats)
        if "targets" in batch:
            there = tf.sequence_mask(batch["targets"], targets.shape[1], noise.dtype)
        carried = {
            name: value
            for layer, state in zip(self.network.layers, states, strict=True)
            for name, value in zip(_names(layer), state, strict=True)
            if name in batch
        }
        return nats * there, tf.cast(right, noise.dtype) * there, there, carried

    def _states(self, batch: Batch) -> list[State] | None:
        """Of the layers before a window, if they are carried: zero where a stream begins."""
        if not batch.keys() >= self.carry.keys():
            return None
        goes_on = ~batch["begins"][:, tf.newaxis]

        def carried(name: str) -> tf.Tensor:
            return tf.where(goes_on, batch[name], tf.zeros_like(batch[name]))

        return [
            (carried(h), carried(c)) for h, c in (_names(layer) for layer in self.network.layers)
        ]


def _names(layer: LSTM) -> tuple[str, str]:
    """Under which h and c of a layer are carried."""
    return f"{layer.name}/h", f"{layer.name}/c"


def _vocabulary(element_spec: Mapping[str, Feature]) -> int:
    tokens = element_spec.get("tokens")
    if (
        tokens is None
        or tokens.cardinality is None
        or len(tokens.shape) != 1
        or tokens.shape[0] < 2
    ):
        raise ValueError(
            'a language model needs a feature "tokens" [window + 1] with its vocabulary\'s size as cardinality; '
            f"the data has {', '.join(f'{name}: {feature}' for name, feature in element_spec.items())}"
        )
    return tokens.cardinality
