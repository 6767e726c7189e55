"""Generative adversarial networks of images: a discriminator phase, then a generator phase (Goodfellow et al. 2014)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from models.augmentation import CHANGES, augment
from models.diversity import diversity
from models.gan_losses import LOSSES
from models.grid_networks import refuse_grids
from models.image_networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    NetworkFactory,
    image_shape,
)
from models.labels import count_classes
from models.layers import GhostBatchNorm
from models.objective import Average, Batch, Feature, Metrics, Noise, Optimizer, Phase
from models.penalties import PENALTIES
from models.tables import COLUMNS, arc
from models.xla import in_xla

ADAM = Optimizer(
    rule=functools.partial(keras.optimizers.Adam, beta_1=0.5),
    learning_rate=2e-4,
)
"""As in DCGAN (Radford, Metz & Chintala 2016)."""


class GAN:
    """A GAN of images in [0, 1], which its networks see in [-1, 1]. Implements `objective.Objective`,
    `Conditional` and `Pictured`.

    Each phase trains one network and moves the moving averages of that network only: the other one runs in training
    mode too, on statistics of the batch, but keeps its averages.

    A class-conditional GAN takes the class of each generated example from the real example of the same number. So the
    discriminator sees the classes of both equally often, however rare they are, and a gradient penalty between two examples
    has one class.

    Args:
      element_spec: of the data, with "image" `[height, width, channels]`, and "label" if the GAN is conditional.
      generator: makes the generator before its tanh: `generator(image_shape, latent, noise=…, name=…)`.
      discriminator: makes the discriminator: `discriminator(image_shape, 1, noise=…, name=…)`.
      latent: length of the standard normal latent.
      loss: "non_saturating", "hinge", "least_squares" or "wasserstein".
      conditional: whether both networks are told the class; they are then made with `classes=…`. Sample i has class
        i modulo classes.
      penalty: on the discriminator's gradient: "wgan_gp", "r1" or "dragan" (see `penalties`), or None.
      penalty_weight: of the penalty; 10 is the default of all three papers.
      penalty_every: steps from one penalty to the next, which is weighted by their number (Karras et al. 2020, lazy
        regularisation); the metric too, so that its mean over many steps is that of the penalty.
      augmentation: changes of the discriminator's images in this order: "colour", "translation", "cutout" (see
        `augmentation`).
      watch_diversity: whether the metrics "real_diversity" and "fake_diversity" show a collapse, the second far below the
        first: the mean absolute difference of two consecutive examples, of pixels in [0, 1], none of two classes. It takes an
        even number of examples on each replica and in each microbatch.
      critic_updates: of the discriminator for one of the generator.
      average_decay: of the moving average of the generator's weights, with which `evaluate` and `sample` work; 0 for
        none, then they work with the generator itself.
      truncation: samples are of normal latents no component of which is larger (Brock, Donahue & Simonyan 2019, the truncation
        trick): the smaller, the more typical of the data and the less diverse. None for all of them; training always has all.
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
        conditional: bool = False,
        penalty: str | None = None,
        penalty_weight: float = 10.0,
        penalty_every: int = 1,
        augmentation: Sequence[str] = (),
        watch_diversity: bool = True,
        critic_updates: int = 1,
        average_decay: float = 0.999,
        truncation: float | None = None,
        generator_optimizer: Optimizer = ADAM,
        discriminator_optimizer: Optimizer = ADAM,
    ):
        if loss not in LOSSES:
            raise ValueError(f'the loss of GAN is "{loss}": it must be one of {", ".join(LOSSES)}')
        if penalty is not None and penalty not in PENALTIES:
            raise ValueError(
                f'the penalty of GAN is "{penalty}": it must be one of {", ".join(PENALTIES)}, or None'
            )
        if penalty_every < 1 or (penalty is None and penalty_every > 1):
            raise ValueError(
                f"penalty_every is {penalty_every} with penalty {penalty}: it must be at least 1, and 1 without a penalty"
            )
        for change in augmentation:
            if change not in CHANGES:
                raise ValueError(
                    f'GAN.augmentation has "{change}": it must be of {", ".join(CHANGES)}'
                )
        if len(set(augmentation)) < len(augmentation):
            raise ValueError(
                f"GAN.augmentation is {', '.join(augmentation)}: name each change once"
            )
        if not penalty_weight >= 0:
            raise ValueError(f"GAN.penalty_weight is {penalty_weight}: it must be at least 0")
        if critic_updates < 1 or latent < 1:
            raise ValueError(
                f"GAN has critic_updates {critic_updates} and latent {latent}: both must be at least 1"
            )
        if not 0 <= average_decay < 1:
            raise ValueError(f"average_decay is {average_decay}: it must be at least 0 and below 1")
        if truncation is not None and not truncation > 0:
            raise ValueError(f"GAN.truncation is {truncation}: it must be above 0, or None")
        self.shape = image_shape(element_spec)
        self.classes = count_classes(element_spec, "GAN.conditional is True") if conditional else 0
        self.generator_factory = generator
        self.discriminator_factory = discriminator
        self.latent = latent
        self.loss = LOSSES[loss]
        self.penalty = None if penalty is None else PENALTIES[penalty]
        self.penalty_weight = penalty_weight
        self.penalty_every = penalty_every
        self.augmentation = tuple(augmentation)
        self.watch_diversity = watch_diversity
        self.critic_updates = critic_updates
        self.average_decay = average_decay
        self.truncation = truncation
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def build(self, noise: Noise) -> None:
        self.generator = self._network(self.generator_factory, self.latent, noise, "generator")
        self.discriminator = self._network(self.discriminator_factory, 1, noise, "discriminator")
        if self.penalty:
            _refuse_batch_norm(self.discriminator)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.averaged, average = self.generator, None
        if self.average_decay:
            self.averaged = self._network(
                self.generator_factory, self.latent, noise, "generator_average"
            )
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
        """Loss of real and of generated examples, and the gradient penalty; `[b]` each."""
        real, labels = _signed(batch, noise), self._labels(batch)
        fake = self._generate(self.generator, labels, noise, training=True, update=False)
        fake = tf.stop_gradient(fake)
        metrics = self._judge(real, fake, labels, noise, training=True)
        loss = metrics["real_loss"] + metrics["fake_loss"]
        if self.penalty:
            penalty = self._penalty(real, fake, labels, noise, step)
            loss += self.penalty_weight * penalty
            metrics["gradient_penalty"] = penalty
        return loss, metrics

    def generator_loss(
        self, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """Loss `[b]` of `noise.rows` generated examples; nothing of `batch` is looked at but the labels."""
        labels = self._labels(batch)
        fake = self._generate(self.generator, labels, noise, training=True, update=True)
        output = self._output(fake, labels, noise, "fake", training=True, update=False)
        return self.loss.generator(output), {"fake_output": output}

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        """Both losses (without a penalty) of held-out examples and as many of the averaged generator, of their classes."""
        labels = self._labels(batch)
        fake = self._generate(self.averaged, labels, noise)
        metrics = self._judge(_signed(batch, noise), fake, labels, noise, training=False)
        metrics["discriminator_loss"] = metrics["real_loss"] + metrics["fake_loss"]
        metrics["generator_loss"] = self.loss.generator(metrics["fake_output"])
        return metrics

    def sample(self, noise: Noise) -> tf.Tensor:
        """Images of the averaged generator, `[rows, height, width, channels]` in [0, 1]; the classes take turns."""
        labels = noise.index % self.classes if self.classes else None
        return (self._image(self.averaged, self._typical(noise), labels, noise) + 1) / 2

    def pictures(self, batch: Batch, noise: Noise) -> Mapping[str, tf.Tensor]:
        """The table "interpolations": from one latent to another at equal angles, each row of one class."""
        latent = self._typical(noise)
        pairs = noise.rows // 2
        if not pairs:
            return {}
        path = arc(latent[:pairs], latent[pairs : 2 * pairs], COLUMNS)
        labels = tf.repeat(tf.range(pairs) % self.classes, COLUMNS) if self.classes else None
        flat = tf.reshape(path, [pairs * COLUMNS, self.latent])
        images = self._image(self.averaged, flat, labels, noise)
        return {"interpolations": tf.reshape((images + 1) / 2, [pairs, COLUMNS, *self.shape])}

    def _network(
        self, factory: NetworkFactory, size: int, noise: Noise, name: str
    ) -> keras.layers.Layer:
        # Asked by making it, since a configuration's wrapper hides what a network takes.
        classes = {"classes": self.classes} if self.classes else {}
        try:
            made = factory(self.shape, size, noise=noise(name), name=name, **classes)
        except TypeError as error:
            if "unexpected keyword argument 'classes'" not in str(error):
                raise
            raise ValueError(
                f"GAN.conditional is True, but the {name} knows no classes: choose the ResNet networks, or set "
                "GAN.conditional = False"
            ) from None
        refuse_grids(made, f"the {name} of GAN")
        return made

    def _labels(self, batch: Batch) -> tf.Tensor | None:
        return batch["label"] if self.classes else None

    def _generate(
        self,
        generator: keras.layers.Layer,
        labels: tf.Tensor | None,
        noise: Noise,
        training: bool = False,
        update: bool = False,
    ) -> tf.Tensor:
        """Images of random latents."""
        latent = noise("latent").normal([self.latent])
        return self._image(generator, latent, labels, noise, training, update)

    def _typical(self, noise: Noise) -> tf.Tensor:
        """The latents of samples, `[b, latent]`."""
        if self.truncation is None:
            return noise("latent").normal([self.latent])
        limit = tf.constant(self.truncation, noise.dtype)
        signed = 2 * noise("latent").uniform([self.latent]) - 1
        latent = math.sqrt(2) * tf.math.erfinv(tf.math.erf(limit / math.sqrt(2)) * signed)
        return tf.clip_by_value(latent, -limit, limit)  # It may round beyond.

    def _image(
        self,
        generator: keras.layers.Layer,
        latent: tf.Tensor,
        labels: tf.Tensor | None,
        noise: Noise,
        training: bool = False,
        update: bool = False,
    ) -> tf.Tensor:
        """Images in [-1, 1], in the noise's dtype."""
        image = generator(
            latent,
            noise=noise("generator"),
            training=training,
            update_statistics=update,
            **_given(labels),
        )
        return tf.tanh(tf.cast(image, noise.dtype))

    def _output(
        self,
        x: tf.Tensor,
        labels: tf.Tensor | None,
        noise: Noise,
        which: str,
        training: bool,
        update: bool,
    ) -> tf.Tensor:
        """The discriminator's outputs `[b]` for the images called `which`, augmented in training, in the noise's dtype."""
        if training:
            x = augment(x, self.augmentation, noise(f"augmentation/{which}"))
        output = self.discriminator(
            x,
            noise=noise(f"discriminator/{which}"),
            training=training,
            update_statistics=update,
            **_given(labels),
        )
        return tf.cast(output[:, 0], noise.dtype)

    def _penalty(
        self,
        real: tf.Tensor,
        fake: tf.Tensor,
        labels: tf.Tensor | None,
        noise: Noise,
        step: tf.Tensor,
    ) -> tf.Tensor:
        """`penalty_every` times the penalty at each step which that divides, else zero; `[b]`."""
        penalty, every = self.penalty, self.penalty_every
        assert penalty is not None

        def weighted() -> tf.Tensor:
            def discriminator(x: tf.Tensor) -> tf.Tensor:
                return self._output(x, labels, noise, "penalised", training=True, update=False)

            return every * penalty(discriminator, real, fake, noise)

        if every == 1:
            return weighted()
        due = step % every == 0
        if in_xla():
            # It cannot compile the second gradient of a branch (TRAPS 9f), where shapes and permutations that were constants in the first
            # pass are none: there the penalty is computed at every step, and is the same unless one that does not count has a
            # gradient that is not finite.
            return tf.where(due, weighted(), 0)
        return tf.cond(due, weighted, lambda: tf.zeros([noise.rows], noise.dtype))

    def _judge(
        self,
        real: tf.Tensor,
        fake: tf.Tensor,
        labels: tf.Tensor | None,
        noise: Noise,
        training: bool,
    ) -> dict[str, tf.Tensor]:
        real_output = self._output(real, labels, noise, "real", training, update=training)
        fake_output = self._output(fake, labels, noise, "fake", training, update=training)
        metrics = {
            "real_loss": self.loss.real(real_output),
            "fake_loss": self.loss.fake(fake_output),
            "real_output": real_output,
            "fake_output": fake_output,
        }
        boundary = self.loss.boundary
        if boundary is not None:
            right = tf.cast(real_output > boundary, noise.dtype)
            metrics["accuracy"] = (right + tf.cast(fake_output < boundary, noise.dtype)) / 2
        if self.watch_diversity and training:  # Held-out examples may be sorted, by class say.
            metrics["real_diversity"] = diversity(real, labels)
            metrics["fake_diversity"] = diversity(fake, labels)
        return metrics


def _signed(batch: Batch, noise: Noise) -> tf.Tensor:
    return 2 * tf.cast(batch["image"], noise.dtype) - 1


def _given(labels: tf.Tensor | None) -> dict[str, tf.Tensor]:
    """Arguments for a network, of which only those of classes take labels."""
    return {} if labels is None else {"labels": labels}


def _refuse_batch_norm(discriminator: keras.layers.Layer) -> None:
    for layer in discriminator._flatten_layers():
        if isinstance(layer, GhostBatchNorm):
            raise ValueError(
                f'the discriminator has the batch norm "{layer.path}", but the gradient penalty is for each example '
                "alone: set the discriminator's group to 0"
            )
