"""Whether the replicas hold the same bits: a checksum of every variable on each replica, compared over all workers.

Replicas are alike to the bit after every update. What memory or a compute unit got wrong on one of them stays there and
spreads by the gradients to all, with finite losses; nothing else would show it. One replica has nothing to compare with.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from trainer.carry import placed
from trainer.cluster import Cluster

PARTS = {1: tf.uint8, 2: tf.uint16, 4: tf.uint32, 8: tf.uint32}
"""Bytes of a floating-point number -> the integers that its bits are taken as; of 8 bytes, two."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Replicas that are not alike.

    Attributes:
      variables: names of those that differ, at least one.
      minority: replicas that are not as most are, ascending; empty if no value has a majority in some variable.
      replicas: how many there are.
      workers: that have as many of them each.
    """

    variables: tuple[str, ...]
    minority: tuple[int, ...]
    replicas: int
    workers: int = 1

    def __str__(self) -> str:
        """ "fit/kernel and 2 more variables differ on replica 2 (worker 1) from most of 3 replicas"."""
        first, more = self.variables[0], len(self.variables) - 1
        what = (
            f"{first} and {more} more variable{'s' * (more > 1)} differ"
            if more
            else f"{first} differs"
        )
        if not self.minority:
            return (
                f"{what} between the {self.replicas} replicas, and no majority tells which is right"
            )
        names = ", ".join(self._name(replica) for replica in self.minority)
        return f"{what} on replica {names} from most of {self.replicas} replicas"

    def _name(self, replica: int) -> str:
        worker = f" (worker {replica * self.workers // self.replicas})" if self.workers > 1 else ""
        return f"{replica}{worker}"


class Replicas:
    """Compares the replicas of a training.

    Args:
      cluster: where they are.
      state: every variable by name, also those that nothing moves.
    """

    def __init__(self, cluster: Cluster, state: Mapping[str, tf.Variable]) -> None:
        self._cluster, self._state = cluster, dict(state)

    def difference(self) -> Difference | None:
        """What differs now, None if nothing does: the same answer on all workers, which must all ask."""
        if self._cluster.replicas == 1:
            return None
        # [replicas, variables]
        return compare(list(self._state), self._sums().numpy(), self._cluster.workers)

    @functools.cached_property
    def _sums(self) -> Callable[[], tf.Tensor]:
        cluster = self._cluster

        def checksums(values: Sequence[tf.Tensor]) -> tf.Tensor:
            return tf.stack([checksum(value) for value in values])

        compiled = tf.function(checksums, jit_compile=cluster.xla, autograph=False)

        def replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            sums = compiled([tf.convert_to_tensor(variable) for variable in self._state.values()])
            mine = placed(sums[tf.newaxis], context.replica_id_in_sync_group, cluster.replicas)
            return context.all_reduce("SUM", mine)

        def run() -> tf.Tensor:
            return cluster.strategy.experimental_local_results(cluster.strategy.run(replica))[0]

        return tf.function(run, autograph=False)


def checksum(value: tf.Tensor) -> tf.Tensor:
    """Scalar int64 of the bits: Σ (2i + 1) · part i, modulo 2^64.

    No flip of one bit leaves it as it was, since the weights are odd, nor a swap of two values of at most 4 bytes, whose
    parts and positions differ by less than 2^32 and 2^31.
    """
    if value.dtype.is_floating:
        value = tf.bitcast(value, PARTS[value.dtype.size])
    parts = tf.reshape(value, [-1])
    weights = 2 * tf.range(parts.shape[0], dtype=tf.int64) + 1
    return tf.reduce_sum(tf.cast(parts, tf.int64) * weights)


def compare(names: Sequence[str], sums: np.ndarray, workers: int) -> Difference | None:
    """Which variables and replicas differ by checksums `[replicas, variables]`."""
    replicas = len(sums)
    variables, minority, majorities = [], set(), True
    for name, column in zip(names, sums.T.tolist(), strict=True):
        value, count = collections.Counter(column).most_common(1)[0]
        if count == replicas:
            continue
        variables.append(name)
        majorities &= 2 * count > replicas
        minority |= {replica for replica, other in enumerate(column) if other != value}
    if not variables:
        return None
    return Difference(
        tuple(variables), tuple(sorted(minority)) if majorities else (), replicas, workers
    )
