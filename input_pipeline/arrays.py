"""Examples in arrays: held in memory or mapped into it and read by one gather a feature, or made by a function of NumPy."""

from __future__ import annotations

import errno
import functools
import hashlib
import mmap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.batches import DataError
from input_pipeline.retrying import reason_of, retrying


class Arrays:
    """Arrays with a common first dimension.

    They become tensors at the first read, not before: a source may be made before TensorFlow's devices are set up. The
    tensors are captured by the functions that read them, not copied into their graphs as constants. Memory maps
    (`np.memmap`) stay what they are: only the rows that are asked for are copied.

    Args:
      arrays: name -> `[n, …]`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The rows `ids` (int64 of any shape) of each array: name -> `[*ids.shape, …]`."""
        return {
            name: _mapped_rows(array, ids)
            if isinstance(array, np.memmap)
            else tf.gather(self._tensors[name], ids)
            for name, array in self.arrays.items()
        }

    @functools.cached_property
    def _tensors(self) -> dict[str, tf.Tensor]:
        with tf.init_scope(), tf.device("CPU:0"):
            return {
                name: tf.constant(array)
                for name, array in self.arrays.items()
                if not isinstance(array, np.memmap)
            }


def digest_of(*arrays: np.ndarray) -> str:
    """Of dtypes, shapes and numbers, in hexadecimal; a second for a gigabyte. What is mapped into memory is not read."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        if not isinstance(array, np.memmap):
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _mapped_rows(array: np.memmap, ids: tf.Tensor) -> tf.Tensor:
    # take lets other threads run, indexing does not.
    plain = np.asarray(array)

    def take(ids: np.ndarray) -> np.ndarray:
        _check_whole(array)
        return plain.take(ids, axis=0)

    return numpy_rows(take, ids, tf.as_dtype(array.dtype), array.shape[1:])


def _check_whole(array: np.memmap) -> None:
    """Checks that the file still has what is mapped: reading beyond its end ends the process, by SIGBUS.

    Raises:
      DataError: if it has not, after some tries.
    """
    mapping, needed = array.base, array.offset + array.nbytes

    def look() -> None:
        if isinstance(mapping, mmap.mmap) and (size := mapping.size()) < needed:
            raise OSError(errno.EIO, f"it has {size:,} bytes, and had {needed:,}")

    try:
        retrying(look, str(array.filename))
    except OSError as error:
        raise DataError(
            f"{array.filename} cannot be read ({reason_of(error)}): mend it and start again"
        ) from None


def numpy_rows(
    function: Callable[[Any], np.ndarray], ids: tf.Tensor, dtype: tf.DType, shape: tuple[int, ...]
) -> tf.Tensor:
    """What a function of NumPy makes of `ids`, `[*ids.shape, *shape]`, also in a graph: it is called in tf.data's threads."""
    rows = tf.numpy_function(function, [ids], dtype, stateful=False)
    return tf.ensure_shape(rows, (*ids.shape, *shape))
