"""Metrics of the validation examples: exact means on any number of replicas, and what the objective makes of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Slice, streams_of
from models.objective import Batch, Objective
from trainer.carry import Carry, carried
from trainer.cluster import Cluster, Layout
from trainer.exits import ConfigError
from trainer.step import Step


class Evaluation:
    """One pass over the validation examples. Every example counts once; padding is masked (TRAPS 21)."""

    def __init__(
        self, objective: Objective, batches: Batches, step: Step, cluster: Cluster, layout: Layout
    ) -> None:
        self._objective, self._batches = objective, batches
        self._step, self._cluster = step, cluster
        streams = streams_of(batches.validation)
        rows = -(-streams // layout.replicas) if streams else layout.microbatch
        self._batch = layout.replicas * rows
        with cluster.strategy.scope():
            self._carry = Carry(
                carried(objective) if streams else {},
                replicas=layout.replicas,
                rows=rows,
                dtype=step.loss_dtype,
            )
        self._examples = 0 if batches.validation is None else len(batches.validation)
        self._summary: Callable | None = getattr(objective, "summary", None)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def names(self) -> list[str]:
        """Of the metrics, from a trace; call it in the strategy's scope.

        Raises:
          DataError: if the objective needs a feature that training examples have and held-out ones lack.
        """
        data = self._batches.evaluation(Slice(self._cluster.replicas), batch=self._batch)
        step = tf.TensorSpec([], tf.int64)

        def traced(batch: Batch, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            return self._sums(self._step.cast(batch), ids, step)[0]

        batch, ids = data.element_spec
        batch |= self._carry.specs(self._batch // self._cluster.replicas)
        try:
            tf.function(traced, autograph=False).get_concrete_function(batch, ids, step)
        except KeyError as error:
            name = next(iter(error.args), None)
            if name in batch or name not in self._batches.element_spec:
                raise
            raise DataError(
                f'held-out examples have no feature "{name}", which {type(self._objective).__name__} evaluates with and '
                "training examples have: give Experiment.validation one that has it"
            ) from None
        # A summary of nothing may divide by it: only its names count.
        with np.errstate(all="ignore"):
            return sorted(self._metrics(np.zeros(self._width)))

    def __call__(self) -> dict[str, float]:
        """name -> mean over the examples, or what `models.objective.Summarised` makes of the means."""
        # A new iterator each time: one kept open for ever holds threads, of which two cores have few.
        data = self._cluster.iterate(lambda part: self._batches.evaluation(part, batch=self._batch))
        self._carry.clear()
        *sums, count = self._pass(data).numpy().tolist()
        return self._metrics(np.array(sums) / count)

    @property
    def _width(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

    def _metrics(self, means: np.ndarray) -> dict[str, float]:
        """What is reported, of the means `[width]` in the order of `_sums`."""
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(means, ends[:-1])
        named: Mapping = {
            name: part.reshape(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        if self._summary is not None:
            named = self._summary(named)
        return {name: float(value) for name, value in named.items()}

    @functools.cached_property
    def _pass(self) -> Callable:
        strategy, step = self._cluster.strategy, self._step
        steps = -(-self._examples // (streams_of(self._batches.validation) or self._batch))
        compiled = tf.function(self._sums, jit_compile=self._cluster.xla, autograph=False)

        def replica(batch: Batch, ids: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            number = context.replica_id_in_sync_group
            batch = step.cast(batch) | self._carry.take(number)
            sums, carried = compiled(batch, ids, tf.identity(step.number))
            carried = self._carry.spread(carried, number)
            sums, carried = context.all_reduce("SUM", (sums, carried))
            self._carry.move(carried)
            return sums

        def run(data: Iterator) -> tf.Tensor:
            def one() -> tf.Tensor:
                sums = strategy.run(replica, args=next(data))
                return strategy.experimental_local_results(sums)[0]

            def more(i: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return i + 1, sums + one()

            return tf.while_loop(lambda i, _: i < steps, more, (1, one()))[1]

        return tf.function(run, autograph=False)

    def _sums(
        self, batch: Batch, ids: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Sums over this replica's examples, and what they carry on.

        The sums are of all metrics, by name, and in the last place how many examples they are.
        """
        # Several workers forget the size of the batch, which noise and XLA must know.
        rows = self._batch // self._cluster.replicas
        batch = {name: tf.ensure_shape(x, (rows, *x.shape[1:])) for name, x in batch.items()}
        ids = tf.ensure_shape(ids, (rows,))
        noise = self._step.noise("evaluate", rows=rows, first=ids[0])
        carried, metrics = self._carry.split(self._objective.evaluate(batch, noise, step), rows)
        metrics = dict(sorted(metrics.items()))
        for name, metric in metrics.items():
            self._check(name, metric, rows)
        self._shapes = {name: tuple(metric.shape[1:]) for name, metric in metrics.items()}
        real = ids < self._examples
        columns = [
            tf.where(real[:, tf.newaxis], tf.reshape(tf.cast(x, noise.dtype), [rows, -1]), 0)
            for x in (*metrics.values(), real)
        ]
        return tf.reduce_sum(tf.concat(columns, 1), 0), carried

    def _check(self, name: str, metric: tf.Tensor, rows: int) -> None:
        wanted = (rows, *metric.shape[1:]) if self._summary is not None else (rows,)
        if metric.shape != wanted:
            raise ConfigError(
                f"evaluation metric {name} has shape {metric.shape}: expected one number an example, [{rows}]"
            )
