"""The products of a transformer, which may be adapted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.initializers import Normal, Uniform
from models.layers import Dropout
from models.lora import WEIGHTS, LoRA
from models.objective import Noise


class Projection(keras.layers.Dense):
    """x W + b; with `lora` x W + b + alpha / rank · (dropout(x) A) B.

    Args:
      units: of outputs.
      noise: for initial weights.
      name: of the layer, and of its noise.
      stddev: of W's initial values, which are normal.
      use_bias: whether there is b, zero at first.
      lora: how it is adapted; None for not at all.
    """

    def __init__(
        self,
        units: int,
        noise: Noise,
        name: str,
        *,
        stddev: float,
        use_bias: bool,
        lora: LoRA | None = None,
    ):
        super().__init__(
            units, use_bias=use_bias, kernel_initializer=Normal(noise(name), stddev), name=name
        )
        self.lora, self.noise = lora, noise(name)
        self.dropout = None if lora is None else Dropout(lora.dropout, "dropout")

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        if self.lora is None:
            return
        name_a, name_b = WEIGHTS
        inputs, rank = input_shape[-1], self.lora.rank
        start = Uniform(self.noise(name_a), 1 / math.sqrt(inputs or 1))
        self.a = self.add_weight(name=name_a, shape=(inputs, rank), initializer=start)
        self.b = self.add_weight(name=name_b, shape=(rank, self.units), initializer="zeros")

    def call(
        self, x: tf.Tensor, *, noise: Noise | None = None, training: bool = False
    ) -> tf.Tensor:
        """`x` `[b, …, inputs]` -> `[b, …, units]`; `noise` has b rows, for the dropout of an adaptation."""
        y = super().call(x)
        if self.lora is None or self.dropout is None:
            return y
        x = self.dropout(x, noise=noise, training=training)
        return y + keras.ops.matmul(keras.ops.matmul(x, self.a) * self.lora.factor, self.b)


def child(noise: Noise | None, name: str, training: bool) -> dict[str, Any]:
    """The arguments of a part's call that say how it drops."""
    return {"noise": None if noise is None else noise(name), "training": training}
