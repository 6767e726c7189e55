"""Variational autoencoders of images with a normal posterior (Kingma & Welling 2014; β: Higgins et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras
import tensorflow as tf

from models.distributions import (
    bernoulli_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
)
from models.image_networks import NetworkFactory, image_shape
from models.mlp import MLPDecoder, MLPEncoder
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase

SMALLEST_LOG_SCALE = -6.0


ADAM = Optimizer()


class VAE:
    """A VAE of images in [0, 1], trained on -E log p(x | z) + β KL(q(z | x) ‖ N(0, 1)). Implements `objective.Objective`.

    Losses are in nats an example, summed over pixels and latents; the expectation takes one posterior sample.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]`.
      encoder: makes the encoder: `encoder(image_shape, 2 * latent, noise=…, name=…)`, whose outputs are the posterior's
        means, then its log-variances.
      decoder: makes the decoder, whose outputs are the logits of pixel means: `decoder(image_shape, latent, noise=…, name=…)`.
      latent: length of z.
      likelihood: "bernoulli", for grey values too (see `bernoulli_log_likelihood`), or "gaussian" around the sigmoid of
        the logits.
      scale: standard deviation of the Gaussian likelihood, or None to learn one for all pixels (Rybkin et al. 2021).
      beta: weight of the KL divergence.
      kl_warmup_steps: steps over which that weight grows linearly from 0 (Bowman et al. 2016).
      optimizer: moves all networks.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        encoder: NetworkFactory = MLPEncoder,
        decoder: NetworkFactory = MLPDecoder,
        latent: int = 16,
        likelihood: str = "bernoulli",
        scale: float | None = None,
        beta: float = 1.0,
        kl_warmup_steps: int = 0,
        optimizer: Optimizer = ADAM,
    ):
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(
                f'the likelihood of VAE is "{likelihood}": it must be "bernoulli" or "gaussian"'
            )
        if scale is not None and (likelihood == "bernoulli" or scale <= 0):
            raise ValueError(
                f'scale is {scale} with the likelihood "{likelihood}": it must be positive, and only "gaussian" has one'
            )
        if latent < 1 or beta < 0 or kl_warmup_steps < 0:
            raise ValueError(
                f"VAE has latent {latent}, beta {beta} and kl_warmup_steps {kl_warmup_steps}: "
                "they must be at least 1, 0 and 0"
            )
        self.shape = image_shape(element_spec)
        self.encoder_factory = encoder
        self.decoder_factory = decoder
        self.latent = latent
        self.likelihood = likelihood
        self.scale = scale
        self.beta = beta
        self.kl_warmup_steps = kl_warmup_steps
        self.optimizer = optimizer

    def build(self, noise: Noise) -> None:
        self.encoder = self.encoder_factory(
            self.shape, 2 * self.latent, noise=noise("encoder"), name="encoder"
        )
        self.decoder = self.decoder_factory(
            self.shape, self.latent, noise=noise("decoder"), name="decoder"
        )
        self.networks = {"encoder": self.encoder, "decoder": self.decoder}
        if self.likelihood == "gaussian" and self.scale is None:
            self.learnt_scale = LearntScale(name="scale")
            self.networks["scale"] = self.learnt_scale
        variables = [v for network in self.networks.values() for v in network.trainable_variables]
        self.phases = [
            Phase(name="elbo", variables=variables, loss=self.elbo_loss, optimizer=self.optimizer)
        ]

    def elbo_loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """-log p(x | z) + β(step) KL, `[b]`; the metrics are those of `evaluate`."""
        metrics = self._bound(batch, noise, training=True)
        return metrics["reconstruction"] + self.kl_weight(step, noise.dtype) * metrics[
            "kl"
        ], metrics

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """The negative ELBO (β = 1) with one posterior sample, and its parts: -log p(x | z) and KL; `[b]` each."""
        return self._bound(batch, noise, training=False)

    def sample(self, noise: Noise) -> tf.Tensor:
        """The decoder's pixel means for latents of the prior, `[rows, height, width, channels]` in [0, 1]."""
        latent = noise("latent").normal([self.latent])
        logits = self.decoder(latent, noise=noise("decoder"), training=False)
        return tf.sigmoid(tf.cast(logits, noise.dtype))

    def kl_weight(self, step: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """β(step) = β · min(1, step / kl_warmup_steps), a scalar."""
        if self.kl_warmup_steps == 0:
            return tf.constant(self.beta, dtype)
        return self.beta * tf.minimum(tf.cast(step, dtype) / self.kl_warmup_steps, 1)

    def _bound(self, batch: Batch, noise: Noise, training: bool) -> dict[str, tf.Tensor]:
        x = tf.cast(batch["image"], noise.dtype)
        parameters = self.encoder(x, noise=noise("encoder"), training=training)
        mean, log_variance = tf.split(tf.cast(parameters, noise.dtype), 2, 1)
        latent = mean + tf.exp(log_variance / 2) * noise("posterior").normal([self.latent])
        logits = self.decoder(latent, noise=noise("decoder"), training=training)
        reconstruction = -self._log_likelihood(x, tf.cast(logits, noise.dtype))
        kl = gaussian_kl(mean, log_variance)
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def _log_likelihood(self, x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, logits)
        log_scale = self.learnt_scale.value(x.dtype) if self.scale is None else math.log(self.scale)
        return gaussian_log_likelihood(x, tf.sigmoid(logits), log_scale)


class LearntScale(keras.layers.Layer):
    """The logarithm of one learnt standard deviation, a scalar that starts near 0.

    Bounded from below by -6 through a softplus, else it falls without end where pixels are reproduced exactly
    (Rybkin, Daniilidis & Levine 2021).
    """

    def __init__(self, name: str):
        super().__init__(name=name)
        self.build()

    def build(self) -> None:
        self.raw = self.add_weight(name="raw", shape=(), initializer="zeros", autocast=False)

    def value(self, dtype: tf.DType) -> tf.Tensor:
        """The logarithm, a scalar."""
        raw = tf.cast(self.raw, dtype)
        return SMALLEST_LOG_SCALE + tf.nn.softplus(raw - SMALLEST_LOG_SCALE)
