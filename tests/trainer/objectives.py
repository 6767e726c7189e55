"""Data and objectives so small that what a step does to them can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.order import shuffled_ids
from models.initializers import Normal
from models.layers import GhostBatchNorm
from models.objective import Average, Batch, Metrics, Noise, Optimizer, Phase
from trainer.experiment import Experiment
from trainer.hardware import Hardware
from trainer.trainer import Trainer

ONE = Hardware(strategy="one_device")
TWO = Hardware(strategy="mirrored", replicas=2)
FOUR = Hardware(strategy="mirrored", replicas=4)
SGD = Optimizer(rule=keras.optimizers.SGD, learning_rate=1.0)
"""Moves a weight by minus its gradient."""


class Script:
    """A source whose example at position p of the training is the p-th row of given arrays.

    Args:
      rows: name -> `[positions, …]`: what is read at each position of the first epoch.
      seed: of the experiment, which shuffles the ids.
    """

    def __init__(self, rows: Mapping[str, Any], seed: int = 0):
        rows = {name: np.asarray(values) for name, values in rows.items()}
        self._length = len(next(iter(rows.values())))
        ids = shuffled_ids(tf.range(self._length, dtype=tf.int64), self._length, seed).numpy()
        self._table = {}
        for name, values in rows.items():
            self._table[name] = np.empty_like(values)
            self._table[name][ids] = values
        self.element_spec = {
            name: Feature(values.shape[1:], values.dtype.name) for name, values in rows.items()
        }

    def __len__(self) -> int:
        return self._length

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(tf.constant(x), ids) for name, x in self._table.items()}

    def decode(self, samples: np.ndarray) -> np.ndarray:
        return samples


class Table:
    """A source whose example i is the i-th row of given arrays."""

    def __init__(self, rows: Mapping[str, Any]):
        self._table = {name: np.asarray(values) for name, values in rows.items()}
        self.element_spec = {
            name: Feature(values.shape[1:], values.dtype.name)
            for name, values in self._table.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._table.values())))

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(tf.constant(x), ids) for name, x in self._table.items()}

    def decode(self, samples: np.ndarray) -> np.ndarray:
        return samples


class Weights(keras.layers.Layer):
    """A vector `w` and, to be averaged, nothing else.

    Args:
      initial: of the vector.
    """

    def __init__(self, initial: Any, name: str, constraint: Any = None):
        super().__init__(name=name)
        initial = np.asarray(initial, np.float64)
        self.w = self.add_weight(
            name="w",
            shape=initial.shape,
            initializer=lambda shape, dtype: tf.constant(initial, dtype),
            constraint=constraint,
            autocast=False,
        )


@tf.custom_gradient
def pushed(weight: tf.Tensor, gradients: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Zeros `[b]` whose derivatives by the weight `[d]` are given, `[b, d]`: anything, infinities and NaN too."""

    def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.reduce_sum(gradients * upstream[:, tf.newaxis], 0), None

    return tf.zeros_like(gradients[:, 0]), backward


class Scripted:
    """An objective whose losses and gradients are in the data.

    Features: "loss" `[]` and "gradient" `[d]`, of the loss by the one weight vector, which begins at `initial`. If there is
    a feature "x" `[c]`, a ghost batch norm sees it, in groups of `group`.

    Args:
      phases: names; each has a weight vector of its own.
      updates: of the first phase.
      average_decay: of an average of the first phase's weight.
    """

    def __init__(
        self,
        spec: Mapping[str, Feature],
        *,
        initial: Any = (1.0, 2.0, -3.0),
        phases: tuple[str, ...] = ("only",),
        updates: int = 1,
        optimizer: Optimizer = SGD,
        average_decay: float | None = None,
        group: int = 2,
        momentum: float = 0.9,
        constraint: Any = None,
    ):
        self._spec, self._initial, self._names, self._updates = spec, initial, phases, updates
        self._optimizer, self._decay, self._group = optimizer, average_decay, group
        self._momentum, self._constraint = momentum, constraint

    def build(self, noise: Noise) -> None:
        self.networks = {
            name: Weights(self._initial, name, self._constraint) for name in self._names
        }
        average = None
        if self._decay is not None:
            self.networks["average"] = Weights(self._initial, "average")
            source, copy = self.networks[self._names[0]], self.networks["average"]
            average = Average(source=source, copy=copy, decay=self._decay)
        self._norm = None
        if "x" in self._spec:
            self._norm = GhostBatchNorm(self._group, "norm", momentum=self._momentum)
            self._norm.build((None, *self._spec["x"].shape))
            self.networks["norm"] = self._norm
        self.phases = [
            Phase(
                name=name,
                variables=[self.networks[name].w],
                loss=self._loss(self.networks[name]),
                optimizer=self._optimizer,
                updates=self._updates if name == self._names[0] else 1,
                average=average if name == self._names[0] else None,
            )
            for name in self._names
        ]

    def _loss(self, network: Weights) -> Callable:
        def loss(batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
            if self._norm is not None:
                self._norm(batch["x"], training=True)
            return batch["loss"] + pushed(tf.convert_to_tensor(network.w), batch["gradient"]), {}

        return loss

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        return {"loss": batch["loss"]}

    def sample(self, noise: Noise) -> tf.Tensor:
        return noise.normal([3]) * self.networks[self._names[0]].w


class Regression:
    """A dense layer with dropout of its inputs by noise, trained on "x" `[d]` -> "y" `[]` by the square of the error.

    Args:
      phases: of the one training step; all move the layer.
    """

    def __init__(
        self,
        spec: Mapping[str, Feature],
        *,
        optimizer: Optimizer | None = None,
        average_decay: float = 0.9,
    ):
        self._dimensions = spec["x"].shape[0]
        self._optimizer = optimizer or Optimizer(learning_rate=0.01, clip_norm=1.0)
        self._decay = average_decay

    def build(self, noise: Noise) -> None:
        self.networks = {}
        for name in ("network", "average"):
            layer = keras.layers.Dense(
                1, kernel_initializer=Normal(noise(name), 0.5), name=name, dtype=noise.dtype.name
            )
            layer.build((None, self._dimensions))
            self.networks[name] = layer
        network, copy = self.networks["network"], self.networks["average"]
        average = Average(source=network, copy=copy, decay=self._decay)
        self.phases = [
            Phase(
                name="fit",
                variables=network.trainable_variables,
                loss=self.loss,
                optimizer=self._optimizer,
                average=average,
            )
        ]

    def loss(self, batch: Batch, noise: Noise, step: tf.Tensor) -> tuple[tf.Tensor, Metrics]:
        keep = noise("dropout").uniform([self._dimensions]) > 0.2
        x = tf.where(keep, batch["x"], 0)
        error = self.networks["network"](x)[:, 0] - batch["y"]
        return error * error, {"error": tf.abs(error)}

    def evaluate(self, batch: Batch, noise: Noise, step: tf.Tensor) -> Metrics:
        error = self.networks["average"](batch["x"])[:, 0] - batch["y"]
        return {"error": tf.abs(error)}

    def sample(self, noise: Noise) -> tf.Tensor:
        x = noise("x").normal([self._dimensions])
        return tf.concat([x, self.networks["average"](x)], 1)


def points(count: int, dimensions: int = 3, seed: int = 3) -> Table:
    """Points of a noisy plane, for `Regression`."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=[count, dimensions]).astype(np.float32)
    y = x @ np.arange(1, dimensions + 1) + chance.normal(size=count) * 0.1
    return Table({"x": x, "y": y.astype(np.float32)})


def script(*steps: Any, losses: Any = None, dtype: str = "float64", **more: Any) -> Script:
    """A `Script` for `Scripted`: the gradients of each update, `[global batch, d]`, and losses 0 if not given."""
    gradients = np.concatenate([np.asarray(step, dtype) for step in steps])
    losses = np.zeros(len(gradients)) if losses is None else np.ravel(losses)
    return Script({"gradient": gradients, "loss": losses.astype(dtype), **more})


def experiment(objective: Callable, source: Any, **fields: Any) -> Experiment:
    """An experiment in float64 that takes no samples and logs each step."""
    values = {
        "precision": "float64",
        "samples": 0,
        "log_every": 1,
        "steps": 1,
        "global_batch": 4,
    }
    return Experiment(objective=objective, source=source, **(values | fields))


def quiet(experiment: Experiment, hardware: Hardware = ONE, workdir: Any = None) -> Trainer:
    """A trainer that says nothing."""
    return Trainer(experiment, hardware, workdir, note=lambda line: None)


def values(trainer: Trainer) -> dict[str, list[np.ndarray]]:
    """Every variable of the training by name, as each replica has it."""
    return {
        name: [one.numpy() for one in trainer.strategy.experimental_local_results(variable)]
        for name, variable in trainer.state.items()
    }


def take(trainer: Trainer, steps: int) -> list[dict[str, list[np.ndarray]]]:
    """Takes steps from the first one on; returns the values before, and after each of them."""
    data, seen = trainer.data(0), [values(trainer)]
    for number in range(steps):
        trainer.run(data, number, until=number + 1)
        seen.append(values(trainer))
    return seen
