"""Many steps in one call, between two looks of the host at the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer.step import Step


def compiled_loop(strategy: tf.distribute.Strategy, step: Step) -> Callable:
    """Makes the loop: (data, number of steps) -> times of the steps, float64 `[steps, 2]`.

    The times are when each step began, in seconds since 1970, and for how many seconds it then waited for its data.
    """

    def run(data: Iterator, count: tf.Tensor) -> tf.Tensor:
        def one(i: tf.Tensor, times: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            start = tf.timestamp()
            batch = next(data)
            local = tf.nest.flatten(strategy.experimental_local_results(batch))
            # Without the dependency the clock is read before the batch is there (TRAPS 19a).
            with tf.control_dependencies(local):
                wait = tf.timestamp() - start
            strategy.run(step, args=(batch,))
            return i + 1, times.write(i, tf.stack([start, wait]))

        times = tf.TensorArray(tf.float64, size=count, element_shape=[2])
        return tf.while_loop(lambda i, _: i < count, one, (0, times))[1].stack()

    return tf.function(run, autograph=False)
