"""Fully connected encoders and decoders of images; see `models.image_networks` for how they are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.layers import built, dense, flat
from models.objective import Noise


class _MLP(keras.layers.Layer):
    """Layers of `widths` with `activation`, then a linear one: `[b, *inputs]` -> `[b, *outputs]`."""

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        noise: Noise,
        name: str,
        widths: Sequence[int],
        activation: str,
    ):
        super().__init__(name=name)
        self.outputs = tuple(outputs)
        self.chain = [
            dense(width, noise, f"hidden_{number}", activation)
            for number, width in enumerate(widths)
        ]
        self.chain.append(dense(math.prod(outputs), noise, "dense"))
        self.build((None, *inputs))

    def build(self, input_shape: Sequence[Any]) -> None:
        shape: tuple[int, ...] = (math.prod(input_shape[1:]),)
        for layer in self.chain:
            shape = built(layer, shape)

    def call(
        self,
        x: tf.Tensor,
        *,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """`[b, *inputs]` -> `[b, *outputs]`; nothing is drawn and nothing differs in training."""
        x = flat(x)
        for layer in self.chain:
            x = layer(x)
        return tf.reshape(x, [-1, *self.outputs])


class MLPEncoder(_MLP):
    """Images of any `shape` `[b, *shape]` -> `[b, outputs]`, by layers of `widths` with `activation` and a linear one."""

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        noise: Noise,
        name: str,
        widths: Sequence[int] = (200, 200),
        activation: str = "tanh",
    ):
        super().__init__(
            shape, (outputs,), noise=noise, name=name, widths=widths, activation=activation
        )


class MLPDecoder(_MLP):
    """Codes `[b, inputs]` -> images `[b, *shape]`, by layers of `widths` with `activation` and a linear one."""

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        *,
        noise: Noise,
        name: str,
        widths: Sequence[int] = (200, 200),
        activation: str = "tanh",
    ):
        super().__init__(
            (inputs,), shape, noise=noise, name=name, widths=widths, activation=activation
        )
