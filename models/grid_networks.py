"""Encoders and decoders between images and grids of vectors (van den Oord, Vinyals & Kavukcuoglu 2017, section 4.1).

They are called as those of `models.image_networks`, but a code is a grid `[rows, columns, vector]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.layers import built, convolution
from models.objective import Noise


class GridNetwork(keras.layers.Layer):
    """A chain of layers, from examples `[*inputs]` to `[*outputs]`; a `_Residual` is one of them."""

    def __init__(self, name: str, chain: Sequence[keras.layers.Layer], inputs: Sequence[int]):
        super().__init__(name=name)
        self.chain, self.inputs = list(chain), tuple(inputs)
        self.build((None, *inputs))

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        for layer in self.chain:
            shape = built(layer, shape)
        self.outputs = shape

    def call(
        self,
        x: tf.Tensor,
        *,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """`[b, rows, columns, channels]` of both; nothing is drawn and nothing differs in training."""
        for layer in self.chain:
            x = layer(x)
        return x


class ResidualEncoder(GridNetwork):
    """Images -> grids `[b, height / 2^stages, width / 2^stages, outputs]`.

    `stages` 4×4 convolutions of stride 2 with ReLU, `blocks` residual blocks, a linear 1×1 convolution.

    Args:
      shape: `[height, width, channels]` of an image.
      outputs: length of a vector.
      noise: one row, for initial weights.
      name: of the network.
      width: channels of all layers.
      stages: how often the sides are halved.
      blocks: residual blocks: ReLU, 3×3 convolution, ReLU, 1×1 convolution, and the input added.

    Raises:
      ValueError: if the sides cannot be halved that often.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        stages: int = 2,
        blocks: int = 2,
    ):
        _grid(shape, stages)
        chain: list[keras.layers.Layer] = [
            convolution(width, 4, noise, f"convolution_{i}", strides=2, activation="relu")
            for i in range(stages)
        ]
        chain += [_Residual(width, noise(f"block_{i}"), f"block_{i}") for i in range(blocks)]
        chain.append(convolution(outputs, 1, noise, "vectors"))
        super().__init__(name, chain, shape)


class ResidualDecoder(GridNetwork):
    """Grids `[b, height / 2^stages, width / 2^stages, inputs]` -> images `[b, *shape]`, linear at the end.

    A 3×3 convolution, `blocks` residual blocks and `stages` 4×4 transposed convolutions of stride 2 with ReLU but for the
    last. Arguments are those of `ResidualEncoder`, `inputs` the length of a vector.
    """

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        stages: int = 2,
        blocks: int = 2,
    ):
        grid = _grid(shape, stages)
        chain: list[keras.layers.Layer] = [convolution(width, 3, noise, "vectors")]
        chain += [_Residual(width, noise(f"block_{i}"), f"block_{i}") for i in range(blocks)]
        for stage in range(stages):
            last = stage == stages - 1
            chain.append(
                convolution(
                    shape[-1] if last else width,
                    4,
                    noise,
                    f"convolution_{stage}",
                    strides=2,
                    activation=None if last else "relu",
                    transposed=True,
                )
            )
        super().__init__(name, chain, (*grid, inputs))


class _Residual(keras.layers.Layer):
    """x + c(ReLU(d(ReLU(x)))) with d of 3×3 and c of 1×1."""

    def __init__(self, width: int, noise: Noise, name: str):
        super().__init__(name=name)
        self.wide = convolution(width, 3, noise, "wide")
        # With a bias grappler fuses convolution, bias and sum, loses a node which the gradient reads, and logs "remapper
        # failed" (TensorFlow 2.21).
        self.narrow = convolution(width, 1, noise, "narrow", use_bias=False)

    def build(self, input_shape: Sequence[Any]) -> None:
        built(self.narrow, built(self.wide, input_shape[1:]))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.narrow(tf.nn.relu(self.wide(tf.nn.relu(x))))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return tuple(input_shape)


def refuse_grids(network: keras.layers.Layer, where: str) -> None:
    """For models whose codes are vectors.

    Raises:
      ValueError: if those of the network, which is called `where`, are grids.
    """
    if isinstance(network, GridNetwork):
        raise ValueError(
            f"{where} is a {type(network).__name__}, whose code is a grid: choose another network, or VQVAE"
        )


def _grid(shape: Sequence[int], stages: int) -> tuple[int, int]:
    """Rows and columns."""
    height, width = shape[:2]
    if stages < 1 or height % 2**stages or width % 2**stages:
        raise ValueError(
            f"images of {height}×{width} cannot be halved {stages} times: crop or pad them to a multiple of a power of 2, "
            "or set stages, at least 1"
        )
    return height // 2**stages, width // 2**stages
