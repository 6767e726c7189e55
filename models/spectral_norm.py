"""Convolutional and dense layers, with spectral norm (Miyato et al. 2018) or without.

Spectral norm divides a kernel W `[n, outputs]` (a convolution's `[size · size · inputs, outputs]`) by its largest singular value
σ, found by power iteration: v = Wu / ‖Wu‖, σ = ‖vW‖, and the next u is vW / σ. It goes on from update to update, since W moves
slowly: u is an untrained weight `[outputs]`, which a call in training replaces by the next one.

u depends on weights alone, so it is the same on all replicas and microbatches, whose mean the trainer assigns; its length,
which that mean or a moving average may change, does not matter. u and v are constants to the gradient, as in the paper. A
kernel of zeros says nothing of the next u, and leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.initializers import Normal, VarianceScaling
from models.objective import Noise

SMALLEST_NORM = 1e-12
SMALLEST_SQUARE = 1e-30
"""Below which a vector's squared norm counts as this: the smallest kernels have a direction still."""


class _Linear(keras.layers.Layer):
    """A layer with a kernel `[…, inputs, outputs]` and a bias.

    Args:
      outputs: channels or units.
      noise: one row; the weights come from the child stream of the layer's name.
      name: of the layer.
      spectral: whether the kernel is divided by its largest singular value.
      use_bias: whether there is a bias.
      scale: of the initial kernel's variance, see `initializers.VarianceScaling`.
    """

    def __init__(
        self,
        outputs: int,
        noise: Noise,
        name: str,
        *,
        spectral: bool = False,
        use_bias: bool = True,
        scale: float = 1.0,
    ):
        super().__init__(name=name)
        self.outputs = outputs
        self.noise = noise(name)
        self.spectral = spectral
        self.use_bias = use_bias
        self.scale = scale

    def build(self, input_shape: Sequence[Any]) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=self.kernel_shape(input_shape[-1]),
            initializer=VarianceScaling(self.noise, self.scale),
            # Its norm is found in the precision of the weights.
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.outputs,), initializer="zeros")
        if self.spectral:
            self.u = self.add_weight(
                name="u",
                shape=(self.outputs,),
                initializer=Normal(self.noise("u"), 1.0),
                trainable=False,
                autocast=False,
            )

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        raise NotImplementedError

    def linear(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def call(
        self, x: tf.Tensor, *, training: bool = False, update_statistics: bool = True
    ) -> tf.Tensor:
        """`[b, …, inputs]` -> `[b, …, outputs]`; training with `update_statistics` replaces u by the next one."""
        kernel = tf.convert_to_tensor(self.kernel)
        if self.spectral:
            norm, following = self._largest_singular_value(kernel)
            if training and update_statistics:
                self.u.assign(following)
            kernel /= tf.maximum(norm, SMALLEST_NORM)
        y = self.linear(x, tf.cast(kernel, x.dtype))
        return y + self.bias if self.use_bias else y

    def _largest_singular_value(self, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """σ, a scalar, and the next u."""
        matrix = tf.reshape(kernel, [-1, self.outputs])
        constant = tf.stop_gradient(matrix)
        before = tf.convert_to_tensor(self.u)
        v = tf.math.l2_normalize(tf.linalg.matvec(constant, before), epsilon=SMALLEST_SQUARE)
        u = tf.linalg.matvec(constant, v, transpose_a=True)
        u = tf.math.l2_normalize(u, epsilon=SMALLEST_SQUARE)
        norm = tf.tensordot(v, tf.linalg.matvec(matrix, u), 1)
        return norm, tf.where(norm > 0, u, before)


class Dense(_Linear):
    """`[b, inputs]` -> `[b, outputs]`."""

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return inputs, self.outputs

    def linear(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return x @ kernel

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return *input_shape[:-1], self.outputs


class Convolution(_Linear):
    """`[b, height, width, inputs]` -> `[b, height, width, outputs]`, `size` × `size` pixels around each, zeros outside.

    Args:
      outputs: channels.
      size: of the kernel, odd.
      noise: see `Dense`, as for all others.
    """

    def __init__(self, outputs: int, size: int, noise: Noise, name: str, **options: Any):
        super().__init__(outputs, noise, name, **options)
        self.size = size

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return self.size, self.size, inputs, self.outputs

    def linear(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, strides=1, padding="SAME")

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return *input_shape[:-1], self.outputs


class DoubledConvolution(Convolution):
    """A convolution of the image in which each pixel stands four times: `[b, h, w, inputs]` -> `[b, 2h, 2w, outputs]`.

    It is a transposed convolution of stride 2 with the kernel's sums over 2×2 places: the same numbers but for rounding, with 4
    products an output where there were 9 (as in the networks of Karras et al. 2018, section A).
    """

    def linear(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        kernel = tf.transpose(_summed(kernel)[::-1, ::-1], [0, 1, 3, 2])
        shape = [tf.shape(x)[0], *self.compute_output_shape(x.shape)[1:]]
        return tf.nn.conv2d_transpose(x, kernel, shape, strides=2, padding="SAME")

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        rows, height, width, _ = input_shape
        return rows, 2 * height, 2 * width, self.outputs


class HalvedConvolution(Convolution):
    """The means of 2×2 pixels of a convolution: `[b, h, w, inputs]` -> `[b, h/2, w/2, outputs]`, h and w even.

    It is a convolution of stride 2 with the kernel's means over 2×2 places.
    """

    def linear(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, _summed(kernel) / 4, strides=2, padding="SAME")

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        rows, height, width, _ = input_shape
        return rows, height // 2, width // 2, self.outputs


def _summed(kernel: tf.Tensor) -> tf.Tensor:
    """The sums of a kernel's four places within each 2×2 pixels, `[size, size, …]` -> `[size + 1, size + 1, …]`."""
    places = [[[i, 1 - i], [j, 1 - j], [0, 0], [0, 0]] for i in (0, 1) for j in (0, 1)]
    return tf.add_n([tf.pad(kernel, place) for place in places])
