"""The discretised mixture of logistics: probabilities of grey levels (Salimans, Karpathy, Chen & Kingma 2017, PixelCNN++)."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from models.likelihoods import Likelihood

SMALLEST_LOG_SCALE = -7.0


@dataclasses.dataclass(frozen=True)
class _Components:
    """What a decoder says of each pixel, in the range [-1, 1] of a picture: `[…, mixtures]`, `[…, channels, mixtures]`.

    Attributes:
      logits: of the mixture's weights, `[…, mixtures]`.
      means: without what the channels before add, `[…, channels, mixtures]`.
      log_scales: as these.
      slopes: of green on red, blue on red, blue on green, `[…, 3, mixtures]`, for 3 channels.
    """

    logits: tf.Tensor
    means: tf.Tensor
    log_scales: tf.Tensor
    slopes: tf.Tensor | None

    def means_given(self, x: tf.Tensor) -> tf.Tensor:
        """Means of each channel given the channels before it, of pixels `[…, channels, 1 or mixtures]` in [-1, 1]."""
        if self.slopes is None:
            return self.means
        red, green = x[..., 0, :], x[..., 1, :]
        nothing = tf.zeros_like(self.means[..., 0, :])
        of_green = self.slopes[..., 0, :] * red
        of_blue = self.slopes[..., 1, :] * red + self.slopes[..., 2, :] * green
        return self.means + tf.stack([nothing, of_green, of_blue], -2)


class LogisticMixture(Likelihood):
    """log P(x) of pictures whose grey levels 0 … levels - 1 are k / (levels - 1) in [0, 1], not dequantised.

    Each pixel is of a mixture of logistic distributions, whose mass in the interval around a level is the level's; the
    first and the last level have all that lies beyond. The channels of a pixel are of one component, and the means of green
    and blue are linear in the channels before (section 2.2).

    `mean` is that of the mixture, not a draw: pixels are independent given the latent, so a draw would put grain over what
    the latent says.

    Args:
      levels: how many grey levels there are: 256 for bytes.
      mixtures: components of a pixel.

    Raises:
      ValueError: if a number is out of range.
    """

    level_bits = 0.0

    def __init__(
        self, shape: tuple[int, int, int], *, name: str, levels: int = 256, mixtures: int = 5
    ):
        super().__init__(shape, name=name)
        if levels < 2 or mixtures < 1:
            raise ValueError(
                f"LogisticMixture has levels {levels} and mixtures {mixtures}: they must be at least 2 and 1"
            )
        height, width, self.channels = shape
        self.levels = levels
        self.mixtures = mixtures
        numbers = 1 + 2 * self.channels + (3 if self.channels == 3 else 0)
        self.outputs = (height, width, numbers * mixtures)

    def log_probability(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        components = self._components(outputs)
        level = tf.round(x * (self.levels - 1))[:, tf.newaxis, ..., tf.newaxis]
        signed = 2 * level / (self.levels - 1) - 1
        sharpness = tf.exp(-components.log_scales)
        centred = (signed - components.means_given(signed)) * sharpness
        half = sharpness / (self.levels - 1)
        upper, lower = centred + half, centred - half
        # log(σ(u) - σ(l)) = u + log(1 - exp(l - u)) - softplus(u) - softplus(l), exact also where both are near 0 or 1.
        within = upper + tf.math.log(-tf.math.expm1(-2 * half))
        within -= tf.nn.softplus(upper) + tf.nn.softplus(lower)
        first, last = -tf.nn.softplus(-upper), -tf.nn.softplus(lower)
        logs = tf.where(level < 0.5, first, tf.where(level > self.levels - 1.5, last, within))
        pixels = tf.reduce_sum(logs, -2) + tf.nn.log_softmax(components.logits)
        return tf.reduce_sum(tf.reduce_logsumexp(pixels, -1), [2, 3])

    def mean(self, outputs: tf.Tensor) -> tf.Tensor:
        """The mixture's mean; of a component, each channel's given the means of those before."""
        components = self._components(outputs)
        scales = tf.exp(components.log_scales)
        means = tf.zeros_like(scales)
        for _ in range(self.channels):
            means = _mean_within(components.means_given(means), scales)
        weights = tf.nn.softmax(components.logits)[..., tf.newaxis, :]
        # It is within, but for rounding.
        return tf.clip_by_value((tf.reduce_sum(weights * means, -1) + 1) / 2, 0, 1)

    def _components(self, outputs: tf.Tensor) -> _Components:
        c = self.channels
        numbers = tf.reshape(outputs, [*outputs.shape[:-1], -1, self.mixtures])
        return _Components(
            logits=numbers[..., 0, :],
            means=numbers[..., 1 : c + 1, :],
            log_scales=tf.maximum(numbers[..., c + 1 : 2 * c + 1, :], SMALLEST_LOG_SCALE),
            slopes=tf.tanh(numbers[..., 2 * c + 1 :, :]) if c == 3 else None,
        )


def _mean_within(mean: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Of logistic draws with what is beyond -1 and 1 moved there: ∫ of 1 - their distribution function, from -1 to 1, minus 1.

    Means far beyond are usual: a component that is black wherever it matters is pushed on by what little is not.
    """
    first, last = tf.nn.softplus((mean + 1) / scale), tf.nn.softplus((mean - 1) / scale)
    return scale * (first - last) - 1
