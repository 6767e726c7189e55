"""Layers that networks share and what makes them, whose numbers do not depend on the number of replicas.

Random numbers come from named noise, so that example i has the same ones on every layout; batch statistics are taken over
groups of a fixed number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from models.initializers import VarianceScaling
from models.objective import Noise

LOW_PRECISION = ("float16", "bfloat16")


class Dropout(keras.layers.Layer):
    """Inverted dropout (Srivastava et al. 2014): zero with probability `rate`, else divided by 1 - rate.

    With `same_in_time` the first axis after the batch, time, has one mask (variational dropout; Gal & Ghahramani 2016). Without
    `autocast` what it is given keeps its dtype under mixed precision.
    """

    def __init__(self, rate: float, name: str, same_in_time: bool = False, autocast: bool = True):
        super().__init__(name=name, autocast=autocast)
        if not 0 <= rate < 1:
            raise ValueError(f"the dropout rate is {rate}: it must be at least 0 and below 1")
        self.rate = rate
        self.same_in_time = same_in_time

    def call(
        self, x: tf.Tensor, *, noise: Noise | None = None, training: bool = False
    ) -> tf.Tensor:
        """`x` `[b, …]` of any floating dtype -> the same; `noise` has b rows and a name of its own for each call."""
        if not training or self.rate == 0:
            return x
        if noise is None:
            raise ValueError(f'"{self.path}" drops at rate {self.rate}: give it noise to train')
        shape = [1, *x.shape[2:]] if self.same_in_time else x.shape[1:]
        kept = tf.cast(~noise.bernoulli(self.rate, shape), x.dtype)
        # The factor is multiplied into the mask, so that the gradient is one product.
        return x * (kept / (1 - self.rate))


class GhostBatchNorm(keras.layers.Layer):
    """Batch normalisation over groups of consecutive examples (Ioffe & Szegedy 2015; ghost: Hoffer et al. 2017).

    Since a group has a fixed size, the statistics are the same on any number of replicas and need no collective. The
    moving averages take the mean over the groups of their means and of their (biased) variances, which is linear in
    groups, so that replicas and microbatches may be averaged. A layer called several times in one loss moves them once
    a call, one call after the other.

    With `classes` it is class-conditional: each class has a factor and a shift of its own (Dumoulin et al. 2017), while
    the statistics are those of all examples of a group.

    Args:
      group: examples a group; it must divide the batch (of one replica, and the microbatch) in training.
      name: of the layer.
      momentum: the share that the moving averages keep at each call.
      epsilon: added to the variance.
      classes: how many classes there are; 0 for one factor and shift for all examples.
    """

    def __init__(
        self,
        group: int,
        name: str,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        classes: int = 0,
    ):
        super().__init__(name=name)
        if group < 1:
            raise ValueError(f"the group of {name} is {group}: it must be at least 1 example")
        self.group = group
        self.momentum = momentum
        self.epsilon = epsilon
        self.classes = classes

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Moving averages `[channels]`, and parameters `[channels]` or `[classes, channels]`.

        All are in the variable dtype: mixed precision leaves them alone.
        """

        def weight(name: str, value: str, trainable: bool) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=(self.classes, input_shape[-1])
                if trainable and self.classes
                else (input_shape[-1],),
                initializer=value,
                trainable=trainable,
                autocast=False,
            )

        self.gamma = weight("gamma", "ones", True)
        self.beta = weight("beta", "zeros", True)
        self.moving_mean = weight("moving_mean", "zeros", False)
        self.moving_variance = weight("moving_variance", "ones", False)

    def call(
        self,
        x: tf.Tensor,
        *,
        labels: tf.Tensor | None = None,
        training: bool = False,
        update_statistics: bool = True,
    ) -> tf.Tensor:
        """Normalises each channel.

        Args:
          x: `[b, …, channels]`; with float16 and bfloat16 the statistics are computed in float32.
          labels: class of each example, integers `[b]`, if there are classes.
          training: with the group's own statistics, else with the moving averages.
          update_statistics: whether training moves the moving averages. False where a loss runs a network that another
            phase trains.

        Returns:
          As `x`.
        """
        wide = widened(x)
        if not training:
            y = self._normalise(wide, self.moving_mean, self.moving_variance)
            return tf.cast(self._of_class(y, labels), x.dtype)
        groups = grouped(wide, self.group, f'"{self.path}" normalises')
        # [groups, examples and positions of a group, channels]
        groups = tf.reshape(groups, [groups.shape[0], -1, x.shape[-1]])
        mean = tf.reduce_mean(groups, 1, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(groups, mean), 1, keepdims=True)
        if update_statistics:
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance)
        y = tf.reshape(self._normalise(groups, mean, variance), x.shape)
        return tf.cast(self._of_class(y, labels), x.dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def _move(self, average: keras.Variable, groups: tf.Tensor) -> None:
        batch = tf.cast(tf.reduce_mean(groups, [0, 1]), average.dtype)
        average.assign(average * self.momentum + batch * (1 - self.momentum))

    def _normalise(self, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        factor = tf.math.rsqrt(tf.cast(variance, x.dtype) + self.epsilon)
        if self.classes:
            return (x - tf.cast(mean, x.dtype)) * factor
        factor *= tf.cast(self.gamma, x.dtype)
        return (x - tf.cast(mean, x.dtype)) * factor + tf.cast(self.beta, x.dtype)

    def _of_class(self, x: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
        if not self.classes:
            return x
        if labels is None:
            raise ValueError(f'"{self.path}" has {self.classes} classes: call it with labels')
        # A product, since the gradient of a gather adds in any order on some devices.
        chosen = tf.one_hot(labels, self.classes, dtype=x.dtype)
        shape = [-1, *[1] * (len(x.shape) - 2), x.shape[-1]]
        gamma = tf.reshape(chosen @ tf.cast(self.gamma, x.dtype), shape)
        return x * gamma + tf.reshape(chosen @ tf.cast(self.beta, x.dtype), shape)


class Centring(keras.layers.Layer):
    """Subtracts from inputs their mean over the data, a moving average (LeCun et al. 1998, section 4.3).

    The average is linear in means over examples, so it is the same on any number of replicas.

    Args:
      name: of the layer.
      initial: the average before the first update.
      momentum: the share that the average keeps at each update.
    """

    def __init__(self, name: str, initial: float = 0.0, momentum: float = 0.999):
        # A low precision would round by as much as pictures differ.
        super().__init__(name=name, autocast=False)
        self.initial = initial
        self.momentum = momentum

    def build(self, input_shape: Sequence[int | None]) -> None:
        """The average, of an example's shape, in the variable dtype: mixed precision leaves it alone."""
        self.moving_mean = self.add_weight(
            name="moving_mean",
            shape=input_shape[1:],
            initializer=keras.initializers.Constant(self.initial),
            trainable=False,
            autocast=False,
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """`x` `[b, …]` -> the same."""
        return x - tf.cast(self.moving_mean, x.dtype)

    def update(self, x: tf.Tensor) -> None:
        """Moves the average by `x` `[b, …]`. What reads it later in the same loss has the new value, which depends on the layout."""
        mean = tf.reduce_mean(tf.cast(x, self.moving_mean.dtype), 0)
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))


def widened(x: tf.Tensor) -> tf.Tensor:
    """The same, in float32 if it is of a low precision: for sums, and for what grows."""
    return tf.cast(x, tf.float32) if x.dtype.name in LOW_PRECISION else x


def grouped(x: tf.Tensor, group: int, does: str, choose: str = "a group") -> tf.Tensor:
    """Consecutive examples together: `[b, …]` -> `[b / group, group, …]`.

    Raises:
      ValueError: if some are left over; it begins with what the caller `does` with groups, and says what to `choose`.
    """
    rows, *shape = x.shape
    if rows is None or rows % group:
        raise ValueError(
            f"{does} groups of {group} examples, which does not divide the batch of {rows}; "
            f"choose {choose} that divides the batch of a replica and the microbatch"
        )
    return tf.reshape(x, [rows // group, group, *shape])


def dense(
    units: int, noise: Noise, name: str, activation: str | None = None, use_bias: bool = True
) -> keras.layers.Dense:
    """Keras' dense layer, its weights from the noise of its name."""
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=VarianceScaling(noise(name)),
        name=name,
    )


def convolution(
    filters: int,
    side: int,
    noise: Noise,
    name: str,
    strides: int = 1,
    activation: str | None = None,
    use_bias: bool = True,
    transposed: bool = False,
) -> keras.layers.Layer:
    """Keras' convolution of `side` × `side` pixels, or its transpose, padded with zeros, its weights from the noise of its name."""
    kind = keras.layers.Conv2DTranspose if transposed else keras.layers.Conv2D
    return kind(
        filters,
        kernel_size=side,
        strides=strides,
        padding="same",
        data_format="channels_last",
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=VarianceScaling(noise(name)),
        name=name,
    )


def built(layer: keras.layers.Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """Builds a layer for examples of this shape and returns the shape of its outputs, both without the batch."""
    layer.build((None, *shape))
    return tuple(layer.compute_output_shape((None, *shape)))[1:]


def flat(x: tf.Tensor) -> tf.Tensor:
    """`[b, …]` -> `[b, n]`."""
    return tf.reshape(x, [-1, math.prod(x.shape[1:])])
