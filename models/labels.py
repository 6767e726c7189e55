"""Labels of examples as inputs of image networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from models.embedding import embed
from models.initializers import Normal
from models.objective import Feature, Noise


def count_classes(element_spec: Mapping[str, Feature], reason: str) -> int:
    """How many classes the feature "label" has.

    Args:
      element_spec: of the data.
      reason: why there must be labels, for the message: "GAN.conditional is True".

    Raises:
      ValueError: if there is none, or it is not one class of a known number of them.
    """
    label = element_spec.get("label")
    if label is None or label.shape or not label.cardinality:
        found = f"the data has {', '.join(sorted(element_spec))} but no label"
        if label is not None:
            found = f'the feature "label" is {label.dtype} {list(label.shape)} without a number of classes'
        raise ValueError(
            f"{reason}, but {found}: give the source labels (a folder of pictures has a sub-folder for each class, arrays have "
            "labels, records label and classes)"
        )
    return label.cardinality


class LabelPlane(keras.layers.Layer):
    """Labels, integers `[b]` -> `[b, height, width, 1]`, a linear function of the label one-hot."""

    def __init__(self, classes: int, sides: Sequence[int], *, noise: Noise, name: str):
        super().__init__(name=name)
        self.classes = classes
        self.sides = tuple(sides)
        self._noise = noise
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Standard normal at first: a plane weighs as much as the picture."""
        height, width = self.sides
        self.table = self.add_weight(
            name="table",
            shape=(self.classes, height * width),
            initializer=Normal(self._noise("table"), 1.0),
        )

    def call(self, labels: tf.Tensor) -> tf.Tensor:
        """In the compute dtype."""
        planes = embed(tf.cast(self.table, self.compute_dtype), labels)
        return tf.reshape(planes, [-1, *self.sides, 1])
