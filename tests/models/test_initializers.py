"""Initial weights against the moments of their distributions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.initializers import Normal, Uniform, VarianceScaling


def one_row(name, dtype=tf.float32):
    return Noise(3, name, rows=1, dtype=dtype)


def test_normal_has_its_standard_deviation_and_is_not_truncated():
    weight = Normal(one_row("a"), 0.02)((400, 500)).numpy()
    # Of 200,000 numbers: standard errors of mean and deviation, and 0.0027 beyond three deviations.
    assert abs(weight.mean()) < 5 * 0.02 / np.sqrt(weight.size)
    assert abs(weight.std() / 0.02 - 1) < 5 / np.sqrt(2 * weight.size)
    assert abs(np.mean(np.abs(weight) > 0.06) - 0.0027) < 5 * np.sqrt(0.0027 / weight.size)


def test_uniform_fills_its_interval():
    weight = Uniform(one_row("a"), 0.1)((400, 500)).numpy()
    assert -0.1 < weight.min() < -0.0999 and 0.0999 < weight.max() < 0.1
    assert abs(weight.std() / (0.1 / np.sqrt(3)) - 1) < 5e-3


@pytest.mark.parametrize(
    ("scale", "shape", "variance"),
    [(1.0, (300, 500), 1 / 400), (2.0, (4, 4, 32, 64), 2 / (16 * 48))],
)
def test_variance_scaling(scale, shape, variance):
    weight = VarianceScaling(one_row("a"), scale)(shape).numpy()
    assert abs(weight.var() / variance - 1) < 5 * np.sqrt(2 / weight.size)


def test_initial_weights_depend_on_their_name_alone():
    """Not on the order of creation, nor on the dtype but for rounding."""

    def weights(names, dtype=tf.float32):
        root = one_row("init", dtype)
        return {
            name: keras.layers.Dense(5, kernel_initializer=VarianceScaling(root(name)), name=name)
            for name in names
        }

    layers, reverse = weights("abc"), weights("cba")
    wide = weights("abc", tf.float64)
    for name in "abc":
        for layer in (layers[name], reverse[name], wide[name]):
            layer.build((None, 7))
    for name in "abc":
        kernel = layers[name].kernel.numpy()
        np.testing.assert_array_equal(kernel, reverse[name].kernel.numpy())
        np.testing.assert_allclose(kernel, wide[name].kernel.numpy(), rtol=1e-5)
    assert not np.any(layers["a"].kernel.numpy() == layers["b"].kernel.numpy())
