"""The activation whose gradient is written out, against NumPy; the layer is tested with the transformer."""

import math

import numpy as np
import pytest
import tensorflow as tf

from models.feed_forward import gelu

X = np.linspace(-6, 6, 97)


def reference(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("jit", [False, True])
def test_gelu(jit):
    @tf.function(jit_compile=jit)
    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = gelu(x)
        return y, tape.gradient(y, x)

    y, gradient = value_and_gradient(tf.constant(X))
    np.testing.assert_allclose(y, reference(X), rtol=1e-12, atol=1e-14)
    slope = (reference(X + 1e-5) - reference(X - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient, slope, atol=1e-9)


def test_gelu_of_large_numbers_in_low_precision():
    """The square of 256 is more than float16 has."""
    x = tf.constant([-3e4, -300.0, -256.0, 255.0, 256.0, 3e4], tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0, 0, 1, 1, 1])


def test_gelu_is_near_its_definition():
    """x Φ(x), which it approximates within 0.0005."""
    exact = X * 0.5 * np.array([math.erfc(-x / math.sqrt(2)) for x in X])
    error = np.abs(gelu(tf.constant(X)) - exact)
    assert 1e-5 < np.max(error) < 5e-4
