"""Log-likelihoods and divergences in nats, per example: `[b, …] -> [b]`, summed over all dimensions but the first."""

from __future__ import annotations

import math

import tensorflow as tf


def gaussian_kl(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, exp(log_variance)) ‖ N(0, 1)) of diagonal normals (Kingma & Welling 2014, appendix B)."""
    return _sum((tf.exp(log_variance) + tf.square(mean) - 1 - log_variance) / 2)


def bernoulli_log_likelihood(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Σ x log p + (1 - x) log(1 - p) with p = sigmoid(logits).

    For grey values x in [0, 1] this is minus the cross-entropy: what one expects of a picture whose pixels are drawn with
    probability x, and no density of grey values.
    """
    return -_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits))


def gaussian_log_likelihood(
    x: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor | float
) -> tf.Tensor:
    """Σ log N(x; mean, exp(log_scale)²); `log_scale` broadcasts against `x`."""
    log_scale = tf.convert_to_tensor(log_scale, x.dtype)
    standardised = (x - mean) * tf.exp(-log_scale)
    return -_sum(tf.square(standardised) / 2 + log_scale + math.log(2 * math.pi) / 2)


def _sum(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(x, list(range(1, len(x.shape))))
