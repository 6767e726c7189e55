"""Adversarial losses as functions of the discriminator's outputs, and the gradient penalty.

Outputs are logits (or a critic's values) `[b]`; a loss is `[b]`, row i from example i alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

Elementwise = Callable[[tf.Tensor], tf.Tensor]

GRADIENT_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """What each player minimises.

    Attributes:
      real: the discriminator's loss of its outputs for real examples, `[b] -> [b]`.
      fake: the discriminator's loss of its outputs for generated examples.
      generator: the generator's loss of the discriminator's outputs for generated examples.
      critic: True if the outputs are values without a decision boundary at 0, kept 1-Lipschitz by the gradient penalty.
    """

    real: Elementwise
    fake: Elementwise
    generator: Elementwise
    critic: bool = False


NON_SATURATING = AdversarialLoss(
    real=lambda output: tf.nn.softplus(-output),
    fake=tf.nn.softplus,
    generator=lambda output: tf.nn.softplus(-output),
)
"""-log D(x), -log(1 - D(G(z))) and -log D(G(z)) with D = sigmoid(output) (Goodfellow et al. 2014)."""

HINGE = AdversarialLoss(
    real=lambda output: tf.nn.relu(1 - output),
    fake=lambda output: tf.nn.relu(1 + output),
    generator=tf.negative,
)
"""Margins of 1 around a linear output (Lim & Ye 2017; Miyato et al. 2018)."""

WASSERSTEIN = AdversarialLoss(
    real=tf.negative, fake=tf.identity, generator=tf.negative, critic=True
)
"""The dual of the Wasserstein-1 distance (Arjovsky et al. 2017), with `gradient_penalty` (Gulrajani et al. 2017)."""

LOSSES = {"non_saturating": NON_SATURATING, "hinge": HINGE, "wgan_gp": WASSERSTEIN}


def gradient_penalty(
    critic: Elementwise, real: tf.Tensor, fake: tf.Tensor, fraction: tf.Tensor
) -> tf.Tensor:
    """(‖∇critic(x)‖₂ - 1)² at x = fraction · real + (1 - fraction) · fake (Gulrajani et al. 2017, algorithm 1).

    Args:
      critic: `[b, …] -> [b]`; it must not mix examples, so it has no batch norm.
      real: examples `[b, …]`.
      fake: as many generated ones.
      fraction: uniform in (0, 1), `[b]`.

    Returns:
      `[b]`, differentiable with respect to the critic's weights.
    """
    fraction = tf.reshape(fraction, [-1] + [1] * (len(real.shape) - 1))
    x = fraction * real + (1 - fraction) * fake
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        output = critic(x)
    gradient = tape.gradient(output, x)
    squared = tf.reduce_sum(tf.square(gradient), list(range(1, len(x.shape))))
    # The root has no finite slope at 0, where a critic that is still constant would give NaN.
    return tf.square(tf.sqrt(squared + GRADIENT_EPSILON) - 1)
