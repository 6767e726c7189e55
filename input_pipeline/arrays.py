"""Examples in arrays: held in memory and read by one gather a feature, or made by a function of NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf


class Arrays:
    """Arrays with a common first dimension.

    They become tensors at the first read, not before: a source may be made before TensorFlow's devices are set up. The
    tensors are captured by the functions that read them, not copied into their graphs as constants.

    Args:
      arrays: name -> `[n, …]`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows `ids` (int64 of any shape) of each array: name -> `[*ids.shape, …]`."""
        return {name: tf.gather(tensor, ids) for name, tensor in self._tensors.items()}

    @functools.cached_property
    def _tensors(self) -> dict[str, tf.Tensor]:
        with tf.init_scope(), tf.device("CPU:0"):
            return {name: tf.constant(array) for name, array in self.arrays.items()}


def numpy_rows(
    function: Callable[[Any], np.ndarray], ids: tf.Tensor, dtype: tf.DType, shape: tuple[int, ...]
) -> tf.Tensor:
    """What a function of NumPy makes of `ids` (`[n]`), `[n, *shape]`, also in a graph: it is called in tf.data's threads."""
    rows = tf.numpy_function(function, [ids], dtype, stateful=False)
    return tf.ensure_shape(rows, (*ids.shape, *shape))
