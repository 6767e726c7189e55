"""Exact means of an objective's metrics over the validation examples, on any number of replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import tensorflow as tf

from input_pipeline.batches import Batches, Slice
from models.objective import Batch, Objective
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
        self._batch = layout.replicas * layout.microbatch
        self._examples = 0 if batches.validation is None else len(batches.validation)
        self._names: list[str] = []

    def names(self) -> list[str]:
        """Of the metrics, from a trace; call it in the strategy's scope."""
        data = self._batches.evaluation(Slice(self._cluster.replicas), batch=self._batch)
        step = tf.TensorSpec([], tf.int64)

        def traced(batch: Batch, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
            return self._sums(self._step.cast(batch), ids, step)

        tf.function(traced, autograph=False).get_concrete_function(*data.element_spec, step)
        return self._names

    def __call__(self) -> dict[str, float]:
        """name -> mean over the examples."""
        # A new iterator each time: one kept open for ever holds threads, of which two cores have few.
        data = self._cluster.iterate(lambda part: self._batches.evaluation(part, batch=self._batch))
        *sums, count = self._pass(data).numpy().tolist()
        return {name: total / count for name, total in zip(self._names, sums, strict=True)}

    @functools.cached_property
    def _pass(self) -> Callable:
        strategy, step = self._cluster.strategy, self._step
        steps = -(-self._examples // self._batch)
        compiled = tf.function(self._sums, jit_compile=self._cluster.xla, autograph=False)

        def replica(batch: Batch, ids: tf.Tensor) -> tf.Tensor:
            sums = compiled(step.cast(batch), ids, tf.identity(step.number))
            return tf.distribute.get_replica_context().all_reduce("SUM", sums)

        def run(data: Iterator) -> tf.Tensor:
            def one() -> tf.Tensor:
                sums = strategy.run(replica, args=next(data))
                return strategy.experimental_local_results(sums)[0]

            def more(i: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return i + 1, sums + one()

            return tf.while_loop(lambda i, _: i < steps, more, (1, one()))[1]

        return tf.function(run, autograph=False)

    def _sums(self, batch: Batch, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Sums over this replica's examples of each metric by name, and in the last place how many examples they are."""
        # Several workers forget the size of the batch, which noise and XLA must know.
        rows = self._batch // self._cluster.replicas
        batch = {name: tf.ensure_shape(x, (rows, *x.shape[1:])) for name, x in batch.items()}
        ids = tf.ensure_shape(ids, (rows,))
        noise = self._step.noise("evaluate", rows=rows, first=ids[0])
        metrics = self._objective.evaluate(batch, noise, step)
        self._names = sorted(metrics)
        for name in self._names:
            if metrics[name].shape != ids.shape:
                raise ConfigError(
                    f"evaluation metric {name} has shape {metrics[name].shape}: expected one number an example, "
                    f"[{ids.shape[0]}]"
                )
        real = ids < self._examples
        values = [tf.where(real, tf.cast(metrics[name], noise.dtype), 0) for name in self._names]
        return tf.stack([tf.reduce_sum(value) for value in (*values, tf.cast(real, noise.dtype))])
