"""Number formats: which Keras policy networks are built under, which dtype losses have, and float16's loss scale."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Precision:
    """One of the precisions of an experiment.

    Attributes:
      policy: Keras dtype policy of the networks.
      loss_dtype: of noise, losses, metrics and reductions.
      scaled: whether the loss is scaled, since small gradients would vanish in the format of the layers.
      fast: whether hardware that can may multiply float32 matrices with fewer bits of the fraction than 23: GPUs with 10
        (TensorFloat-32), TPUs with 7 (bfloat16).
    """

    policy: str
    loss_dtype: tf.DType
    scaled: bool = False
    fast: bool = False

    def set_products(self) -> None:
        """Of this process from now on, also in what XLA compiles: TensorFlow's own choice is the fastest that the hardware has."""
        tf.config.experimental.enable_tensor_float_32_execution(self.fast)

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Networks made in this context have the precision's policy."""
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.policy)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)


PRECISIONS = {
    "float32": Precision("float32", tf.float32),
    "tf32": Precision("float32", tf.float32, fast=True),
    "float64": Precision("float64", tf.float64),
    "bfloat16": Precision("mixed_bfloat16", tf.float32),
    "float16": Precision("mixed_float16", tf.float32, scaled=True),
}

INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000


def next_scale(scale: tf.Tensor, good: tf.Tensor, finite: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The dynamic loss scale of Micikevicius et al. 2018 (Mixed Precision Training).

    Halved (to no less than 1) by an update that is not finite, doubled (to no more than 2^24) after 2,000 good ones.

    Args:
      scale: scalar float32, and `good`, scalar float32, the number of good updates since it changed.
      finite: scalar bool, the same on all replicas.

    Returns:
      The next (scale, good).
    """
    good = tf.where(finite, good + 1, 0.0)
    grow = good >= GROWTH_INTERVAL
    scale = tf.where(
        finite, tf.where(grow, tf.minimum(2 * scale, 2.0**24), scale), tf.maximum(scale / 2, 1.0)
    )
    return scale, tf.where(grow, 0.0, good)
