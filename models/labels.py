"""Labels of examples as inputs of image networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from models.embedding import embed
from models.initializers import Normal
from models.objective import Feature, Noise


def class_count(element_spec: Mapping[str, Feature]) -> int:
    """How many classes the feature "label" has.

    Raises:
      ValueError: if there is none, or it is no integer with a cardinality.
    """
    feature = element_spec.get("label")
    if feature is None or feature.cardinality is None or feature.shape != ():
        found = (
            f"is {feature.dtype} {list(feature.shape)}, cardinality {feature.cardinality}"
            if feature
            else "is missing"
        )
        raise ValueError(
            f'a conditional model needs a feature "label", an integer with a cardinality, and it {found}: '
            f"give labelled data (it has {', '.join(sorted(element_spec))}), or leave conditional out"
        )
    return feature.cardinality


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
