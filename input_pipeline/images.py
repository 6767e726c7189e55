"""Pictures of one size in memory, with labels or without, and the array files they are read from."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays, digest_of
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.retrying import read_bytes, reason_of, retrying

IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}

MOST_CLASSES = 2**31 - 1
"""Labels are int32."""
NPY, ZIP = b"\x93NUMPY", b"PK"
"""Beginnings of .npy and .npz files."""
NPY_DAMAGE = (
    ValueError,
    EOFError,
    MemoryError,  # of a size that was altered
    RuntimeError,  # NotImplementedError too: of archives that say they are encrypted, or packed otherwise
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy raises where a file of its own is damaged, beside OSError."""
OF_OBJECTS = (
    "holds Python objects, which are not read since they could run code: save an array of numbers"
)


class Images:
    """Pictures in memory.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with labels "label", int32.

    Args:
      images: grey levels from 0, uint8 `[n, height, width]` or `[n, height, width, channels]`.
      labels: integers from 0, `[n]`, or None.
      levels: how many grey levels there are: level k is k / (levels - 1) in [0, 1].
      classes: how many classes there are; None for the largest label and one.

    Raises:
      DataError: if images or labels are of another form.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        levels: int = 256,
        classes: int | None = None,
    ) -> None:
        _check_images(images)
        if images.ndim == 3:
            images = images[..., np.newaxis]
        self._levels = levels
        self.element_spec: ElementSpec = {"image": Feature(images.shape[1:], "float32")}
        arrays = {"image": images}
        if labels is not None:
            _check_labels(labels, len(images))
            classes = int(labels.max()) + 1 if classes is None else classes
            if labels.max() >= classes:
                raise DataError(
                    f"the largest label is {labels.max()}, and there are {classes} classes: give the number of all classes"
                )
            self.element_spec["label"] = Feature((), "int32", cardinality=classes)
            arrays["label"] = labels.astype(np.int32)
        self._arrays = Arrays(arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`)."""
        batch = self._arrays.read(ids)
        return {**batch, "image": tf.cast(batch["image"], tf.float32) / (self._levels - 1)}

    @property
    def content(self) -> str:
        """A digest of pictures and labels."""
        return digest_of(*self._arrays.arrays.values())

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)


def idx_images(images: str, labels: str | None = None) -> Images:
    """Images of files in the idx format of MNIST (LeCun, Cortes & Burges 1998), compressed with gzip or not.

    Args:
      images: path of a file of bytes `[n, height, width]`.
      labels: path of a file of bytes `[n]`.

    Raises:
      DataError: if a file is missing, not of this format, or shorter than it says.
    """
    return _images(images, labels, read_idx)


def mnist(folder: str, part: str = "train") -> Images:
    """MNIST, or a set in the form of its four files such as Fashion-MNIST, with labels.

    Args:
      folder: where the files `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` and those of the labels are, as they are or
        compressed (`.gz`).
      part: "train" or "test".

    Raises:
      DataError: as `idx_images` does.
    """
    if part not in ("train", "test"):
        raise ValueError(f'the part of mnist is "{part}": it must be "train" or "test"')
    name = {"train": "train", "test": "t10k"}[part]
    folder = os.path.expanduser(folder)
    files = [
        pathlib.Path(folder, f"{name}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")
    ]
    return idx_images(*(str(_plain_or_compressed(file)) for file in files))


def _plain_or_compressed(file: pathlib.Path) -> pathlib.Path:
    """The first if neither is there, for the message."""
    compressed = file.with_name(f"{file.name}.gz")
    return compressed if compressed.exists() and not file.exists() else file


def numpy_images(images: str, labels: str | None = None) -> Images:
    """Images of NumPy files: `file.npy`, or `file.npz:name` for an array of several.

    Args:
      images: where uint8 `[n, height, width]` or `[n, height, width, channels]` is.
      labels: where integers `[n]` are.

    Raises:
      DataError: if a file or array is missing or damaged.
    """
    return _images(images, labels, read_numpy)


def _images(images: str, labels: str | None, read: Callable[[str], np.ndarray]) -> Images:
    """Of two files; each is named where it is of another form."""
    of_images, of_labels = read(images), None if labels is None else read(labels)
    _check_images(of_images, f"{images}: ")
    if of_labels is not None:
        _check_labels(of_labels, len(of_images), f"{labels}: ")
    return Images(of_images, of_labels)


def _check_images(images: np.ndarray, where: str = "") -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"{where}the images are {images.dtype} {list(images.shape)}: they must be bytes (uint8) "
            "[n, height, width] or [n, height, width, channels], at least one"
        )


def _check_labels(labels: np.ndarray, count: int, where: str = "") -> None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}the labels are {labels.dtype} {list(labels.shape)} for {count} images: "
            "there must be one integer for each"
        )
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise DataError(
            f"{where}the labels are from {labels.min()} to {labels.max()}: they must be numbers of classes, from 0 on"
        )


def read_idx(path: str) -> np.ndarray:
    """The array of an idx file.

    Raises:
      DataError: as `idx_images` does.
    """
    data = _bytes(path)
    magic = data[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES or not magic[3]:
        raise DataError(
            f"{path} is no idx file (it begins with {magic.hex() or 'nothing'}, not with 0000, a type and the number of "
            "dimensions): name one such as train-images-idx3-ubyte.gz"
        )
    dtype, start = np.dtype(IDX_DTYPES[magic[2]]), 4 + 4 * magic[3]
    shape = struct.unpack(f">{magic[3]}I", data[4:start].ljust(start - 4, b"\0"))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise DataError(
            f"{path} has {len(data):,} bytes, and {expected:,} by its header for {list(shape)}: it was cut off or "
            "altered, fetch it again"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _bytes(path: str) -> bytes:
    try:
        data = read_bytes(pathlib.Path(os.path.expanduser(path)))
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise DataError(
            f"{path} cannot be read ({reason}): check the path, or fetch it again"
        ) from None
    except (EOFError, zlib.error):
        raise DataError(f"{path} was cut off or altered: fetch it again") from None


def read_numpy(where: str) -> np.ndarray:
    """The array of `file.npy` or `file.npz:name`; the name may be left out of a file with one array.

    Raises:
      DataError: as `numpy_images` does.
    """
    path, _, name = os.path.expanduser(where).partition(".npz:")
    path = f"{path}.npz" if name else path
    try:
        # Objects would run code of the file.
        loaded = retrying(lambda: np.load(path, allow_pickle=False), path, gone=False)
    except FileNotFoundError:
        raise DataError(f"{path} is not there: check the path") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({reason_of(error)}): mend it, or name another file"
        ) from None
    except NPY_DAMAGE as error:
        raise DataError(f"{path} {_numpy_problem(pathlib.Path(path), error)}") from None
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if not name and len(loaded.files) == 1:
            name = loaded.files[0]
        if not loaded.files:
            raise DataError(f"{path} has no arrays: write it with numpy.savez")
        if name not in loaded.files:
            missing = f'no array "{name}", but' if name else "the arrays"
            raise DataError(
                f"{path} has {missing} {', '.join(loaded.files)}: name one, such as {path}:{loaded.files[0]}"
            )
        try:
            found = loaded[name]
        except (OSError, *NPY_DAMAGE) as error:
            wrong = OF_OBJECTS if "Object arrays" in str(error) else "is damaged: write it again"
            raise DataError(f"{name} in {path} {wrong}") from None
        if not isinstance(found, np.ndarray):  # Bytes of what is no .npy file.
            raise DataError(f"{name} in {path} is no array: write it with numpy.savez")
        return found


def _numpy_problem(path: pathlib.Path, error: Exception) -> str:
    """What is wrong with a file that is there and of which NumPy reads no array, and what to do."""
    if "Object arrays" in str(error):
        return OF_OBJECTS
    with path.open("rb") as file:
        head = file.read(len(NPY))
    if head == NPY or head.startswith(ZIP):
        return "was cut off or altered: fetch or write it again"
    return f"is no NumPy file (it begins with {head.hex() or 'nothing'}): write it with numpy.save"


def pictures(samples: Any) -> np.ndarray:
    """uint8 of the same shape, of floats in [0, 1], cut off at both ends."""
    return np.rint(np.clip(np.asarray(samples, np.float64), 0, 1) * 255).astype(np.uint8)
