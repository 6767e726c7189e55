"""Priors of a variational autoencoder's latent: standard normal, or a stochastic layer above it (Burda et al. 2016).

A prior is a layer, made as `prior(units, noise=…, name=…)`. One that has latents of its own has their posterior too, and
its log p(z) is then a bound by one sample of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from models.distributions import Normal, standard_log_density
from models.image_networks import NetworkFactory
from models.mlp import MLPDecoder, MLPEncoder
from models.objective import Noise
from models.tables import COLUMNS, axes

REACH = 3.0
"""Of a traversal, in standard deviations of the prior."""


class Paths:
    """The ways on which the gradient of log w_k = log p(x, z_k) - log q(z_k | x) reaches the encoders.

    All of them; or, doubly reparameterised (Tucker et al. 2019), only that through the samples, whose gradient is multiplied
    once more, by their share in Σ w_k.

    Attributes:
      doubly: whether doubly reparameterised.
      factors: by what the gradient through the samples is multiplied, `[b, k]`, which the bound gives when it has the
        weights, after the forward pass.
    """

    factors: tf.Tensor

    def __init__(self, doubly: bool = False):
        self.doubly = doubly

    def through(self, samples: tf.Tensor) -> tf.Tensor:
        """Samples `[b, k, units]` as densities see them."""
        if not self.doubly:
            return samples

        @tf.custom_gradient
        def weighted(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            return tf.identity(x), lambda gradient: gradient * self.factors[..., tf.newaxis]

        return weighted(samples)

    def posterior(self, posterior: Normal) -> Normal:
        """A posterior as its density sees it."""
        return posterior.without_gradient() if self.doubly else posterior


class Prior(keras.layers.Layer):
    """p(z) of `units` latents."""

    def divergences(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, training: bool
    ) -> list[tf.Tensor]:
        """The KL divergence of each unit of each stochastic layer, that of z first, `[b, units]`; exact or by one sample.

        Args:
          posterior: q(z | x) `[b, units]`.
          z: drawn from it `[b, units]`.
          noise: b rows.
          training: of the networks.
        """
        raise NotImplementedError

    def log_ratio(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, paths: Paths, training: bool
    ) -> tf.Tensor:
        """log p(z) - log q(z | x), with latents above z of log p(z, u) - log q(z, u | x).

        Args:
          posterior: q(z | x), `[b, 1, units]`.
          z: drawn from it, `[b, k, units]`.
          noise: b rows.
          paths: of the gradient.
          training: of the networks.

        Returns:
          `[b, k]`.
        """
        raise NotImplementedError

    def posterior_means(self, mean: tf.Tensor, noise: Noise) -> list[tf.Tensor]:
        """That of each stochastic layer, `[b, units]`: q(z | x)'s, which is given, then of each layer at the mean below it."""
        return [mean]

    def traversals(self, posterior: Normal, noise: Noise) -> tf.Tensor:
        """Latents on lines through that of the first example, `[lines, COLUMNS, units]`.

        On each line one unit of the uppermost stochastic layer goes from -3 to 3, the standard deviations of its prior; the unit
        whose KL divergence, the mean over examples, is the largest comes first. Below it each layer is the mean given the
        one above.

        Args:
          posterior: q(z | x) `[b, units]`.
          noise: b rows.
        """
        raise NotImplementedError

    def draw(self, noise: Noise) -> tf.Tensor:
        """`[rows, units]`."""
        raise NotImplementedError


PriorFactory = Callable[..., Prior]
"""`factory(units, noise=…, name=…)` makes a prior."""


class StandardNormal(Prior):
    """N(0, 1)."""

    def __init__(self, units: int, *, noise: Noise, name: str):
        super().__init__(name=name)
        self.units = units

    def divergences(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, training: bool
    ) -> list[tf.Tensor]:
        return [posterior.divergence()]

    def log_ratio(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, paths: Paths, training: bool
    ) -> tf.Tensor:
        z = paths.through(z)
        ratio = standard_log_density(z) - paths.posterior(posterior).log_density(z)
        return tf.reduce_sum(ratio, 2)

    def traversals(self, posterior: Normal, noise: Noise) -> tf.Tensor:
        return _traversals(posterior)

    def draw(self, noise: Noise) -> tf.Tensor:
        return noise.normal([self.units])


class StochasticLayer(Prior):
    """p(z) = ∫ p(z | u) N(u; 0, 1) du with posterior q(u | z), both normal with independent units.

    Below it, z is the latent of a picture: q(z | x) q(u | z) and p(u) p(z | u) p(x | z) are the model of two stochastic
    layers of Burda, Grosse & Salakhutdinov (2016).

    Args:
      units: of z.
      noise: one row, for initial weights.
      name: of the layer.
      latent: units of u.
      encoder: makes the network of q(u | z), `encoder((units,), 2 * latent, noise=…, name=…)`: means, then log-variances. It
        must draw nothing, as `MLPEncoder`.
      decoder: makes that of p(z | u), `decoder((2 * units,), latent, noise=…, name=…)`, in the same way.
    """

    def __init__(
        self,
        units: int,
        *,
        noise: Noise,
        name: str,
        latent: int = 50,
        encoder: NetworkFactory = MLPEncoder,
        decoder: NetworkFactory = MLPDecoder,
    ):
        super().__init__(name=name)
        if latent < 1:
            raise ValueError(f"StochasticLayer.latent is {latent}: it must be at least 1")
        self.units = units
        self.latent = latent
        self._make = (encoder, decoder, noise)
        self.build()

    def build(self, input_shape: Sequence[Any] | None = None) -> None:
        encoder, decoder, noise = self._make
        self.encoder = encoder(
            (self.units,), 2 * self.latent, noise=noise("encoder"), name="encoder"
        )
        self.decoder = decoder(
            (2 * self.units,), self.latent, noise=noise("decoder"), name="decoder"
        )

    def divergences(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, training: bool
    ) -> list[tf.Tensor]:
        """That of z is log q(z | x) - log p(z | u) for one u, which may be below 0; that of u is exact for its z."""
        upper = self._posterior(z[:, tf.newaxis], noise, training)
        u = upper.reparameterised(noise("posterior").normal([1, self.latent]))
        likelihood = self._likelihood(u, noise, training).log_density(z[:, tf.newaxis])
        return [posterior.log_density(z) - likelihood[:, 0], upper.divergence()[:, 0]]

    def log_ratio(
        self, posterior: Normal, z: tf.Tensor, noise: Noise, paths: Paths, training: bool
    ) -> tf.Tensor:
        upper = self._posterior(z, noise, training)
        u = upper.reparameterised(noise("posterior").normal([z.shape[1], self.latent]))
        z, u = paths.through(z), paths.through(u)
        if paths.doubly:
            # The density's own way to z, but not to the encoder's weights.
            with _constant(self.encoder):
                upper = self._posterior(z, noise("density"), training)
        likelihood = self._likelihood(u, noise, training)
        below = likelihood.log_density(z) - paths.posterior(posterior).log_density(z)
        above = standard_log_density(u) - upper.log_density(u)
        return tf.reduce_sum(below, 2) + tf.reduce_sum(above, 2)

    def posterior_means(self, mean: tf.Tensor, noise: Noise) -> list[tf.Tensor]:
        upper = self._posterior(mean[:, tf.newaxis], noise, training=False)
        return [mean, upper.mean[:, 0]]

    def traversals(self, posterior: Normal, noise: Noise) -> tf.Tensor:
        upper = self._posterior(posterior.mean[:, tf.newaxis], noise, training=False)
        u = _traversals(Normal(upper.mean[:, 0], upper.log_variance[:, 0]))
        return self._likelihood(u, noise, training=False).mean

    def draw(self, noise: Noise) -> tf.Tensor:
        u = noise("upper").normal([1, self.latent])
        likelihood = self._likelihood(u, noise, training=False)
        return likelihood.reparameterised(noise("lower").normal([1, self.units]))[:, 0]

    def _posterior(self, z: tf.Tensor, noise: Noise, training: bool) -> Normal:
        """q(u | z), `[b, k, latent]`, of `[b, k, units]`."""
        return Normal.of(of_samples(self.encoder, z, noise("encoder"), training))

    def _likelihood(self, u: tf.Tensor, noise: Noise, training: bool) -> Normal:
        """p(z | u), `[b, k, units]`, of `[b, k, latent]`."""
        return Normal.of(of_samples(self.decoder, u, noise("decoder"), training))


def _traversals(posterior: Normal) -> tf.Tensor:
    """Lines through the first example's mean along its units: see `Prior.traversals`, of a posterior `[b, units]`."""
    count = min(posterior.mean.shape[1], COLUMNS)
    chosen = tf.math.top_k(tf.reduce_mean(posterior.divergence(), 0), count).indices
    return axes(posterior.mean[0], chosen, REACH, COLUMNS)


def of_samples(
    network: keras.layers.Layer, codes: tf.Tensor, noise: Noise, training: bool
) -> tf.Tensor:
    """A network's outputs in the noise's dtype for k codes of each example, `[b, k, inputs]` -> `[b, k, *outputs]`."""
    rows, samples, inputs = codes.shape
    outputs = network(tf.reshape(codes, [rows * samples, inputs]), noise=noise, training=training)
    return tf.reshape(tf.cast(outputs, noise.dtype), [rows, samples, *outputs.shape[1:]])


def _constant(network: keras.layers.Layer) -> keras.StatelessScope:
    """A scope in which the network's weights receive no gradient."""
    return keras.StatelessScope([(v, tf.stop_gradient(v.value)) for v in network.variables])
