"""A folder of JPEG and PNG files, read from the disk as training goes on."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.images import pictures

SUFFIXES = (".jpg", ".jpeg", ".png")
MODES = {1: "L", 3: "RGB"}


class ImageFolder:
    """The pictures of a folder, in the order of their names; sub-folders, if there are any, are the classes.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with sub-folders "label", int32, by the order of
    their names. Only paths are held in memory.

    Args:
      folder: path of files that end in .jpg, .jpeg or .png, or of one folder of such files for each class.
      size: side of the squares that pictures are cut to: the middle, of full height or width, resized; None if all have
        one size.
      channels: 3 for colour, 1 for grey; pictures are converted.

    Raises:
      DataError: if there are no pictures, or some in the folder and some in sub-folders. Reading raises it for a file
        that is no picture, or of another size than the first where `size` is None.
    """

    def __init__(self, folder: str, size: int | None = None, channels: int = 3) -> None:
        if channels not in MODES or (size is not None and size < 1):
            raise ValueError(
                f"size is {size} and channels {channels}: size must be at least 1, or None, and channels 1 or 3"
            )
        self.classes, self._paths, labels = _list(pathlib.Path(folder))
        self._size, self._channels = size, channels
        height, width = (size, size) if size else self._load(self._paths[0], None).shape[:2]
        self.element_spec: ElementSpec = {"image": Feature((height, width, channels), "float32")}
        self._labels = None
        if self.classes:
            self.element_spec["label"] = Feature((), "int32", cardinality=len(self.classes))
            self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`), decoded by threads of tf.data."""
        shape = self.element_spec["image"].shape
        images = tf.numpy_function(self._read, [ids], tf.uint8, stateful=False)
        images = tf.ensure_shape(images, (ids.shape[0], *shape))
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if self._labels is not None:
            labels = tf.numpy_function(self._labels.__getitem__, [ids], tf.int32, stateful=False)
            batch["label"] = tf.ensure_shape(labels, ids.shape)
        return batch

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)

    def _read(self, ids: np.ndarray) -> np.ndarray:
        shape = self.element_spec["image"].shape
        return np.stack([self._load(self._paths[i], shape) for i in ids])

    def _load(self, path: pathlib.Path, shape: Sequence[int] | None) -> np.ndarray:
        try:
            with Image.open(path) as image:
                if self._size:
                    # JPEG files decode to a half, a quarter or an eighth, where that is at least twice what is wanted.
                    image.draft(None, (2 * self._size, 2 * self._size))
                picture = image.convert(MODES[self._channels])
        except OSError as error:
            reason = "it is no picture, or damaged" if error.errno is None else error.strerror
            raise DataError(f"{path} cannot be read ({reason}): mend or remove it") from None
        if self._size:
            picture = ImageOps.fit(picture, (self._size, self._size), Image.Resampling.BICUBIC)
        found = np.asarray(picture, np.uint8).reshape(picture.height, picture.width, self._channels)
        if shape is not None and found.shape != tuple(shape):
            raise DataError(
                f"{path} has {picture.height}×{picture.width} pixels, and the first picture {shape[0]}×{shape[1]}: "
                "set ImageFolder.size"
            )
        return found


def _list(folder: pathlib.Path) -> tuple[list[str], list[pathlib.Path], list[int]]:
    """Classes, and of each picture its path and class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one of pictures")
    flat = _pictures_in(folder)
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and _pictures_in(entry)
    )
    if flat and classes:
        raise DataError(
            f"{folder} has pictures, such as {flat[0].name}, and folders of pictures, such as {classes[0]}: put all into "
            "folders, one a class, or none"
        )
    found = [
        (path, label) for label, name in enumerate(classes) for path in _pictures_in(folder / name)
    ]
    found = found or [(path, 0) for path in flat]
    if not found:
        raise DataError(
            f"{folder} has no pictures: put files that end in {', '.join(SUFFIXES)} there, or in folders, one a class"
        )
    return classes, [path for path, _ in found], [label for _, label in found]


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    entries = (entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    return sorted(entry for entry in entries if not entry.name.startswith("."))
