"""Vector quantisation with a codebook of moving averages (van den Oord, Vinyals & Kavukcuoglu 2017, appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from models.initializers import Normal
from models.objective import Noise

SMOOTHING = 0.01
OFFSET = 0.01


class Codebook(keras.layers.Layer):
    """Code vectors, each the moving average of the vectors that it was nearest to.

    For each code the layer keeps moving averages of how many vectors of an example it was nearest to, and of their sum.
    Both are linear in means over examples, so they are the same on any number of replicas. A code is sum / count.

    Codes that are nearest to nothing would stay where they are for ever, and all but a few are so where the first codes are
    far from the encoder's vectors. So the count is smoothed (Laplace): to each code belong, besides its vectors,
    `SMOOTHING` times the mean count of vectors at a place beside a code in use, so that a dead code becomes that one's near
    copy, and takes over some of its vectors (as the splitting of Linde, Buzo & Gray 1980). Which one, its own number and
    the counts say: nothing is drawn.

    Args:
      codes: how many.
      width: of a code.
      vectors: of an example.
      noise: one row, for the first codes, which are standard normal, and for the ways in which copies differ.
      name: of the layer.
      decay: the share that the averages keep at each update.

    Raises:
      ValueError: if a number is out of range.
    """

    def __init__(
        self,
        codes: int,
        width: int,
        vectors: int,
        *,
        noise: Noise,
        name: str,
        decay: float = 0.99,
    ):
        super().__init__(name=name)
        if codes < 2 or width < 1 or not 0 <= decay < 1:
            raise ValueError(
                f"a codebook has {codes} codes of width {width} and decay {decay}: there must be at least 2 of at least 1, "
                "and the decay at least 0 and below 1"
            )
        self.codes = codes
        self.width = width
        self.decay = decay
        self.smoothing = SMOOTHING * vectors / codes
        self._noise = noise
        self.build()

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """In the variable dtype: mixed precision leaves them alone."""

        def weight(name: str, shape: tuple[int, ...], initializer: object) -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=False, autocast=False
            )

        shape = (self.codes, self.width)
        # So few that what the encoder gives counts more from the first update on.
        self.counts = weight("counts", shape[:1], keras.initializers.Constant(self.smoothing))
        self.sums = weight("sums", shape, Normal(self._noise("codes"), self.smoothing))
        self.offsets = weight("offsets", shape, Normal(self._noise("offsets"), OFFSET))

    def usage(self, dtype: tf.DType) -> tf.Tensor:
        """The share of each code in all vectors lately, smoothed, `[codes]`, above 0, sum 1."""
        counts = tf.cast(self.counts, dtype) + self.smoothing
        return counts / tf.reduce_sum(counts)

    def vectors(self, dtype: tf.DType) -> tf.Tensor:
        """`[codes, width]`."""
        counts, sums = tf.cast(self.counts, dtype), tf.cast(self.sums, dtype)
        # Code i copies the one that vector (i + 1/2) / codes of all belongs to, in the order of codes.
        places = tf.reduce_sum(counts) * (tf.range(self.codes, dtype=dtype) + 0.5) / self.codes
        ends = tf.cumsum(counts)
        owners = tf.searchsorted(ends[:-1], places, side="right")
        copied = tf.gather(tf.math.divide_no_nan(sums, counts[:, tf.newaxis]), owners)
        copies = copied * (1 + tf.cast(self.offsets, dtype))
        return (sums + self.smoothing * copies) / (counts + self.smoothing)[:, tf.newaxis]

    def nearest(self, x: tf.Tensor) -> tf.Tensor:
        """The number of the code nearest to each vector, int32 `[…]` of `[…, width]`."""
        codes = self.vectors(x.dtype)
        # |x|² is the same for all codes.
        distances = tf.reduce_sum(tf.square(codes), 1) - 2 * tf.tensordot(x, codes, [[-1], [1]])
        return tf.argmin(distances, -1, output_type=tf.int32)

    def look_up(self, numbers: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """The codes of these numbers, `[…, width]` of integers `[…]`."""
        return tf.gather(self.vectors(dtype), numbers)

    def update(self, x: tf.Tensor, numbers: tf.Tensor) -> None:
        """Moves the averages by vectors `[b, …, width]` and the numbers of their codes `[b, …]`."""
        rows, dtype = x.shape[0], self.counts.dtype
        chosen = tf.one_hot(tf.reshape(numbers, [-1]), self.codes, dtype=dtype)
        vectors = tf.cast(tf.reshape(tf.stop_gradient(x), [-1, self.width]), dtype)
        self._move(self.counts, tf.reduce_sum(chosen, 0) / rows)
        self._move(self.sums, tf.matmul(chosen, vectors, transpose_a=True) / rows)

    def _move(self, average: keras.Variable, mean: tf.Tensor) -> None:
        average.assign(average * self.decay + mean * (1 - self.decay))
