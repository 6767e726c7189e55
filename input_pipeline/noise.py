"""Random numbers that belong to an example, not to a device: row i depends only on a key and on example i's number.

Bits come from Philox 4x32 (Salmon et al. 2011) in counter mode. The 64-bit key is a hash of seed and stream name; the
128-bit counter is (block, time): time is the step and update, and a block is four numbers. Each example owns a whole
number of blocks, so that replica r, which holds examples first, first + 1, …, starts its counter at its first block and
draws exactly the rows that one device would have drawn for these examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import tensorflow as tf

PHILOX = 1
# A row is padded to whole SIMD registers too: erfinv and log of a slice differ in the last bit where its tail is
# computed by other instructions than its body (TRAPS 9e).
ROW_MULTIPLE = 16
UPDATES_PER_STEP = 1 << 16
KEY_STEP = 0x1E3779B97F4A7C15


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """A stream of random numbers for `rows` consecutive examples.

    Attributes:
      seed: of the experiment.
      name: path of the stream, such as "generator/latent".
      rows: the number of examples, static.
      first: number of the first example within the global batch or the data, int or scalar int64 tensor.
      step: training step, int or scalar int64 tensor, and `update`, that of the phase within the step (< 65536).
      dtype: of the floats: float32, or float64 for proofs.
      drawn: paths already drawn from, shared with children: a second draw from one would repeat its numbers.
      number: of the stream among those of its name, int or scalar int64 tensor.
    """

    seed: int
    name: str
    rows: int
    first: int | tf.Tensor = 0
    step: int | tf.Tensor = 0
    update: int | tf.Tensor = 0
    dtype: tf.DType = tf.float32
    drawn: set[str] = dataclasses.field(default_factory=set, repr=False)
    number: int | tf.Tensor = 0

    @property
    def index(self) -> tf.Tensor:
        """The number of each example within the global batch or the data, int64 `[rows]`."""
        return tf.cast(self.first, tf.int64) + tf.range(self.rows, dtype=tf.int64)

    def __call__(self, name: str) -> Noise:
        """The child stream `name`, independent of its siblings and its parent."""
        return dataclasses.replace(self, name=f"{self.name}/{name}")

    def numbered(self, number: int | tf.Tensor) -> Noise:
        """The stream of that number, independent of the others: for loops, where a name cannot count. 0 is this one."""
        return dataclasses.replace(self, number=number)

    def bits(self, shape: Sequence[int] = ()) -> tf.Tensor:
        """Uniform bits, uint32 `[rows, *shape]`, the same with XLA and without.

        Raises:
          ValueError: if this stream was drawn from before.
        """
        return self._cut(self._padded_bits(math.prod(shape)), shape)

    def uniform(self, shape: Sequence[int] = ()) -> tf.Tensor:
        """Uniform numbers in the open interval (0, 1), `[rows, *shape]` in `dtype`, multiples of 2^-24."""
        return self._cut(self._padded_uniform(math.prod(shape)), shape)

    def bernoulli(self, probability: float, shape: Sequence[int] = ()) -> tf.Tensor:
        """True with this probability, bool `[rows, *shape]`: where `uniform` would be below it, for less work.

        Raises:
          ValueError: if the probability is not in [0, 1].
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability is {probability}: it must be from 0 to 1")
        bits = self._padded_bits(math.prod(shape))
        below = math.ceil(probability * 2**23 - 0.5)  # Of 23 bits, as in a uniform number.
        if below == 0:
            return tf.zeros([self.rows, *shape], tf.bool)
        return self._cut(bits <= tf.constant(below * 2**9 - 1, tf.uint32), shape)

    def normal(self, shape: Sequence[int] = ()) -> tf.Tensor:
        """Standard normal numbers, `[rows, *shape]` in `dtype`, by inversion: sqrt(2) erfinv(2u - 1), within ±5.3."""
        centred = 2 * self._padded_uniform(math.prod(shape)) - 1
        return self._cut(math.sqrt(2) * tf.math.erfinv(centred), shape)

    def _padded_bits(self, numbers: int) -> tf.Tensor:
        if self.name in self.drawn:
            raise ValueError(
                f'noise "{self.name}" is drawn twice, which gives the same numbers twice; '
                'open a child for each draw: noise("name")'
            )
        self.drawn.add(self.name)
        padded = -(-max(numbers, 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        digest = hashlib.blake2b(f"{self.seed}:{self.name}".encode(), digest_size=8).digest()
        time = tf.cast(self.step, tf.int64) * UPDATES_PER_STEP + tf.cast(self.update, tf.int64)
        counter = tf.stack([tf.cast(self.first, tf.int64) * (padded // 4), time])
        # Streams of other numbers have other keys, an odd step apart. In int64: grappler folds uint64 wrongly.
        key = tf.constant(int.from_bytes(digest, "little", signed=True), tf.int64)
        key += tf.cast(self.number, tf.int64) * KEY_STEP
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[self.rows, padded],
            key=tf.bitcast(key[tf.newaxis], tf.uint64),
            counter=tf.cast(counter, tf.uint64),
            dtype=tf.uint32,
            alg=PHILOX,
        )

    def _padded_uniform(self, numbers: int) -> tf.Tensor:
        # 23 bits, so that the half is exact in float32 and 0 and 1 cannot come out.
        high = tf.bitwise.right_shift(self._padded_bits(numbers), tf.constant(9, tf.uint32))
        return (tf.cast(tf.cast(high, tf.int32), self.dtype) + 0.5) * 2.0**-23

    def _cut(self, padded: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        return tf.reshape(padded[:, : math.prod(shape)], [self.rows, *shape])
