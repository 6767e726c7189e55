"""The minibatch standard deviation against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from models.minibatch_stddev import MinibatchStddev
from tests.models.objective_checks import dtype_policy


def test_each_group_has_a_channel_of_its_own_deviation():
    x = np.random.default_rng(0).normal(size=(6, 2, 3, 4)) * np.arange(1, 7)[:, None, None, None]
    with dtype_policy("float64"):
        layer = MinibatchStddev(3, "stddev")
    y = layer(tf.constant(x)).numpy()
    assert y.shape == layer.compute_output_shape(x.shape) == (6, 2, 3, 5)
    np.testing.assert_array_equal(y[..., :4], x)
    for group in (slice(0, 3), slice(3, 6)):
        expected = np.sqrt(x[group].var(0) + 1e-8).mean()
        np.testing.assert_allclose(y[group, ..., 4], np.full((3, 2, 3), expected), rtol=1e-12)


def test_equal_images_have_a_finite_gradient():
    x = tf.ones((4, 2, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = MinibatchStddev(4, "stddev")(x)
    np.testing.assert_allclose(y[..., 1], np.full((4, 2, 2), 1e-4), rtol=1e-4)
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones(x.shape))


def test_errors():
    with pytest.raises(ValueError, match="the group of stddev is 1: it must be at least 2"):
        MinibatchStddev(1, "stddev")
    with pytest.raises(ValueError, match=r"groups of 4 examples.* batch of 6"):
        MinibatchStddev(4, "stddev")(tf.ones((6, 2, 2, 1)))
