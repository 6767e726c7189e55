"""Convolutional encoders and decoders of images, which the GAN and the VAE share.

An encoder maps images `[b, height, width, channels]` to `[b, outputs]`, a decoder codes `[b, inputs]` to images; both end in a
linear layer. Networks of images, these and those of `models.mlp`, are called
`network(x, noise=…, training=…, update_statistics=…)` (see `layers.GhostBatchNorm` for the last) and are built when made,
with initial weights from `noise`. Those of classes, in `models.resnet_networks`, are called with `labels=…` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from models.layers import Dropout, GhostBatchNorm, built, convolution, dense, flat
from models.objective import Feature, Noise

NetworkFactory = Callable[..., keras.layers.Layer]
"""`factory(image_shape, outputs_or_inputs, noise=…, name=…)` makes a built network of the form above; `classes=…` too, if the
network may be class-conditional."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 128


def image_shape(element_spec: Mapping[str, Feature]) -> tuple[int, int, int]:
    """`(height, width, channels)` of the feature "image".

    Raises:
      ValueError: if there is none, or it is not a floating picture of three dimensions with 1 or 3 channels.
    """
    feature = element_spec.get("image")
    if feature is None:
        raise ValueError(
            f'the data has {", ".join(sorted(element_spec)) or "no features"} but no "image", which this model is of'
        )
    if len(feature.shape) != 3 or not feature.dtype.startswith("float"):
        raise ValueError(
            f'the feature "image" is {feature.dtype} {list(feature.shape)}: it must be a float in [0, 1] of '
            "[height, width, channels]"
        )
    height, width, channels = feature.shape
    if channels not in (1, 3):
        raise ValueError(
            f"images are {height}×{width}×{channels}: they must have 1 channel, grey, or 3, colours"
        )
    return height, width, channels


def count_stages(shape: Sequence[int], stages: int | None) -> int:
    """How often a convolutional network halves or doubles images of `[height, width, channels]`.

    Args:
      shape: of an image.
      stages: the wish, or None for as many as leave a side of 4 to 7, as DCGAN does.

    Raises:
      ValueError: if the images are not square, of 8 to 128 pixels, and divisible that often.
    """
    height, width, channels = shape
    if (
        height != width
        or not SMALLEST_SIDE <= height <= LARGEST_SIDE
        or (stages is not None and stages < 1)
    ):
        raise ValueError(
            f"images are {height}×{width}×{channels}, stages {stages}: convolutional networks need square images with a "
            f"side from {SMALLEST_SIDE} to {LARGEST_SIDE} and at least 1 stage; crop or resize the "
            "images, or choose the MLP networks"
        )
    chosen = int(math.log2(height / 4)) if stages is None else stages
    if height % 2**chosen:
        raise ValueError(
            f"images of {height}×{height} cannot be halved {chosen} times: crop or pad them to a multiple of {2**chosen}, "
            "or set stages"
        )
    return chosen


class ConvolutionalEncoder(keras.layers.Layer):
    """The DCGAN discriminator (Radford, Metz & Chintala 2016): 4×4 convolutions of stride 2, LeakyReLU 0.2, a dense layer.

    Args:
      shape: `[size, size, channels]`, size = base · 2^stages from 8 to 128.
      outputs: length of the result.
      noise: one row, for initial weights.
      name: of the network.
      width: channels after the first stage, doubled at each further one.
      stages: how often the size is halved; None for a base from 4 to 7.
      group: examples a ghost batch norm group, after all stages but the first; 0 for none.
      dropout: rate after each stage.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        stages: int | None = None,
        group: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__(name=name)
        self.convolutions, self.norms, self.dropouts = [], [], []
        for stage in range(count_stages(shape, stages)):
            normed = group > 0 and stage > 0
            self.convolutions.append(
                convolution(
                    width * 2**stage,
                    4,
                    noise,
                    f"convolution_{stage}",
                    strides=2,
                    use_bias=not normed,
                )
            )
            self.norms.append(_norm(group if normed else 0, f"norm_{stage}"))
            self.dropouts.append(Dropout(dropout, f"dropout_{stage}"))
        self.dense = dense(outputs, noise, "dense")
        self.build((None, *shape))

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            shape = built(norm, built(layer, shape))
        built(self.dense, [math.prod(shape)])

    def call(
        self,
        x: tf.Tensor,
        *,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """Images `[b, size, size, channels]` -> `[b, outputs]`; `noise`, b rows, is drawn from if there is dropout."""
        for layer, norm, dropout in zip(self.convolutions, self.norms, self.dropouts, strict=True):
            x = _normalise(norm, layer(x), training, update_statistics)
            x = leaky_relu(x)
            x = dropout(x, noise=noise and noise(dropout.name), training=training)
        return self.dense(flat(x))


class ConvolutionalDecoder(keras.layers.Layer):
    """The DCGAN generator (Radford, Metz & Chintala 2016) before its tanh: a dense layer, 4×4 transposed convolutions, ReLU.

    Args:
      shape: `[size, size, channels]`, size = base · 2^stages from 8 to 128.
      inputs: length of the code.
      noise: one row, for initial weights.
      name: of the network.
      width: channels before the last stage, twice as many before each stage that goes before it.
      stages: how often the size is doubled; None for a base from 4 to 7.
      group: examples a ghost batch norm group, after all layers but the last; 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        stages: int | None = None,
        group: int = 0,
    ):
        super().__init__(name=name)
        stages = count_stages(shape, stages)
        base, channels = shape[0] // 2**stages, [width * 2**i for i in reversed(range(stages))]
        self.base_shape = (base, base, channels[0])
        self.dense = dense(math.prod(self.base_shape), noise, "dense", use_bias=group == 0)
        self.norms = [_norm(group, f"norm_{stage}") for stage in range(stages)]
        self.convolutions = [
            convolution(
                filters,
                4,
                noise,
                f"convolution_{stage}",
                strides=2,
                use_bias=group == 0 or stage == stages - 1,
                transposed=True,
            )
            for stage, filters in enumerate([*channels[1:], shape[-1]])
        ]
        self.build((None, inputs))

    def build(self, input_shape: Sequence[Any]) -> None:
        built(self.dense, input_shape[1:])
        shape: tuple[int, ...] = self.base_shape
        for norm, layer in zip(self.norms, self.convolutions, strict=True):
            shape = built(layer, built(norm, shape))

    def call(
        self,
        x: tf.Tensor,
        *,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """Codes `[b, inputs]` -> `[b, size, size, channels]`; nothing is drawn from `noise`."""
        x = tf.reshape(self.dense(x), [-1, *self.base_shape])
        for norm, layer in zip(self.norms, self.convolutions, strict=True):
            x = tf.nn.relu(_normalise(norm, x, training, update_statistics))
            x = layer(x)
        return x


def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """LeakyReLU of slope 0.2, `[b, …]`.

    The reshapes keep grappler from fusing it with a convolution's bias: in a discriminator it then loses a node which the
    gradient reads, and logs "remapper failed" (TensorFlow 2.21). As fast as without; `tf.maximum(x, 0.2 * x)` is slower.
    """
    return tf.reshape(tf.nn.leaky_relu(tf.reshape(x, [-1]), 0.2), [-1, *x.shape[1:]])


def _norm(group: int, name: str) -> keras.layers.Layer:
    return GhostBatchNorm(group, name) if group else keras.layers.Identity(name=name)


def _normalise(
    norm: keras.layers.Layer, x: tf.Tensor, training: bool, update_statistics: bool
) -> tf.Tensor:
    if isinstance(norm, GhostBatchNorm):
        return norm(x, training=training, update_statistics=update_statistics)
    return x
