"""Variational autoencoders of images with a normal posterior (Kingma & Welling 2014; β: Higgins et al. 2017).

With several samples of the posterior they are importance-weighted autoencoders (Burda, Grosse & Salakhutdinov 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
BOUNDS = ("elbo", "iwae", "dreg")


ADAM = Optimizer()


class VAE:
    """A VAE of images in [0, 1], trained on -E log p(x | z) + β KL(q(z | x) ‖ N(0, 1)). Implements `objective.Objective`.

    Losses are in nats an example, summed over pixels and latents. The ELBO's expectation takes one posterior sample. The
    importance-weighted bounds take `samples`, w_k = p(x, z_k) / q(z_k | x), and maximise log (1/K) Σ w_k.

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
      bound: "elbo"; "iwae", the importance-weighted one; "dreg", the same with the doubly reparameterised gradient of the
        encoder, whose noise does not grow with the samples (Tucker et al. 2019). The last two have no β.
      samples: of the posterior an example and update, for "iwae" and "dreg".
      evaluation_samples: of the posterior an example in `evaluate`, for "negative_log_likelihood", which is then a metric
        too: the importance-weighted bound, which comes near -log p(x) as they grow (5,000 are usual); 0 for none.
      evaluation_chunk: how many of these are decoded at once; it must divide them.
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
        bound: str = "elbo",
        samples: int = 1,
        evaluation_samples: int = 0,
        evaluation_chunk: int = 50,
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
        if bound not in BOUNDS:
            raise ValueError(
                f'the bound of VAE is "{bound}": it must be one of {", ".join(BOUNDS)}'
            )
        if samples < 1 or (bound == "elbo" and samples > 1):
            raise ValueError(
                f'samples is {samples} with the bound "{bound}": it must be at least 1, and 1 for "elbo"'
            )
        if bound != "elbo" and (beta != 1 or kl_warmup_steps):
            raise ValueError(
                f'beta is {beta} and kl_warmup_steps {kl_warmup_steps} with the bound "{bound}", which has no KL to weigh: '
                "leave them out"
            )
        if evaluation_samples < 0 or evaluation_chunk < 1 or evaluation_samples % evaluation_chunk:
            raise ValueError(
                f"evaluation_samples is {evaluation_samples} and evaluation_chunk {evaluation_chunk}: the chunk must be at "
                "least 1 and divide the samples"
            )
        self.shape = image_shape(element_spec)
        self.encoder_factory = encoder
        self.decoder_factory = decoder
        self.latent = latent
        self.likelihood = likelihood
        self.scale = scale
        self.beta = beta
        self.kl_warmup_steps = kl_warmup_steps
        self.bound = bound
        self.samples = samples
        self.evaluation_samples = evaluation_samples
        self.evaluation_chunk = evaluation_chunk
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
        loss = self.elbo_loss if self.bound == "elbo" else self.importance_loss
        self.phases = [Phase(name="elbo", variables=variables, loss=loss, optimizer=self.optimizer)]

    def elbo_loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """-log p(x | z) + β(step) KL, `[b]`; the metrics are those of `evaluate`."""
        metrics = self._bound(batch, noise, training=True)
        return metrics["reconstruction"] + self.kl_weight(step, noise.dtype) * metrics[
            "kl"
        ], metrics

    def importance_loss(
        self, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """-log (1/K) Σ w_k, `[b]`; no metrics but the loss."""
        x = tf.cast(batch["image"], noise.dtype)
        mean, log_variance = self._posterior(x, noise, training=True)
        epsilon = noise("posterior").normal([self.samples, self.latent])
        latents = mean[:, tf.newaxis] + tf.exp(log_variance[:, tf.newaxis] / 2) * epsilon
        shares: list[tf.Tensor] = []
        if self.bound == "dreg":
            # The encoder is reached through z alone, whose gradient is weighted once more by its share in the sum.
            latents = _weighted_gradient(latents, shares)
            mean, log_variance = tf.stop_gradient(mean), tf.stop_gradient(log_variance)
        log_weights = self._log_weights(x, latents, mean, log_variance, noise, training=True)
        shares.append(tf.nn.softmax(log_weights, 1))
        return math.log(self.samples) - tf.reduce_logsumexp(log_weights, 1), {}

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """The negative ELBO (β = 1) with one posterior sample, and its parts: -log p(x | z) and KL; `[b]` each.

        With `evaluation_samples`, the importance-weighted "negative_log_likelihood" too.
        """
        metrics = self._bound(batch, noise, training=False)
        if self.evaluation_samples:
            metrics["negative_log_likelihood"] = self._negative_log_likelihood(
                batch, noise("importance")
            )
        return metrics

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
        mean, log_variance = self._posterior(x, noise, training)
        latent = mean + tf.exp(log_variance / 2) * noise("posterior").normal([self.latent])
        logits = self.decoder(latent, noise=noise("decoder"), training=training)
        reconstruction = -self._log_likelihood(x, tf.cast(logits, noise.dtype))
        kl = gaussian_kl(mean, log_variance)
        return {"negative_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def _posterior(self, x: tf.Tensor, noise: Noise, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Means and log-variances of q(z | x), `[b, latent]` each."""
        parameters = self.encoder(x, noise=noise("encoder"), training=training)
        mean, log_variance = tf.split(tf.cast(parameters, noise.dtype), 2, 1)
        return mean, log_variance

    def _log_weights(
        self,
        x: tf.Tensor,
        latents: tf.Tensor,
        mean: tf.Tensor,
        log_variance: tf.Tensor,
        noise: Noise,
        training: bool,
    ) -> tf.Tensor:
        """log p(x, z) - log q(z | x), `[b, k]`, of latents `[b, k, latent]`."""
        rows, count = latents.shape[:2]
        codes = tf.reshape(latents, [rows * count, self.latent])
        logits = self.decoder(codes, noise=noise("decoder"), training=training)
        likelihood = self._log_likelihood(tf.repeat(x, count, axis=0), tf.cast(logits, noise.dtype))
        mean, log_variance = mean[:, tf.newaxis], log_variance[:, tf.newaxis]
        standardised = (latents - mean) * tf.exp(-log_variance / 2)
        ratio = tf.square(standardised) + log_variance - tf.square(latents)
        return tf.reshape(likelihood, [rows, count]) + tf.reduce_sum(ratio, 2) / 2

    def _negative_log_likelihood(self, batch: Batch, noise: Noise) -> tf.Tensor:
        """-log (1/K) Σ w_k with K = `evaluation_samples`, `[b]`, a chunk at a time."""
        x = tf.cast(batch["image"], noise.dtype)
        mean, log_variance = self._posterior(x, noise, training=False)
        chunk = self.evaluation_chunk

        def more(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            epsilon = noise("posterior").numbered(number).normal([chunk, self.latent])
            latents = mean[:, tf.newaxis] + tf.exp(log_variance[:, tf.newaxis] / 2) * epsilon
            weights = self._log_weights(x, latents, mean, log_variance, noise, training=False)
            return number + 1, tf.reduce_logsumexp(tf.concat([total[:, tf.newaxis], weights], 1), 1)

        chunks = self.evaluation_samples // chunk
        nothing = tf.fill([noise.rows], tf.constant(-math.inf, noise.dtype))
        _, total = tf.while_loop(
            lambda number, _: number < chunks, more, (0, nothing), maximum_iterations=chunks
        )
        return math.log(self.evaluation_samples) - total

    def _log_likelihood(self, x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, logits)
        log_scale = self.learnt_scale.value(x.dtype) if self.scale is None else math.log(self.scale)
        return gaussian_log_likelihood(x, tf.sigmoid(logits), log_scale)


def _weighted_gradient(x: tf.Tensor, shares: list[tf.Tensor]) -> tf.Tensor:
    """`x` `[b, k, n]`, whose gradient is multiplied by the `[b, k]` that is in `shares` once the forward pass is traced."""

    @tf.custom_gradient
    def weighted(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(x), lambda gradient: gradient * shares[0][..., tf.newaxis]

    return weighted(x)


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
