"""Scikit-learn's handwritten digits: 1,797 pictures of 8 by 8 pixels, with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import ElementSpec, Feature

LEVELS = 17
"""Grey levels of a pixel, 0 to 16: counts of ink in a block of 4 by 4 finer pixels."""


class Digits:
    """The test part of the UCI "optical recognition of handwritten digits" data (Alpaydin and Kaynak 1998).

    Features: "image", float32 `[8, 8, 1]` in [0, 1] (0 is paper), and "label", int32, 0 to 9.
    """

    def __init__(self) -> None:
        # Takes a second to import: only where digits are used.
        from sklearn.datasets import load_digits

        self.element_spec: ElementSpec = {
            "image": Feature((8, 8, 1), "float32"),
            "label": Feature((), "int32", cardinality=10),
        }
        digits = load_digits()
        images = (digits.images[..., np.newaxis] / (LEVELS - 1)).astype(np.float32)
        self._arrays = Arrays({"image": images, "label": digits.target.astype(np.int32)})

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The digits of `ids` (int64 `[n]`)."""
        return self._arrays.read(ids)

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, 8, 8, 1]`, of floats `[n, 8, 8, 1]`, cut off at 0 and 1."""
        return np.rint(np.clip(np.asarray(samples, np.float64), 0, 1) * 255).astype(np.uint8)
