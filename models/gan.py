"""Generative adversarial networks of images: a discriminator phase, then a generator phase (Goodfellow et al. 2014)."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import keras
import tensorflow as tf

from models.gan_losses import LOSSES, gradient_penalty
from models.image_networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    NetworkFactory,
    image_shape,
)
from models.layers import GhostBatchNorm
from models.objective import Average, Batch, Feature, Metrics, Noise, Optimizer, Phase

ADAM = Optimizer(
    rule=functools.partial(keras.optimizers.Adam, beta_1=0.5),
    learning_rate=2e-4,
)
"""As in DCGAN (Radford, Metz & Chintala 2016)."""


class GAN:
    """A GAN of images in [0, 1], which its networks see in [-1, 1]. Implements `objective.Objective`.

    Each phase trains one network and moves the moving averages of that network only: the other one runs in training
    mode too, on statistics of the batch, but keeps its averages.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]`.
      generator: makes the generator before its tanh: `generator(image_shape, latent, noise=…, name=…)`.
      discriminator: makes the discriminator: `discriminator(image_shape, 1, noise=…, name=…)`.
      latent: length of the standard normal latent.
      loss: "non_saturating", "hinge" or "wgan_gp".
      critic_updates: of the discriminator for one of the generator.
      penalty_weight: of the gradient penalty, for "wgan_gp".
      average_decay: of the moving average of the generator's weights, with which `evaluate` and `sample` work; 0 for
        none, then they work with the generator itself.
      generator_optimizer: moves the generator.
      discriminator_optimizer: moves the discriminator.
    """

    def __init__(
        self,
        element_spec: Mapping[str, Feature],
        *,
        generator: NetworkFactory = ConvolutionalDecoder,
        discriminator: NetworkFactory = ConvolutionalEncoder,
        latent: int = 64,
        loss: str = "non_saturating",
        critic_updates: int = 1,
        penalty_weight: float = 10.0,
        average_decay: float = 0.999,
        generator_optimizer: Optimizer = ADAM,
        discriminator_optimizer: Optimizer = ADAM,
    ):
        if loss not in LOSSES:
            raise ValueError(f'the loss of GAN is "{loss}": it must be one of {", ".join(LOSSES)}')
        if critic_updates < 1 or latent < 1:
            raise ValueError(
                f"GAN has critic_updates {critic_updates} and latent {latent}: both must be at least 1"
            )
        if not 0 <= average_decay < 1:
            raise ValueError(f"average_decay is {average_decay}: it must be at least 0 and below 1")
        self.shape = image_shape(element_spec)
        self.generator_factory = generator
        self.discriminator_factory = discriminator
        self.latent = latent
        self.loss = LOSSES[loss]
        self.critic_updates = critic_updates
        self.penalty_weight = penalty_weight
        self.average_decay = average_decay
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def build(self, noise: Noise) -> None:
        self.generator = self._generator(noise, "generator")
        self.discriminator = self.discriminator_factory(
            self.shape, 1, noise=noise("discriminator"), name="discriminator"
        )
        if self.loss.critic:
            _refuse_batch_norm(self.discriminator)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.averaged, average = self.generator, None
        if self.average_decay:
            self.averaged = self._generator(noise, "generator_average")
            for copy, source in zip(self.averaged.weights, self.generator.weights, strict=True):
                copy.assign(source.value)
            self.networks["generator_average"] = self.averaged
            average = Average(source=self.generator, copy=self.averaged, decay=self.average_decay)
        self.phases = [
            Phase(
                name="discriminator",
                variables=self.discriminator.trainable_variables,
                loss=self.discriminator_loss,
                optimizer=self.discriminator_optimizer,
                updates=self.critic_updates,
            ),
            Phase(
                name="generator",
                variables=self.generator.trainable_variables,
                loss=self.generator_loss,
                optimizer=self.generator_optimizer,
                reads=False,
                average=average,
            ),
        ]

    def discriminator_loss(
        self, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """Loss of real and of generated examples, and the gradient penalty for a critic; `[b]` each."""
        real = _signed(batch, noise)
        fake = tf.stop_gradient(self._generate(self.generator, noise, training=True, update=False))
        metrics = self._judge(real, fake, noise, training=True)
        loss = metrics["real_loss"] + metrics["fake_loss"]
        if self.loss.critic:
            penalty = gradient_penalty(
                lambda x: self._output(x, noise, "interpolated", training=True, update=False),
                real,
                fake,
                noise("fraction").uniform(),
            )
            loss += self.penalty_weight * penalty
            metrics["gradient_penalty"] = penalty
        return loss, metrics

    def generator_loss(
        self, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """Loss `[b]` of `noise.rows` generated examples; `batch` is not looked at."""
        fake = self._generate(self.generator, noise, training=True, update=True)
        output = self._output(fake, noise, "fake", training=True, update=False)
        return self.loss.generator(output), {"fake_output": output}

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Both losses (a critic's without its penalty) of held-out examples and as many of the averaged generator."""
        fake = self._generate(self.averaged, noise)
        metrics = self._judge(_signed(batch, noise), fake, noise, training=False)
        metrics["discriminator_loss"] = metrics["real_loss"] + metrics["fake_loss"]
        metrics["generator_loss"] = self.loss.generator(metrics["fake_output"])
        return metrics

    def sample(self, noise: Noise) -> tf.Tensor:
        """Images of the averaged generator, `[rows, height, width, channels]` in [0, 1]."""
        return (self._generate(self.averaged, noise) + 1) / 2

    def _generator(self, noise: Noise, name: str) -> keras.layers.Layer:
        return self.generator_factory(self.shape, self.latent, noise=noise(name), name=name)

    def _generate(
        self,
        generator: keras.layers.Layer,
        noise: Noise,
        training: bool = False,
        update: bool = False,
    ) -> tf.Tensor:
        """Images in [-1, 1], in the noise's dtype."""
        latent = noise("latent").normal([self.latent])
        image = generator(
            latent, noise=noise("generator"), training=training, update_statistics=update
        )
        return tf.tanh(tf.cast(image, noise.dtype))

    def _output(
        self, x: tf.Tensor, noise: Noise, which: str, training: bool, update: bool
    ) -> tf.Tensor:
        """The discriminator's outputs `[b]` for the images called `which`, in the noise's dtype."""
        output = self.discriminator(
            x, noise=noise(f"discriminator/{which}"), training=training, update_statistics=update
        )
        return tf.cast(output[:, 0], noise.dtype)

    def _judge(
        self, real: tf.Tensor, fake: tf.Tensor, noise: Noise, training: bool
    ) -> dict[str, tf.Tensor]:
        real_output = self._output(real, noise, "real", training, update=training)
        fake_output = self._output(fake, noise, "fake", training, update=training)
        metrics = {
            "real_loss": self.loss.real(real_output),
            "fake_loss": self.loss.fake(fake_output),
            "real_output": real_output,
            "fake_output": fake_output,
        }
        if not self.loss.critic:
            right = tf.cast(real_output > 0, noise.dtype) + tf.cast(fake_output < 0, noise.dtype)
            metrics["accuracy"] = right / 2
        return metrics


def _signed(batch: Batch, noise: Noise) -> tf.Tensor:
    return 2 * tf.cast(batch["image"], noise.dtype) - 1


def _refuse_batch_norm(critic: keras.layers.Layer) -> None:
    for layer in critic._flatten_layers():
        if isinstance(layer, GhostBatchNorm):
            raise ValueError(
                f'the critic of "wgan_gp" has the batch norm "{layer.path}", but the gradient penalty is for each example '
                "alone: set the discriminator's group to 0"
            )
