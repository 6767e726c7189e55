"""Adversarial losses as functions of the discriminator's outputs.

Outputs are logits (or a critic's values) `[b]`; a loss is `[b]`, row i from example i alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

Elementwise = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """What each player minimises.

    Attributes:
      real: the discriminator's loss of its outputs for real examples, `[b] -> [b]`.
      fake: the discriminator's loss of its outputs for generated examples.
      generator: the generator's loss of the discriminator's outputs for generated examples.
      boundary: outputs above it say "real", those below "generated"; None for a critic, whose outputs have no such place.
    """

    real: Elementwise
    fake: Elementwise
    generator: Elementwise
    boundary: float | None


NON_SATURATING = AdversarialLoss(
    real=lambda output: tf.nn.softplus(-output),
    fake=tf.nn.softplus,
    generator=lambda output: tf.nn.softplus(-output),
    boundary=0.0,
)
"""-log D(x), -log(1 - D(G(z))) and -log D(G(z)) with D = sigmoid(output) (Goodfellow et al. 2014)."""

HINGE = AdversarialLoss(
    real=lambda output: tf.nn.relu(1 - output),
    fake=lambda output: tf.nn.relu(1 + output),
    generator=tf.negative,
    boundary=0.0,
)
"""Margins of 1 around a linear output (Lim & Ye 2017; Miyato et al. 2018)."""

LEAST_SQUARES = AdversarialLoss(
    real=lambda output: tf.square(output - 1) / 2,
    fake=lambda output: tf.square(output) / 2,
    generator=lambda output: tf.square(output - 1) / 2,
    boundary=0.5,
)
"""Half the squared distance to 1 for real and 0 for generated examples (Mao et al. 2017, equation 9)."""

WASSERSTEIN = AdversarialLoss(
    real=tf.negative, fake=tf.identity, generator=tf.negative, boundary=None
)
"""The dual of the Wasserstein-1 distance (Arjovsky et al. 2017). It needs a critic of bounded slope: the gradient penalty
of Gulrajani et al. 2017 (`models.penalties`), or spectral norm."""

LOSSES = {
    "non_saturating": NON_SATURATING,
    "hinge": HINGE,
    "least_squares": LEAST_SQUARES,
    "wasserstein": WASSERSTEIN,
}
