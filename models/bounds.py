"""Bounds of log p(x) that variational autoencoders are trained on: the ELBO and the importance-weighted ones.

They are data of a configuration and hold no weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from models.latents import Paths
from models.layers import grouped
from models.objective import Batch, Metrics, Noise


@dataclasses.dataclass(frozen=True)
class Terms:
    """The parts of the ELBO with one posterior sample an example, in nats.

    Attributes:
      reconstruction: -log p(x | z), `[b]`.
      divergences: of each stochastic layer from below, `[b, units]`; their sum is the whole KL divergence.
      outputs: of the decoder, `[b, …]`.
    """

    reconstruction: tf.Tensor
    divergences: Sequence[tf.Tensor]
    outputs: tf.Tensor

    @property
    def metrics(self) -> dict[str, tf.Tensor]:
        """ "negative_elbo", "reconstruction" and "kl", with several layers also "kl_1" and so on, from below; `[b]` each."""
        layers = [tf.reduce_sum(units, 1) for units in self.divergences]
        kl = tf.add_n(layers)
        metrics = {
            "negative_elbo": self.reconstruction + kl,
            "reconstruction": self.reconstruction,
            "kl": kl,
        }
        return metrics | dict(zip(of_layers("kl", len(layers)), layers, strict=True))


def of_layers(name: str, layers: int) -> list[str]:
    """The names of a metric of each stochastic layer from below: its own for one layer, numbered from 1 for several."""
    return [name] if layers == 1 else [f"{name}_{number}" for number in range(1, layers + 1)]


class Model(Protocol):
    """What a bound asks of a model."""

    def terms(self, batch: Batch, noise: Noise, training: bool) -> Terms:
        """The parts of the ELBO."""

    def log_weights(
        self,
        batch: Batch,
        noise: Noise,
        samples: int,
        paths: Paths,
        training: bool,
        kl_weight: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        """log p(x | z_k) + β (log p(z_k) - log q(z_k | x)) of k samples with β the `kl_weight`, `[b, samples]`."""


class Bound(Protocol):
    """A loss of a model."""

    def loss(
        self, model: Model, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """The loss and the metrics of a training step, `[b]` each; see `objective.Phase.loss`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELBO:
    """-E log p(x | z) + β KL(q(z | x) ‖ p(z)) with one posterior sample.

    Free bits make the KL of each latent unit cost as much as λ nats where it is less, so that the model has no gain from
    closing a unit (Kingma et al. 2016, section 2.4 and appendix C, each unit a group of its own). They average
    it over the batch; here it is averaged over groups of consecutive examples of a fixed size, by default each example
    alone, which does not depend on the number of replicas.

    Attributes:
      beta: weight of the KL divergence (Higgins et al. 2017).
      kl_warmup_steps: steps over which that weight grows linearly from 0 (Bowman et al. 2016).
      free_bits: λ, in nats a latent unit.
      free_bits_examples: over how many examples a unit's KL is averaged before it is compared with λ; it must divide the
        batch of a replica and the microbatch. With several stochastic layers the KL of those below the top is
        an estimate by one sample, which only an average makes fit for the comparison.

    Raises:
      ValueError: if a number is out of range, or does not divide the batch.
    """

    beta: float = 1.0
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    free_bits_examples: int = 1

    def __post_init__(self) -> None:
        if self.beta < 0 or self.kl_warmup_steps < 0 or self.free_bits < 0:
            raise ValueError(
                f"ELBO has beta {self.beta}, kl_warmup_steps {self.kl_warmup_steps} and free_bits {self.free_bits}: "
                "they must be at least 0"
            )
        if self.free_bits_examples < 1 or (self.free_bits_examples > 1 and not self.free_bits):
            raise ValueError(
                f"free_bits_examples is {self.free_bits_examples} and free_bits {self.free_bits}: it must be at least 1, "
                "and above 1 only with free bits"
            )

    def loss(
        self, model: Model, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """The metrics are those of `Terms`: the KL as it is, without β and free bits."""
        terms = model.terms(batch, noise, training=True)
        metrics = terms.metrics
        kl = self._with_free_bits(terms.divergences) if self.free_bits else metrics["kl"]
        return terms.reconstruction + self.kl_weight(step, noise.dtype) * kl, metrics

    def kl_weight(self, step: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """β(step) = β · min(1, step / kl_warmup_steps), a scalar."""
        return self.beta * warmed_up(step, self.kl_warmup_steps, dtype)

    def _with_free_bits(self, divergences: Sequence[tf.Tensor]) -> tf.Tensor:
        """Σ max(λ, KL) over units, `[b]`; within a group all have the same."""
        units = tf.concat(divergences, 1)
        examples = self.free_bits_examples
        groups = grouped(units, examples, "free bits are averaged over", "free_bits_examples")
        means = tf.reduce_mean(groups, 1)
        return tf.repeat(tf.reduce_sum(tf.maximum(means, self.free_bits), 1), examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IWAE:
    """-log (1/K) Σ w_k with w_k = p(x, z_k) / q(z_k | x) (Burda, Grosse & Salakhutdinov 2016).

    Attributes:
      samples: K, of the posterior an example and update.
      doubly_reparameterised: whether the gradient of the encoders is that of Tucker et al. (2019, equation 8), which has the
        same mean, and whose signal does not drown in its noise as the samples grow (DReG).
      kl_warmup_steps: steps over which the weight β of log p(z_k) - log q(z_k | x) in log w_k grows linearly from 0, so
        that no layer is closed before the others are worth something (Sønderby et al. 2016, section 2.3, for one sample).

    Raises:
      ValueError: if there are no samples, or fewer than 0 steps.
    """

    samples: int = 5
    doubly_reparameterised: bool = False
    kl_warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"IWAE.samples is {self.samples}: it must be at least 1")
        if self.kl_warmup_steps < 0:
            raise ValueError(
                f"IWAE.kl_warmup_steps is {self.kl_warmup_steps}: it must be at least 0"
            )

    def loss(
        self, model: Model, batch: Batch, noise: Noise, step: tf.Tensor
    ) -> tuple[tf.Tensor, Metrics]:
        """No metrics but the loss."""
        paths = Paths(self.doubly_reparameterised)
        beta = warmed_up(step, self.kl_warmup_steps, noise.dtype)
        log_weights = model.log_weights(batch, noise, self.samples, paths, True, beta)
        # The term that is reparameterised once more, -β Σ (w_k / Σ w) ∇ log q(z_k | x), takes its share of the way through z_k.
        paths.factors = 1 - beta + beta * tf.nn.softmax(log_weights, 1)
        return -log_mean_exp(log_weights), {}


def warmed_up(step: tf.Tensor, steps: int, dtype: tf.DType) -> tf.Tensor:
    """min(1, step / steps), a scalar; 1 if there are none."""
    return tf.minimum(tf.cast(step, dtype) / steps, 1) if steps else tf.ones([], dtype)


def log_mean_exp(log_weights: tf.Tensor) -> tf.Tensor:
    """log (1/k) Σ w_k, `[b, k]` -> `[b]`."""
    return tf.reduce_logsumexp(log_weights, 1) - math.log(log_weights.shape[1])
