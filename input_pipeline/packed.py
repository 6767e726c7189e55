"""Pictures packed for random access: a folder of NumPy arrays, which are mapped into memory and not loaded.

    images.npy   uint8 [n, height, width, channels]
    labels.npy   int32 [n], if there are labels
    index.json   format and version, number, shape, classes, and the size and SHA-256 of each file

`input_pipeline.packing` writes it.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import ElementSpec, Feature, digest
from input_pipeline.images import pictures
from input_pipeline.manifest import PICTURES, mapped, opened

IMAGES, LABELS = "images.npy", "labels.npy"


class Packed:
    """A packed folder. It opens in the same short time and takes the same little memory whatever its size.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with labels "label", int32.

    Args:
      folder: that `scripts/convert images` has written.

    Raises:
      DataError: if it is no such folder, or a file of it is missing, of another length than it was written with, or, up to
        256 MiB, of other contents. `scripts/convert verify` compares the contents of all files.
    """

    def __init__(self, folder: str) -> None:
        folder = os.path.expanduser(folder)
        index = opened(folder, PICTURES)
        count, shape = index["count"], tuple(index["shape"])
        self.classes: list[str] = index["classes"]
        self.content = digest(index["files"])
        self.element_spec: ElementSpec = {"image": Feature(shape, "float32")}
        arrays = {"image": mapped(pathlib.Path(folder, IMAGES), np.uint8, (count, *shape))}
        if index["cardinality"] is not None:
            arrays["label"] = mapped(pathlib.Path(folder, LABELS), np.int32, (count,))
            self.element_spec["label"] = Feature((), "int32", cardinality=index["cardinality"])
        self._arrays = Arrays(arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`)."""
        batch = self._arrays.read(ids)
        return {**batch, "image": tf.cast(batch["image"], tf.float32) / 255}

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)
