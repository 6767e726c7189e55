"""Variational autoencoders of images with normal posteriors (Kingma & Welling 2014), of one stochastic layer or two.

What is minimised is a bound of `models.bounds`: the ELBO, or with several samples of the posterior the importance-weighted
bound (Burda, Grosse & Salakhutdinov 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from models.bounds import ELBO, Bound, Terms, of_layers
from models.distributions import Normal
from models.grid_networks import refuse_grids
from models.image_networks import NetworkFactory, image_shape
from models.labels import LabelPlane, count_classes
from models.latents import Paths, PriorFactory, StandardNormal, of_samples
from models.layers import Centring
from models.likelihoods import Bernoulli, LikelihoodFactory
from models.mlp import MLPDecoder, MLPEncoder
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase
from models.tables import COLUMNS, line

ADAM = Optimizer()
EXACT_ELBO = ELBO()
ACTIVE = 0.01


class VAE:
    """A VAE of images in [0, 1]: q(z | x), p(z), p(x | z). Implements `objective.Objective`, `Conditional`, `Pictured`,
    `Summarised` and `bounds.Model`.

    Losses are in nats an example, summed over pixels and latents.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]`.
      encoder: makes the network of q(z | x): `encoder(image_shape, 2 * latent, noise=…, name=…)`, whose outputs are means,
        then log-variances.
      decoder: makes that of p(x | z): `decoder(likelihood.outputs, latent, noise=…, name=…)`.
      latent: units of z.
      prior: makes p(z): standard normal, or `StochasticLayer`.
      likelihood: makes p(x | outputs of the decoder): see `models.likelihoods`.
      conditional: whether all of it is given the label y of a picture (Sohn, Lee & Yan 2015): q(z | x, y), p(z), p(x | z, y).
        The data must have "label", integers with a cardinality. The decoder has y one-hot beside z, the encoder as one more
        channel, a plane that is a linear function of y one-hot. Sample i is of class i modulo the number of classes.
      centred: whether the mean picture of the data, a moving average, is subtracted from what the encoder is given, and what
        the decoder gives is relative to outputs that expect it. Burda et al. (2016) train so, with the mean known before.
      bound: what is minimised.
      evaluation_samples: of the posterior an example in `evaluate`, for "negative_log_likelihood", which is then a metric
        too: the importance-weighted bound, which comes near -log p(x) as they grow (5,000 are usual); 0 for none.
      evaluation_chunk: how many of these are decoded at once; it must divide them.
      optimizer: moves all networks.

    Raises:
      ValueError: if a number is out of range, or the data has no such image or label.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        encoder: NetworkFactory = MLPEncoder,
        decoder: NetworkFactory = MLPDecoder,
        latent: int = 16,
        prior: PriorFactory = StandardNormal,
        likelihood: LikelihoodFactory = Bernoulli,
        conditional: bool = False,
        centred: bool = False,
        bound: Bound = EXACT_ELBO,
        evaluation_samples: int = 0,
        evaluation_chunk: int = 50,
        optimizer: Optimizer = ADAM,
    ):
        if latent < 1:
            raise ValueError(f"VAE.latent is {latent}: it must be at least 1")
        if evaluation_samples < 0 or evaluation_chunk < 1 or evaluation_samples % evaluation_chunk:
            raise ValueError(
                f"evaluation_samples is {evaluation_samples} and evaluation_chunk {evaluation_chunk}: the chunk must be at "
                "least 1 and divide the samples"
            )
        self.shape = image_shape(element_spec)
        self.classes = count_classes(element_spec, "VAE.conditional is True") if conditional else 0
        self.encoder_factory = encoder
        self.decoder_factory = decoder
        self.latent = latent
        self.prior_factory = prior
        self.likelihood_factory = likelihood
        self.centred = centred
        self.bound = bound
        self.evaluation_samples = evaluation_samples
        self.evaluation_chunk = evaluation_chunk
        self.optimizer = optimizer

    def build(self, noise: Noise) -> None:
        self.likelihood = self.likelihood_factory(self.shape, name="likelihood")
        self.prior = self.prior_factory(self.latent, noise=noise("prior"), name="prior")
        height, width, channels = self.shape
        self.encoder = self.encoder_factory(
            (height, width, channels + (self.classes > 0)),
            2 * self.latent,
            noise=noise("encoder"),
            name="encoder",
        )
        self.decoder = self.decoder_factory(
            self.likelihood.outputs,
            self.latent + self.classes,
            noise=noise("decoder"),
            name="decoder",
        )
        for network in (self.encoder, self.decoder):
            refuse_grids(network, f"VAE.{network.name}")
        made = [self.encoder, self.decoder, self.prior, self.likelihood]
        if self.centred:
            self.centring = Centring("centring", initial=0.5)
            self.centring.build((None, *self.shape))
            made.append(self.centring)
        if self.classes:
            self.label_plane = LabelPlane(
                self.classes, (height, width), noise=noise("label_plane"), name="label_plane"
            )
            made.append(self.label_plane)
        self.networks = {layer.name: layer for layer in made if layer.variables}
        variables = [v for network in self.networks.values() for v in network.trainable_variables]
        self.phases = [
            Phase(name="elbo", variables=variables, loss=self.loss, optimizer=self.optimizer)
        ]

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """That of the bound, `[b]`, and its metrics."""
        loss, metrics = self.bound.loss(self, batch, noise, step)
        if self.centred:
            self.centring.update(batch["image"])
        return loss, metrics

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """The negative ELBO with one posterior sample, without β and free bits, and its parts; `[b]` each.

        With it go the metrics of the likelihood; with `evaluation_samples` the importance-weighted "negative_log_likelihood",
        and in bits "likelihood_bits_per_dimension"; and for `summary` the posterior means of each stochastic layer and their
        squares, `[b, 2, units]`.
        """
        x = tf.cast(batch["image"], noise.dtype)
        posterior = self._posterior(batch, noise, training=False)
        terms = self._terms(batch, posterior, noise, training=False)
        metrics = terms.metrics
        metrics |= self.likelihood.metrics(x, terms.outputs, metrics["negative_elbo"])
        if self.evaluation_samples:
            nats = self._negative_log_likelihood(batch, posterior, noise("importance"))
            metrics["negative_log_likelihood"] = nats
            metrics |= self.likelihood.bits_per_dimension("likelihood_bits_per_dimension", nats)
        means = self.prior.posterior_means(posterior.mean, noise("prior"))
        for mean, name in zip(means, of_layers("active_units", len(means)), strict=True):
            metrics[name] = tf.stack([mean, tf.square(mean)], 1)
        return metrics

    def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The means, and how many units are active: whose posterior mean has a variance above 0.01 over the examples.

        "active_units", with several stochastic layers "active_units_1" and so on, from below (Burda, Grosse & Salakhutdinov
        2016, section 5.2, who take the posterior mean of a layer over samples of the one below it; here it is that at
        the posterior mean below).
        """
        reported = dict(means)
        for name, moments in means.items():
            if name.startswith("active_units"):
                reported[name] = np.sum(moments[1] - moments[0] ** 2 > ACTIVE)
        return reported

    def sample(self, noise: Noise) -> tf.Tensor:
        """Expected pictures for latents of the prior, `[rows, height, width, channels]` in [0, 1]."""
        z = self.prior.draw(noise("latent"))
        labels = noise.index % self.classes if self.classes else None
        outputs = self._decode(z[:, tf.newaxis], labels, noise, training=False)
        return self.likelihood.mean(outputs[:, 0])

    def pictures(self, batch: Batch, noise: Noise) -> Mapping[str, tf.Tensor]:
        """Tables of expected pictures.

        "reconstructions": images above what is made of their posterior means. "interpolations": from one image's to the
        next one's, in pairs. "traversals": the first image's, with one latent at a time from -3 to 3, see
        `Prior.traversals`.
        """
        posterior = self._posterior(batch, noise, training=False)
        mean, labels = posterior.mean, batch.get("label")

        def shown(z: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
            """Latents `[n, k, latent]`, labels `[n]` -> `[n, k, height, width, channels]`."""
            outputs = self._decode(z, labels, noise, training=False)
            flat = tf.reshape(outputs, [-1, *outputs.shape[2:]])
            return tf.reshape(self.likelihood.mean(flat), [*z.shape[:2], *self.shape])

        tables = {
            "reconstructions": tf.stack(
                [tf.cast(batch["image"], noise.dtype), shown(mean[:, tf.newaxis], labels)[:, 0]]
            )
        }
        pairs = mean.shape[0] // 2
        if pairs:
            starts = None if labels is None else labels[: 2 * pairs : 2]
            path = line(mean[: 2 * pairs : 2], mean[1 : 2 * pairs : 2], COLUMNS)
            tables["interpolations"] = shown(path, starts)
        latents = self.prior.traversals(posterior, noise("prior"))
        first = None if labels is None else tf.repeat(labels[:1], latents.shape[0])
        tables["traversals"] = shown(latents, first)
        return tables

    def terms(self, batch: Batch, noise: Noise, training: bool) -> Terms:
        return self._terms(batch, self._posterior(batch, noise, training), noise, training)

    def _terms(self, batch: Batch, posterior: Normal, noise: Noise, training: bool) -> Terms:
        x = tf.cast(batch["image"], noise.dtype)
        z = posterior.reparameterised(noise("posterior").normal([self.latent]))
        outputs = self._decode(z[:, tf.newaxis], batch.get("label"), noise, training)
        return Terms(
            reconstruction=-self.likelihood.log_probability(x, outputs)[:, 0],
            divergences=self.prior.divergences(posterior, z, noise("prior"), training),
            outputs=outputs[:, 0],
        )

    def log_weights(
        self,
        batch: Batch,
        noise: Noise,
        samples: int,
        paths: Paths,
        training: bool,
        kl_weight: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        posterior = self._posterior(batch, noise, training)
        return self._log_weights(batch, posterior, noise, samples, paths, training, kl_weight)

    def _log_weights(
        self,
        batch: Batch,
        posterior: Normal,
        noise: Noise,
        samples: int,
        paths: Paths,
        training: bool,
        kl_weight: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        x = tf.cast(batch["image"], noise.dtype)
        posterior = Normal(posterior.mean[:, tf.newaxis], posterior.log_variance[:, tf.newaxis])
        z = posterior.reparameterised(noise("posterior").normal([samples, self.latent]))
        outputs = self._decode(paths.through(z), batch.get("label"), noise, training)
        ratio = self.prior.log_ratio(posterior, z, noise("prior"), paths, training)
        return self.likelihood.log_probability(x, outputs) + kl_weight * ratio

    def _negative_log_likelihood(self, batch: Batch, posterior: Normal, noise: Noise) -> tf.Tensor:
        """-log (1/K) Σ w_k with K = `evaluation_samples`, `[b]`, a chunk at a time."""
        chunk, paths = self.evaluation_chunk, Paths()
        chunks = self.evaluation_samples // chunk

        def more(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            numbered = noise.numbered(number)
            weights = self._log_weights(batch, posterior, numbered, chunk, paths, training=False)
            return number + 1, tf.reduce_logsumexp(tf.concat([total[:, tf.newaxis], weights], 1), 1)

        nothing = tf.fill([noise.rows], tf.constant(-math.inf, noise.dtype))
        # Chunks do not wait for each other: 10 of them would be in memory at once.
        _, total = tf.while_loop(
            lambda number, _: number < chunks,
            more,
            (0, nothing),
            parallel_iterations=1,
            maximum_iterations=chunks,
        )
        return math.log(self.evaluation_samples) - total

    def _posterior(self, batch: Batch, noise: Noise, training: bool) -> Normal:
        """q(z | x), or q(z | x, label), `[b, latent]`."""
        x = tf.cast(batch["image"], noise.dtype)
        if self.centred:
            x = self.centring(x)
        if self.classes:
            plane = tf.cast(self.label_plane(batch["label"]), x.dtype)
            x = tf.concat([x, plane], 3)
        parameters = self.encoder(x, noise=noise("encoder"), training=training)
        return Normal.of(tf.cast(parameters, noise.dtype))

    def _decode(
        self, z: tf.Tensor, labels: tf.Tensor | None, noise: Noise, training: bool
    ) -> tf.Tensor:
        """Outputs of the decoder `[b, k, *outputs]` of latents `[b, k, latent]` and, if conditional, labels `[b]`."""
        if self.classes:
            one_hot = tf.one_hot(labels, self.classes, dtype=z.dtype)[:, tf.newaxis]
            z = tf.concat([z, tf.repeat(one_hot, z.shape[1], 1)], 2)
        outputs = of_samples(self.decoder, z, noise("decoder"), training)
        if self.centred:
            mean = tf.cast(self.centring.moving_mean, outputs.dtype)
            outputs += self.likelihood.offset(mean)
        return outputs
