"""A learning rate that falls from epoch to epoch."""

from __future__ import annotations

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochDecay:
    """A rate that is kept for some epochs and then multiplied at the start of each epoch more (Zaremba et al. 2014).

    Attributes:
      initial_learning_rate: of the first epochs.
      steps_per_epoch: training steps of a pass over the data.
      constant_epochs: how many have the initial rate.
      decay_rate: by which that of each later one is that of the one before.

    Raises:
      ValueError: if a number is out of range.
    """

    initial_learning_rate: float
    steps_per_epoch: int
    constant_epochs: int = 1
    decay_rate: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (
            ("initial_learning_rate", 0),
            ("steps_per_epoch", 1),
            ("constant_epochs", 0),
            ("decay_rate", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"EpochDecay.{name} is {getattr(self, name)}: it must be at least {least}"
                )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Of a training step, scalar int64, counted from 0; float32."""
        times = tf.maximum(step // self.steps_per_epoch + 1 - self.constant_epochs, 0)
        return self.initial_learning_rate * self.decay_rate ** tf.cast(times, tf.float32)
