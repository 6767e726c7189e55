"""What a transformer does to each token by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from models.lora import LoRA, of
from models.objective import Noise
from models.projection import Projection, child

ACTIVATIONS = ("gelu", "swiglu")
# x σ(a x + b x³) is x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
LINEAR = math.sqrt(8 / math.pi)
CUBIC = 0.044715 * LINEAR


class FeedForward(keras.layers.Layer):
    """Two products with an activation between them.

    Args:
      width: of inputs and outputs.
      hidden: how wide it is in between.
      activation: "gelu" (Hendrycks & Gimpel 2016, by the approximation with tanh, as GPT-2), or "swiglu" (Shazeer 2020):
        x W₁ σ(x W₁) · x W₂, whose first product makes both factors, so that it is twice as wide.
      noise: for initial weights.
      name: of the layer.
      stddev: of the initial weights of the first product.
      stddev_out: of those of the second.
      use_bias: whether the products have biases.
      lora: how those products are adapted that it names; None for none.

    Raises:
      ValueError: if there is no such activation.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        noise: Noise,
        name: str,
        *,
        stddev: float,
        stddev_out: float,
        use_bias: bool,
        lora: LoRA | None = None,
    ):
        super().__init__(name=name)
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation is "{activation}": it must be "gelu" or "swiglu"')
        self.width, self.units = width, hidden
        self.gated = activation == "swiglu"
        wide = hidden * (2 if self.gated else 1)
        adapted = of(lora, "feed_forward/hidden")
        self.hidden = Projection(
            wide, noise, "hidden", stddev=stddev, use_bias=use_bias, lora=adapted
        )
        adapted = of(lora, "feed_forward/out")
        self.out = Projection(
            width, noise, "out", stddev=stddev_out, use_bias=use_bias, lora=adapted
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.hidden.build((None, self.width))
        self.out.build((None, self.units))

    def call(
        self, x: tf.Tensor, *, noise: Noise | None = None, training: bool = False
    ) -> tf.Tensor:
        """`[b, …, width]` -> the same; `noise` has b rows, for the dropout of an adaptation."""
        x = self.hidden(x, **child(noise, "hidden", training))
        if self.gated:
            gate, x = tf.split(x, 2, -1)
            x = tf.nn.silu(gate) * x
        else:
            x = gelu(x)
        return self.out(x, **child(noise, "out", training))


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tf.Tensor:
    """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), differentiable once.

    The gradient is written out: with TensorFlow's own a step of 4 layers of 128 takes 8 % longer on CPU.
    """
    square = tf.square(x)
    if x.dtype == tf.float16:  # It overflows from 256 on, and share is 0 or 1 from 100 on.
        square = tf.minimum(square, 1e4)
    share = tf.sigmoid(x * (LINEAR + CUBIC * square))
    y = x * share

    def gradient(d_y: tf.Tensor) -> tf.Tensor:
        return d_y * (share + y * (1 - share) * (LINEAR + 3 * CUBIC * square))

    return y, gradient
