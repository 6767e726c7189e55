"""Independent normal variables: the latents of variational autoencoders. In nats, one number a unit."""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal units of these means and log-variances, `[…, units]` each."""

    mean: tf.Tensor
    log_variance: tf.Tensor

    @classmethod
    def of(cls, parameters: tf.Tensor) -> Normal:
        """The units whose means, then log-variances are `[…, 2 · units]`, as an encoder gives them."""
        return cls(*tf.split(parameters, 2, -1))

    def reparameterised(self, standard: tf.Tensor) -> tf.Tensor:
        """Draws made of standard normal numbers, which must broadcast (Kingma & Welling 2014, section 2.4)."""
        return self.mean + tf.exp(self.log_variance / 2) * standard

    def log_density(self, x: tf.Tensor) -> tf.Tensor:
        """log N(x; mean, variance) of each unit."""
        standardised = (x - self.mean) * tf.exp(-self.log_variance / 2)
        return -(tf.square(standardised) + self.log_variance + math.log(2 * math.pi)) / 2

    def divergence(self) -> tf.Tensor:
        """KL(this ‖ N(0, 1)) of each unit (Kingma & Welling 2014, appendix B)."""
        return (tf.exp(self.log_variance) + tf.square(self.mean) - 1 - self.log_variance) / 2

    def without_gradient(self) -> Normal:
        """The same, whose parameters receive no gradient."""
        return Normal(tf.stop_gradient(self.mean), tf.stop_gradient(self.log_variance))


def standard_log_density(x: tf.Tensor) -> tf.Tensor:
    """log N(x; 0, 1) of each unit."""
    return -(tf.square(x) + math.log(2 * math.pi)) / 2
