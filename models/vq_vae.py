"""The vector-quantised variational autoencoder of images (van den Oord, Vinyals & Kavukcuoglu 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from models.categorical import draw
from models.codebook import Codebook
from models.grid_networks import ResidualDecoder, ResidualEncoder
from models.image_networks import NetworkFactory, image_shape
from models.likelihoods import Bernoulli, LikelihoodFactory
from models.objective import Batch, Feature, Metrics, Noise, Optimizer, Phase

ADAM = Optimizer()


class VQVAE:
    """Images in [0, 1] by a grid of codes from a codebook. Implements `objective.Objective`, `Pictured` and `Summarised`.

    Trained on -log p(x | e) + β Σ |z - sg(e)|² with e the codes nearest to the encoder's vectors z, whose gradient is
    that of e (straight through). The codebook follows z by moving averages, see `Codebook`, so it has no loss.

    The prior is that of codes drawn one by one, each with its share in the codebook's use lately; none is learnt. Under
    it the negative ELBO is -log p(x | e) - log p(codes), since the posterior is certain.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]`.
      encoder: makes the encoder: `encoder(image_shape, width, noise=…, name=…)`, to grids, whose shape
        `[rows, columns, width]` is its `outputs`.
      decoder: makes the decoder: `decoder(likelihood.outputs, width, noise=…, name=…)`, of such grids, its
        `inputs`.
      likelihood: makes p(x | outputs of the decoder): see `models.likelihoods`.
      codes: how many there are in the codebook, and `width`, the length of each.
      commitment: β.
      decay: of the codebook's moving averages.
      optimizer: moves all networks; the codebook moves by itself.

    Raises:
      ValueError: if a number is out of range, or the data has no such image.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        encoder: NetworkFactory = ResidualEncoder,
        decoder: NetworkFactory = ResidualDecoder,
        likelihood: LikelihoodFactory = Bernoulli,
        codes: int = 512,
        width: int = 64,
        commitment: float = 0.25,
        decay: float = 0.99,
        optimizer: Optimizer = ADAM,
    ):
        if commitment < 0:
            raise ValueError(f"VQVAE.commitment is {commitment}: it must be at least 0")
        self.shape = image_shape(element_spec)
        self.encoder_factory = encoder
        self.decoder_factory = decoder
        self.likelihood_factory = likelihood
        self.codes = codes
        self.width = width
        self.commitment = commitment
        self.decay = decay
        self.optimizer = optimizer

    def build(self, noise: Noise) -> None:
        self.likelihood = self.likelihood_factory(self.shape, name="likelihood")
        self.encoder = self.encoder_factory(
            self.shape, self.width, noise=noise("encoder"), name="encoder"
        )
        self.decoder = self.decoder_factory(
            self.likelihood.outputs, self.width, noise=noise("decoder"), name="decoder"
        )
        self._check_grids()
        self.grid = self.encoder.outputs[:2]
        self.codebook = Codebook(
            self.codes,
            self.width,
            self.grid[0] * self.grid[1],
            noise=noise("codebook"),
            name="codebook",
            decay=self.decay,
        )
        made = (self.encoder, self.decoder, self.likelihood, self.codebook)
        self.networks = {layer.name: layer for layer in made if layer.variables}
        variables = [v for network in self.networks.values() for v in network.trainable_variables]
        self.phases = [
            Phase(name="vq", variables=variables, loss=self.loss, optimizer=self.optimizer)
        ]

    def _check_grids(self) -> None:
        made: tuple[int, ...] = getattr(self.encoder, "outputs", ())
        taken: tuple[int, ...] = getattr(self.decoder, "inputs", ())
        for network, grid in ((self.encoder, made), (self.decoder, taken)):
            if len(grid) != 3:
                raise ValueError(
                    f"VQVAE.{network.name} is a {type(network).__name__}, whose code is no grid: choose ResidualEncoder and "
                    "ResidualDecoder"
                )
        if made != taken:
            raise ValueError(
                f"VQVAE.encoder makes grids of {made[0]}×{made[1]} and VQVAE.decoder takes {taken[0]}×{taken[1]}: give both "
                "networks the same stages"
            )

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        """-log p(x | e) + β Σ |z - sg(e)|², `[b]`; the metrics are those of `evaluate`, but for the likelihood's."""
        metrics, z, numbers, _ = self._terms(batch, noise, training=True)
        self.codebook.update(z, numbers)
        vectors = z.shape[1] * z.shape[2] * self.width
        return metrics["reconstruction"] + self.commitment * vectors * metrics["distance"], metrics

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Of held-out examples, `[b]` each but for "usage".

        "reconstruction", -log p(x | e), and "rate", -log p(codes), in nats, and their sum "negative_elbo"; "distance", the
        mean of (z - e)²; the metrics of the likelihood; and "usage" `[b, codes]`, the share of each code in an example.
        """
        metrics, _, numbers, outputs = self._terms(batch, noise, training=False)
        x = tf.cast(batch["image"], noise.dtype)
        metrics |= self.likelihood.metrics(x, outputs, metrics["negative_elbo"])
        chosen = tf.one_hot(numbers, self.codebook.codes, dtype=noise.dtype)
        return metrics | {"usage": tf.reduce_mean(chosen, [1, 2])}

    def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The means, and for the usage its "perplexity", exp of its entropy: of so many codes alike in use is it as much."""
        metrics = dict(means)
        usage = metrics.pop("usage")
        entropy = -np.sum(usage * np.log(usage, where=usage > 0, out=np.zeros_like(usage)))
        return metrics | {"perplexity": np.exp(entropy)}

    def sample(self, noise: Noise) -> tf.Tensor:
        """Expected pictures for codes of the prior, `[rows, height, width, channels]` in [0, 1]."""
        uniform = tf.reshape(noise("codes").uniform(self.grid), [-1])
        logits = tf.math.log(self.codebook.usage(noise.dtype))
        numbers = draw(tf.tile(logits[tf.newaxis], [uniform.shape[0], 1]), uniform)
        codes = self.codebook.look_up(tf.reshape(numbers, [-1, *self.grid]), noise.dtype)
        return self.likelihood.mean(self._decode(codes, noise, training=False))

    def pictures(self, batch: Batch, noise: Noise) -> Mapping[str, tf.Tensor]:
        """The table "reconstructions": images above what is made of their codes."""
        outputs = self._terms(batch, noise, training=False)[3]
        images = tf.cast(batch["image"], noise.dtype)
        return {"reconstructions": tf.stack([images, self.likelihood.mean(outputs)])}

    def _terms(
        self, batch: Batch, noise: Noise, training: bool
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
        """Metrics `[b]`, vectors z `[b, *grid, width]`, numbers of their codes `[b, *grid]`, the decoder's outputs."""
        x = tf.cast(batch["image"], noise.dtype)
        z = self.encoder(x, noise=noise("encoder"), training=training)
        z = tf.cast(z, noise.dtype)
        numbers = self.codebook.nearest(tf.stop_gradient(z))
        codes = self.codebook.look_up(numbers, noise.dtype)
        outputs = self._decode(z + tf.stop_gradient(codes - z), noise, training)
        reconstruction = -self.likelihood.log_probability(x, outputs[:, tf.newaxis])[:, 0]
        nats = -tf.math.log(self.codebook.usage(noise.dtype))
        rate = tf.reduce_sum(tf.gather(nats, numbers), [1, 2])
        metrics = {
            "negative_elbo": reconstruction + rate,
            "reconstruction": reconstruction,
            "rate": rate,
            "distance": tf.reduce_mean(tf.math.squared_difference(z, codes), [1, 2, 3]),
        }
        return metrics, z, numbers, outputs

    def _decode(self, codes: tf.Tensor, noise: Noise, training: bool) -> tf.Tensor:
        outputs = self.decoder(codes, noise=noise("decoder"), training=training)
        return tf.cast(outputs, noise.dtype)
