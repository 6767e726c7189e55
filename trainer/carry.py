"""State that follows the examples from one step to the next, such as a recurrent network's along streams of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from models.objective import Metrics, Objective
from trainer.exits import ConfigError


def carried(objective: Objective) -> Mapping[str, Sequence[int]]:
    """What the examples of an objective carry on, if they are of streams: see `models.objective.Carrying`."""
    return getattr(objective, "carry", {})


class Carry:
    """The carried features of a global batch: row i belongs to its example i, whichever replica has it.

    They are kept whole on every replica, so that a checkpoint knows nothing of replicas. Make it in the strategy's scope.

    Args:
      shapes: name -> shape of one example's, of `models.objective.Carrying`.
      replicas: that hold the batch.
      rows: examples of each.
      dtype: of all.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], *, replicas: int, rows: int, dtype: tf.DType
    ) -> None:
        self._replicas, self._rows = replicas, rows
        self.variables = {
            name: keras.Variable(
                tf.zeros((replicas * rows, *shape), dtype),
                dtype=dtype.name,
                trainable=False,
                autocast=False,
                name=name.replace("/", "_"),
            )
            for name, shape in shapes.items()
        }

    def specs(self, rows: int) -> dict[str, tf.TensorSpec]:
        """Of the features of so many examples."""
        return {
            name: tf.TensorSpec((rows, *v.shape[1:]), v.dtype) for name, v in self.variables.items()
        }

    def take(self, replica: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a replica's examples carry, name -> `[rows, …]`."""
        return {
            name: tf.reshape(v.value, [self._replicas, self._rows, *v.shape[1:]])[replica]
            for name, v in self.variables.items()
        }

    def clear(self) -> None:
        """Nothing is carried any more, as at first. Called outside of replica context."""
        for variable in self.variables.values():
            variable.value.assign(tf.zeros_like(variable.value))

    def split(self, metrics: Metrics, rows: int) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """What a loss of so many examples gives: new values in the order of `variables`, and the other metrics.

        Raises:
          ConfigError: if a value is missing or of another form.
        """
        values = []
        for name, spec in self.specs(rows).items():
            value = metrics.get(name)
            if value is None or value.shape != spec.shape or value.dtype != spec.dtype:
                form = "nothing" if value is None else f"{value.dtype.name} {value.shape}"
                raise ConfigError(
                    f"{name} is carried along a stream as {spec.dtype.name} {spec.shape}, and the loss gives {form}"
                )
            values.append(value)
        return values, {name: x for name, x in metrics.items() if name not in self.variables}

    def spread(self, values: Sequence[tf.Tensor], replica: tf.Tensor) -> list[tf.Tensor]:
        """A replica's new values, as `split` gives them, as terms whose sum over all replicas is everybody's."""
        return [placed(value, replica, self._replicas) for value in values]

    def move(self, values: Sequence[tf.Tensor]) -> None:
        """Takes on values that are everybody's. Called in replica context."""

        def assign(strategy: tf.distribute.Strategy, *values: tf.Tensor) -> None:
            for variable, value in zip(self.variables.values(), values, strict=True):
                strategy.extended.update(
                    variable.value, lambda old, new: old.assign(new), args=(value,), group=False
                )

        if self.variables:
            tf.distribute.get_replica_context().merge_call(assign, args=tuple(values))


def placed(values: tf.Tensor, index: tf.Tensor, count: int) -> tf.Tensor:
    """The part of that index, `[n, …]`, of a batch of so many parts, zero elsewhere: `[count · n, …]`."""
    if count == 1:
        return values
    mine = tf.reshape(
        tf.range(count) == tf.cast(index, tf.int32), [count, *[1] * len(values.shape)]
    )
    parts = tf.where(mine, values[tf.newaxis], tf.zeros_like(values)[tf.newaxis])
    return tf.reshape(parts, [count * values.shape[0], *values.shape[1:]])
