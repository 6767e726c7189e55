"""Residual generators and discriminators of images (Miyato et al. 2018, SNGAN), class-conditional ones too.

Classes enter a generator through its batch norm, and a discriminator through the inner product of its features with an
embedding of the class (Miyato & Koyama 2018). Images are square with 1 or 3 channels, of a side = base · 2^stages from 8 to 128:
28 is 7 → 14 → 28. With `classes`, networks are called with `labels`, integers `[b]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.attention import SelfAttention
from models.image_networks import count_stages
from models.layers import GhostBatchNorm, built
from models.minibatch_stddev import MinibatchStddev
from models.objective import Noise
from models.spectral_norm import Convolution, Dense, DoubledConvolution, HalvedConvolution

RESIDUAL_SCALE = 2.0
"""Of the variance of the residual path's initial weights, as in the paper's code; the shortcut's is 1."""


class ResNetGenerator(keras.layers.Layer):
    """A dense layer, blocks that double the size, batch norm, ReLU, a 3×3 convolution; before its tanh.

    Args:
      shape: `[size, size, 1 or 3]`.
      inputs: length of the code.
      noise: one row, for initial weights.
      name: of the network.
      width: channels of the last block, twice as many in each block before it.
      largest_width: but no more than these. The paper's generator of 32×32 has 256 everywhere.
      stages: how often the size is doubled; None for a base from 4 to 7.
      group: examples a ghost batch norm group.
      classes: how many there are; 0 for a generator without.
      spectral: whether there is spectral norm (Zhang et al. 2019).
      attention: side of the feature map over which there is self-attention, after the block that makes it; 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        largest_width: int = 1024,
        stages: int | None = None,
        group: int = 16,
        classes: int = 0,
        spectral: bool = False,
        attention: int = 0,
    ):
        super().__init__(name=name)
        stages = count_stages(shape, stages)
        _check_widths("generator", width=width, largest_width=largest_width)
        base = shape[0] // 2**stages
        widths = [min(width * 2**i, largest_width) for i in reversed(range(stages))]
        _check_attention(attention, [base * 2**i for i in range(1, stages + 1)], "generator")
        self.base_shape = (base, base, widths[0])
        self.dense = Dense(math.prod(self.base_shape), noise, "dense", spectral=spectral)
        self.chain: list[keras.layers.Layer] = []
        for stage, channels in enumerate(widths):
            self.chain.append(
                _Up(channels, noise, f"block_{stage}", group, classes, spectral=spectral)
            )
            if base * 2 ** (stage + 1) == attention:
                self.chain.append(SelfAttention(channels, noise, "attention", spectral=spectral))
        self.norm = GhostBatchNorm(group, "norm", classes=classes)
        self.convolution = Convolution(shape[-1], 3, noise, "convolution", spectral=spectral)
        self.build((None, inputs))

    def build(self, input_shape: Sequence[Any]) -> None:
        built(self.dense, input_shape[1:])
        shape: tuple[int, ...] = self.base_shape
        for layer in (*self.chain, self.norm, self.convolution):
            shape = built(layer, shape)

    def call(
        self,
        x: tf.Tensor,
        *,
        labels: tf.Tensor | None = None,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """Codes `[b, inputs]` -> `[b, size, size, channels]`; nothing is drawn from `noise`."""
        state = {"training": training, "update_statistics": update_statistics}
        x = tf.reshape(self.dense(x, **state), [-1, *self.base_shape])
        for layer in self.chain:
            classes = {"labels": labels} if isinstance(layer, _Up) else {}
            x = layer(x, **classes, **state)
        return self.convolution(tf.nn.relu(self.norm(x, labels=labels, **state)), **state)


class ResNetDiscriminator(keras.layers.Layer):
    """Blocks that halve the size, blocks that keep it, ReLU, a sum over positions and a dense layer.

    Args:
      shape: `[size, size, 1 or 3]`.
      outputs: length of the result.
      noise: one row, for initial weights.
      name: of the network.
      width: channels of the first block, twice as many in each further one that halves.
      largest_width: but no more than these. The paper's discriminator of 32×32 has 128 everywhere.
      stages: how often the size is halved; None for a base from 4 to 7. The paper: 2 for 32×32.
      plain: how many blocks keep the base size. The paper: 2 for 32×32, 1 for 128×128.
      classes: how many there are; 0 for a discriminator without.
      spectral: whether there is spectral norm.
      attention: side of the feature map over which there is self-attention, after the block that makes it; 0 for none.
      stddev_group: examples a group of the minibatch standard deviation, seen after the blocks that halve; 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        noise: Noise,
        name: str,
        width: int = 64,
        largest_width: int = 1024,
        stages: int | None = None,
        plain: int = 1,
        classes: int = 0,
        spectral: bool = True,
        attention: int = 0,
        stddev_group: int = 0,
    ):
        super().__init__(name=name)
        stages = count_stages(shape, stages)
        _check_widths("discriminator", width=width, largest_width=largest_width)
        if plain < 0 or (stddev_group and not plain):
            raise ValueError(
                f"the discriminator has plain {plain} and stddev_group {stddev_group}: plain must be at least 0, and 1 with "
                "a group, whose standard deviation these blocks see"
            )
        sides = [shape[0] // 2**i for i in range(1, stages + 1)]
        _check_attention(attention, sides, "discriminator")
        self.chain: list[keras.layers.Layer] = []
        for stage, side in enumerate(sides):
            channels = min(width * 2**stage, largest_width)
            self.chain.append(
                _Down(channels, noise, f"block_{stage}", first=stage == 0, spectral=spectral)
            )
            if side == attention:
                self.chain.append(SelfAttention(channels, noise, "attention", spectral=spectral))
        if stddev_group:
            self.chain.append(MinibatchStddev(stddev_group, "minibatch_stddev"))
        for number in range(plain):
            # The standard deviation is one channel more, which the shortcut must take away again.
            options = {"halve": False, "shortcut": number == 0 and stddev_group > 0}
            name_of_block = f"block_{stages + number}"
            self.chain.append(_Down(channels, noise, name_of_block, spectral=spectral, **options))
        self.features = channels
        self.classes = classes
        self.dense = Dense(outputs, noise, "dense", spectral=spectral)
        self.embedding = (
            Dense(channels, noise, "embedding", spectral=spectral, use_bias=False)
            if classes
            else None
        )
        self.build((None, *shape))

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        for layer in self.chain:
            shape = built(layer, shape)
        built(self.dense, [self.features])
        if self.embedding is not None:
            built(self.embedding, [self.classes])

    def call(
        self,
        x: tf.Tensor,
        *,
        labels: tf.Tensor | None = None,
        noise: Noise | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """Images `[b, size, size, channels]` -> `[b, outputs]`; nothing is drawn from `noise`.

        With classes the inner product of the features and the class' embedding is added to each output.
        """
        state = {"training": training, "update_statistics": update_statistics}
        for layer in self.chain:
            x = layer(x) if isinstance(layer, MinibatchStddev) else layer(x, **state)
        features = tf.reduce_sum(tf.nn.relu(x), [1, 2])
        output = self.dense(features, **state)
        if self.embedding is None:
            return output
        if labels is None:
            raise ValueError(f'"{self.path}" has {self.classes} classes: call it with labels')
        embedded = self.embedding(tf.one_hot(labels, self.classes, dtype=x.dtype), **state)
        return output + tf.reduce_sum(embedded * features, 1, keepdims=True)


class _Up(keras.layers.Layer):
    """norm, ReLU, doubled, 3×3, norm, ReLU, 3×3; beside it doubled, 1×1 (Miyato et al. 2018, figure 9).

    Its convolutions have no biases, since the norms behind them, of further blocks too, take away what is the same everywhere; only
    a self-attention between blocks would see it.
    """

    def __init__(
        self, channels: int, noise: Noise, name: str, group: int, classes: int, *, spectral: bool
    ):
        super().__init__(name=name)
        noise, options = noise(name), {"spectral": spectral, "use_bias": False}
        self.norms = [GhostBatchNorm(group, f"norm_{i}", classes=classes) for i in range(2)]
        self.convolutions = [
            kind(channels, 3, noise, f"convolution_{i}", scale=RESIDUAL_SCALE, **options)
            for i, kind in enumerate((DoubledConvolution, Convolution))
        ]
        self.shortcut = Convolution(channels, 1, noise, "shortcut", **options)

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        built(self.shortcut, shape)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            shape = built(convolution, built(norm, shape))

    def call(self, x: tf.Tensor, *, labels: tf.Tensor | None, **state: bool) -> tf.Tensor:
        """`[b, h, w, inputs]` -> `[b, 2h, 2w, channels]`."""
        y = self.convolutions[0](tf.nn.relu(self.norms[0](x, labels=labels, **state)), **state)
        y = tf.nn.relu(self.norms[1](y, labels=labels, **state))
        # A 1×1 convolution of doubled pixels is the doubled convolution, at a quarter of the cost.
        return self.convolutions[1](y, **state) + doubled(self.shortcut(x, **state))

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        rows, height, width, _ = input_shape
        return rows, 2 * height, 2 * width, self.shortcut.outputs


class _Down(keras.layers.Layer):
    """ReLU, 3×3, ReLU, 3×3, halved; beside it halved, 1×1. The first block of a network has no ReLU before its convolution.

    Without `halve` the size stays, and without `shortcut` there is nothing beside it but the input itself.
    """

    def __init__(
        self,
        channels: int,
        noise: Noise,
        name: str,
        *,
        spectral: bool,
        first: bool = False,
        halve: bool = True,
        shortcut: bool = True,
    ):
        super().__init__(name=name)
        noise, options = noise(name), {"spectral": spectral}
        self.channels, self.first, self.halve = channels, first, halve
        self.convolutions = [
            kind(channels, 3, noise, f"convolution_{i}", scale=RESIDUAL_SCALE, **options)
            for i, kind in enumerate((Convolution, HalvedConvolution if halve else Convolution))
        ]
        self.shortcut = Convolution(channels, 1, noise, "shortcut", **options) if shortcut else None

    def build(self, input_shape: Sequence[Any]) -> None:
        shape = tuple(input_shape[1:])
        if self.shortcut is not None:
            built(self.shortcut, shape)
        for convolution in self.convolutions:
            shape = built(convolution, shape)

    def call(self, x: tf.Tensor, **state: bool) -> tf.Tensor:
        """`[b, h, w, inputs]` -> `[b, h/2, w/2, channels]`, or `[b, h, w, channels]`."""
        y = self.convolutions[0](x if self.first else tf.nn.relu(x), **state)
        y = self.convolutions[1](tf.nn.relu(y), **state)
        # Halving commutes with a 1×1 convolution, and comes first, where it is cheaper.
        shortcut = halved(x) if self.halve else x
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut, **state)
        return y + shortcut

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        rows, height, width, _ = input_shape
        factor = 2 if self.halve else 1
        return rows, height // factor, width // factor, self.channels


def doubled(x: tf.Tensor) -> tf.Tensor:
    """Each pixel of `[b, h, w, channels]` four times: `[b, 2h, 2w, channels]`."""
    height, width, channels = x.shape[1:]
    # Axis by axis: the gradient of a tiling of both at once is eight times slower on CPU.
    x = tf.reshape(tf.stack([x, x], 2), [-1, 2 * height, width, channels])
    return tf.reshape(tf.stack([x, x], 3), [-1, 2 * height, 2 * width, channels])


def halved(x: tf.Tensor) -> tf.Tensor:
    """Means of 2×2 pixels of `[b, h, w, channels]`: `[b, h/2, w/2, channels]`."""
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


def _check_widths(network: str, **widths: int) -> None:
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"the {network} has {name} {width}: it must be at least 1")


def _check_attention(side: int, sides: Sequence[int], network: str) -> None:
    if side and side not in sides:
        raise ValueError(
            f"the {network} has attention {side}: its blocks make feature maps of the sides "
            f"{', '.join(map(str, sides))}; choose one of them, or 0 for none"
        )
