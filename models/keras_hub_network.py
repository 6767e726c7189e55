"""Causal language models of keras-hub as networks of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import keras
import tensorflow as tf

from models import pretrained_tokens
from models.causal_attention import put
from models.initializers import Uniform
from models.objective import Noise

LEARNT = ("lora_kernel_a", "lora_kernel_b")
"""Names of the weights of Keras' low-rank adaptation."""


class Preset(Protocol):
    """A model as it was saved: see `input_pipeline.keras_hub_preset`."""

    place: str
    """Where it was, for messages."""

    def load(self) -> tuple[keras.Model, float]:
        """It without dropout, and the largest rate that it had."""


class KerasHubNetwork(keras.layers.Layer):
    """A pretrained model, to be trained further, whole or by Keras' low-rank adaptation (Hu et al. 2021).

    Its own dropout is off: it would draw the same numbers on every replica. Texts are drawn by passes over all tokens so far.
    Implements `models.token_network.TokenNetwork`.

    Args:
      vocabulary: number of tokens of the data, which must be encoded by the model's own tokenizer; the others that the model has
        are left out.
      noise: for what is added to the weights.
      name: of the network.
      preset: the model.
      lora_rank: if given, all weights of the model stay, and a change of this rank is learnt of some; else all are learnt.
      lora_alpha: the change's factor is alpha / rank.
      lora_layers: names of the layers, in each block, that are changed.

    Raises:
      ValueError: if a number is out of range, no layer has such a name, or the data has more tokens than the model.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        noise: Noise,
        name: str,
        preset: Preset,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        lora_layers: Sequence[str] = ("query", "value"),
    ):
        super().__init__(name=name)
        self.model, rate = preset.load()
        backbone = self.model.backbone
        self.notes = pretrained_tokens.check(vocabulary, backbone.vocabulary_size, preset.place)
        self.vocabulary = vocabulary
        self.context = getattr(backbone, "max_sequence_length", None)
        self.carry: Mapping[str, Sequence[int]] = {}
        self.pretrained = True
        if rate:
            self.notes.append(
                f"the dropout of {preset.place}, up to {rate}, is off: it is not the same on replicas"
            )
        if lora_rank is not None:
            self._adapt(lora_rank, lora_alpha, lora_layers, noise)
        self.built = True

    def _adapt(self, rank: int, alpha: float, names: Sequence[str], noise: Noise) -> None:
        if rank < 1 or not alpha > 0:
            raise ValueError(
                f"lora_rank is {rank} and lora_alpha {alpha}: rank must be at least 1, alpha above 0"
            )
        layers = [
            layer
            for layer in self.model.backbone._flatten_layers(include_self=False)
            if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense)
        ]
        unknown = sorted(set(names) - {layer.name for layer in layers})
        if unknown or not names:
            known = ", ".join(sorted({layer.name for layer in layers}))
            raise ValueError(f"lora_layers is {list(names)}: choose one or more of {known}")
        for layer in layers:
            if layer.name in names:
                start = Uniform(noise(layer.path), 1 / math.sqrt(inputs_of(layer)))
                layer.enable_lora(rank, a_initializer=start, lora_alpha=alpha)
        for variable in self.variables:
            variable.trainable = variable.name in LEARNT

    def start(self, rows: int, length: int) -> dict[str, tf.Tensor]:
        """No tokens yet: "position" 0, scalar int32, and room for "tokens", int32 `[rows, length]`."""
        return {"tokens": tf.zeros([rows, length], tf.int32), "position": tf.zeros([], tf.int32)}

    def call(
        self,
        tokens: tf.Tensor,
        state: Mapping[str, tf.Tensor] | None = None,
        *,
        noise: Noise | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Logits of each next token; and the state, if one was given, else {}."""
        if state is None:
            return self._logits(tokens, training), {}
        time, position = tokens.shape[1], state["position"]
        known = put(tokens, state["tokens"], position, 1)
        # No token sees those after it, so what fills the rest does not matter.
        logits = self._logits(known, training)
        size = [tf.shape(logits)[0], time, self.vocabulary]
        logits = tf.slice(logits, [0, position, 0], size)
        return logits, {"tokens": known, "position": position + time}

    def _logits(self, tokens: tf.Tensor, training: bool) -> tf.Tensor:
        inputs = {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
        return self.model(inputs, training=training)[:, :, : self.vocabulary]


def inputs_of(layer: keras.layers.Dense | keras.layers.EinsumDense) -> int:
    """How many numbers each output of a built layer is a sum over."""
    shape = layer.kernel.shape
    if isinstance(layer, keras.layers.Dense):
        return shape[0]
    operands, output = layer.equation.split("->")
    axes = zip(operands.split(",")[1], shape, strict=True)
    return math.prod(n for axis, n in axes if axis not in output)
