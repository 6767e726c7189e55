"""Penalties on the gradient of a discriminator with respect to its images.

A discriminator is `[b, …] -> [b]`. A penalty is `penalty(discriminator, real, fake, noise) -> [b]` of as many real as generated
images, differentiable with respect to the discriminator's weights; row i is example i's, if the discriminator does not mix
examples.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from models.objective import Noise

Discriminator = Callable[[tf.Tensor], tf.Tensor]
Penalty = Callable[[Discriminator, tf.Tensor, tf.Tensor, Noise], tf.Tensor]

GRADIENT_EPSILON = 1e-12


def wgan_gp(
    discriminator: Discriminator, real: tf.Tensor, fake: tf.Tensor, noise: Noise
) -> tf.Tensor:
    """(‖∇D(x)‖₂ - 1)² at x = t · real + (1 - t) · fake, t uniform (Gulrajani et al. 2017, algorithm 1)."""
    share = noise("fraction").uniform([1] * (len(real.shape) - 1))
    return _distance_to_1(discriminator, share * real + (1 - share) * fake)


def dragan(
    discriminator: Discriminator, real: tf.Tensor, fake: tf.Tensor, noise: Noise
) -> tf.Tensor:
    """(‖∇D(x)‖₂ - 1)² at x = real + σ/2 · N(0, 1) (Kodali et al. 2017).

    σ is the standard deviation of the example's own pixels, where the paper's code takes that of the whole batch, which
    one replica does not see. The noise is normal, as the paper says; its code draws it uniform, and takes a random share of it.
    """
    pixels = list(range(1, len(real.shape)))
    deviation = tf.math.reduce_std(real, pixels, keepdims=True)
    x = real + deviation / 2 * noise("perturbation").normal(real.shape[1:])
    return _distance_to_1(discriminator, x)


def r1(discriminator: Discriminator, real: tf.Tensor, fake: tf.Tensor, noise: Noise) -> tf.Tensor:
    """‖∇D(x)‖₂² / 2 at x = real (Mescheder, Geiger & Nowozin 2018, equation 9)."""
    return _squared_slope(discriminator, real) / 2


PENALTIES: dict[str, Penalty] = {"wgan_gp": wgan_gp, "r1": r1, "dragan": dragan}


def _distance_to_1(discriminator: Discriminator, x: tf.Tensor) -> tf.Tensor:
    # The root has no finite slope at 0, where a discriminator that is still constant would give NaN.
    slope = tf.sqrt(_squared_slope(discriminator, x) + GRADIENT_EPSILON)
    return tf.square(slope - 1)


def _squared_slope(discriminator: Discriminator, x: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        output = discriminator(x)
    return tf.reduce_sum(tf.square(tape.gradient(output, x)), list(range(1, len(x.shape))))
