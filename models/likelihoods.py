"""Likelihoods of pictures in [0, 1], given what a decoder makes of a latent.

A likelihood is a layer, for the weights that some have. It is made as `likelihood(image_shape, name=…)` and knows the shape
of the outputs that it wants of a decoder. In nats, summed over pixels and channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

SMALLEST_LOG_SCALE = -6.0
MOST_FACTORS = 64
SMALLEST_MEAN = 1e-3


class Likelihood(keras.layers.Layer):
    """p(x | outputs) of pictures of one shape.

    Args:
      shape: of a picture, `(height, width, channels)`.
      name: of the layer.

    Attributes:
      outputs: shape of the decoder's outputs for one picture, `(height, width, channels)`; that of a picture unless a
        likelihood says else.
      level_bits: what `bits_per_dimension` adds for each pixel and channel: 0 of probabilities, log2 of the grey levels of a
        density of levels that are spread over intervals of 1 / levels; None of what is neither, and then no bits are reported.
    """

    level_bits: float | None = None

    def __init__(self, shape: tuple[int, int, int], *, name: str):
        super().__init__(name=name)
        self.shape = self.outputs = shape

    def log_probability(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Of pictures `[b, height, width, channels]` under each of k outputs `[b, k, *self.outputs]`: `[b, k]`."""
        raise NotImplementedError

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """Expected pictures `[n, height, width, channels]` in [0, 1] for outputs `[n, *self.outputs]`."""
        raise NotImplementedError

    def offset(self, mean: tf.Tensor) -> tf.Tensor:
        """Outputs that expect the picture `mean` `[height, width, channels]`, which a decoder's own are then added to.

        `[*self.outputs]`; zeros of likelihoods that know none.
        """
        return tf.zeros(self.outputs, mean.dtype)

    def metrics(
        self, x: tf.Tensor, outputs: tf.Tensor, negative_elbo: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Of pictures `[b, height, width, channels]`, the outputs for them `[b, *self.outputs]` and bounds `[b]`, in nats.

        "squared_error" of the expected pictures, a mean over pixels and channels, and `bits_per_dimension` of the bound.
        """
        error = tf.math.squared_difference(x, self.mean(outputs))
        metrics = {"squared_error": tf.reduce_mean(error, [1, 2, 3])}
        return metrics | self.bits_per_dimension("bits_per_dimension", negative_elbo)

    def bits_per_dimension(self, name: str, nats: tf.Tensor) -> dict[str, tf.Tensor]:
        """Nats `[b]` of pictures as bits a pixel and channel, `{name: [b]}`; nothing without `level_bits`.

        Of a density of spread levels it bounds the bits of the levels from above (Theis, van den Oord & Bethge 2016, section
        3.1).
        """
        if self.level_bits is None:
            return {}
        return {name: nats / (math.log(2) * math.prod(self.shape)) + self.level_bits}


LikelihoodFactory = Callable[..., Likelihood]
"""`factory(image_shape, name=…)` makes a likelihood."""


class Bernoulli(Likelihood):
    """Σ x log p + (1 - x) log(1 - p), p = sigmoid(outputs).

    For grey values x in [0, 1] this is minus the cross-entropy: what one expects of a picture whose pixels are drawn with
    probability x, and no density of grey values.

    Args:
      binary: whether the pictures are 0 and 1, as the transform `Binarize` draws them, so that bits a dimension are reported.
    """

    def __init__(self, shape: tuple[int, int, int], *, name: str, binary: bool = False):
        super().__init__(shape, name=name)
        self.level_bits = 0.0 if binary else None

    def log_probability(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        rows, samples = outputs.shape[:2]
        logits = tf.reshape(outputs, [rows, samples, -1])
        # x · logits as a product: pictures need no repeating, and nothing of the logits' size is kept.
        return tf.linalg.matvec(logits, tf.reshape(x, [rows, -1])) - softplus_sum(logits)

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(outputs)

    def offset(self, mean: tf.Tensor) -> tf.Tensor:
        return logit(mean)


class Gaussian(Likelihood):
    """Σ log N(x; sigmoid(outputs), scale²).

    Args:
      scale: the standard deviation, or None to learn one for all pixels (Rybkin, Daniilidis & Levine 2021). Its logarithm
        then starts near 0 and is bounded from below by -6 through a softplus, else it falls without end where pixels are
        reproduced exactly.
      levels: grey levels of the data, if the transform `Dequantize` spreads as many; None if it spreads none, and then no
        bits a dimension are reported.

    Raises:
      ValueError: if the scale is not positive, or there are fewer than two levels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        name: str,
        scale: float | None = None,
        levels: int | None = None,
    ):
        super().__init__(shape, name=name)
        if scale is not None and not scale > 0:
            raise ValueError(f"Gaussian.scale is {scale}: it must be above 0, or None to learn one")
        if levels is not None and levels < 2:
            raise ValueError(
                f"Gaussian.levels is {levels}: it must be at least 2, or None for data that is not dequantised"
            )
        self.scale = scale
        self.level_bits = None if levels is None else math.log2(levels)
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        if self.scale is None:
            self.raw = self.add_weight(name="raw", shape=(), initializer="zeros", autocast=False)

    def log_scale(self, dtype: tf.DType) -> tf.Tensor:
        """The logarithm of the standard deviation, a scalar."""
        if self.scale is not None:
            return tf.constant(math.log(self.scale), dtype)
        raw = tf.cast(self.raw, dtype)
        return SMALLEST_LOG_SCALE + tf.nn.softplus(raw - SMALLEST_LOG_SCALE)

    def log_probability(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        log_scale = self.log_scale(x.dtype)
        standardised = (x[:, tf.newaxis] - tf.sigmoid(outputs)) * tf.exp(-log_scale)
        densities = -tf.square(standardised) / 2 - log_scale - math.log(2 * math.pi) / 2
        return tf.reduce_sum(densities, [2, 3, 4])

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(outputs)

    def offset(self, mean: tf.Tensor) -> tf.Tensor:
        return logit(mean)


def logit(mean: tf.Tensor) -> tf.Tensor:
    """log(mean / (1 - mean)) of means that are held a thousandth away from 0 and 1."""
    mean = tf.clip_by_value(mean, SMALLEST_MEAN, 1 - SMALLEST_MEAN)
    return tf.math.log(mean) - tf.math.log1p(-mean)


@tf.custom_gradient
def softplus_sum(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Σ log(1 + exp(x)) over the last axis, `[…, n]` -> `[…]`.

    Half the time of `softplus` and a sum, by one logarithm for many numbers: softplus(x) = max(x, 0) + log(1 + exp(-|x|)), and
    a product of up to 64 factors between 1 and 2 is no larger than 2^64, which float32 and bfloat16 hold.
    """
    factors = max(d for d in range(1, MOST_FACTORS + 1) if x.shape[-1] % d == 0)
    shape = [*x.shape[:-1], x.shape[-1] // factors, factors]
    products = tf.reduce_prod(1 + tf.exp(-tf.abs(tf.reshape(x, shape))), -1)
    total = tf.reduce_sum(tf.nn.relu(x), -1) + tf.reduce_sum(tf.math.log(products), -1)
    return total, lambda gradient: gradient[..., tf.newaxis] * tf.sigmoid(x)
