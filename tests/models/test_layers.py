"""Dropout, ghost batch norm and centring against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.layers import Centring, Dropout, GhostBatchNorm
from tests.models.objective_checks import dtype_policy


def test_dropout_keeps_its_share_scales_it_and_follows_the_noise():
    x = tf.random.stateless_uniform((64, 1000), (1, 2), 1, 2)
    y = Dropout(0.3, "dropout")(x, noise=Noise(3, "drop", rows=64), training=True).numpy()
    keep = Noise(3, "drop", rows=64).uniform([1000]).numpy() >= 0.3
    np.testing.assert_array_equal(y != 0, keep)
    np.testing.assert_allclose(y[keep], (x.numpy() / 0.7)[keep], rtol=1e-6)
    assert abs(keep.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / keep.size)
    half = Dropout(0.3, "dropout")(x[32:], noise=Noise(3, "drop", rows=32, first=32), training=True)
    np.testing.assert_array_equal(half.numpy(), y[32:])


def test_dropout_that_is_the_same_in_time():
    layer = Dropout(0.5, "dropout", same_in_time=True)
    dropped = layer(tf.ones([3, 7, 40]), noise=Noise(1, "n", rows=3), training=True).numpy()
    np.testing.assert_array_equal(dropped, np.tile(dropped[:, :1], [1, 7, 1]))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert 20 < np.sum(dropped[:, 0] == 0) < 100  # Of 120.
    assert np.any(dropped[0] != dropped[1])


def test_dropout_is_the_identity_at_rate_0_and_out_of_training():
    x = tf.ones((2, 3))
    assert np.all(Dropout(0.0, "dropout")(x, training=True) == 1)
    assert np.all(Dropout(0.5, "dropout")(x, noise=Noise(3, "drop", rows=2)) == 1)


def test_dropout_errors():
    with pytest.raises(ValueError, match=r"is 1\.0: it must be at least 0 and below 1"):
        Dropout(1.0, "dropout")
    with pytest.raises(ValueError, match="give it noise"):
        Dropout(0.5, "dropout")(tf.ones((2, 3)), training=True)


GROUP, CHANNELS = 4, 3


def batch_norm(**arguments):
    with dtype_policy("float64"):
        layer = GhostBatchNorm(GROUP, "norm", **arguments)
        layer.build((None, 5, CHANNELS))
    layer.gamma.assign([1.5, 0.5, -2.0])
    layer.beta.assign([0.1, -0.2, 0.3])
    return layer


def reference(x, gamma, beta, epsilon=1e-3):
    """Forward pass and statistics of each group, and the derivative of sum(weight * y) after x, by the closed form."""
    groups = x.reshape(-1, GROUP * x.shape[1], CHANNELS)
    mean, variance = groups.mean(1), groups.var(1)
    normal = (groups - mean[:, None]) / np.sqrt(variance + epsilon)[:, None]
    y = (normal * gamma + beta).reshape(x.shape)

    def gradient(weight):
        dy = weight.reshape(groups.shape) * gamma
        centred = dy - dy.mean(1, keepdims=True) - normal * (dy * normal).mean(1, keepdims=True)
        return (centred / np.sqrt(variance + epsilon)[:, None]).reshape(x.shape)

    return y, mean, variance, gradient


@pytest.mark.parametrize("jit", [False, True])
def test_ghost_batch_norm_forward_statistics_and_gradient(jit):
    layer = batch_norm()
    rng = np.random.default_rng(0)
    x, weight = rng.normal(2, 3, (8, 5, CHANNELS)), rng.normal(size=(8, 5, CHANNELS))

    @tf.function(jit_compile=jit)
    def run(x):
        with keras.StatelessScope() as scope, tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(weight * y)
        moved = [scope.get_current_value(v) for v in (layer.moving_mean, layer.moving_variance)]
        return y, tape.gradient(loss, [x, layer.gamma.value, layer.beta.value]), moved

    y, (dx, dgamma, dbeta), (moving_mean, moving_variance) = run(tf.constant(x))
    expected, mean, variance, gradient = reference(x, layer.gamma.numpy(), layer.beta.numpy())
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, gradient(weight), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dbeta, weight.sum((0, 1)), rtol=1e-12)
    normal = (expected - layer.beta.numpy()) / layer.gamma.numpy()
    np.testing.assert_allclose(dgamma, (weight * normal).sum((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(moving_mean, 0.01 * mean.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moving_variance, 0.99 + 0.01 * variance.mean(0), rtol=1e-12)
    # Nothing moved outside the scope.
    assert np.all(layer.moving_mean.numpy() == 0) and np.all(layer.moving_variance.numpy() == 1)


def test_groups_do_not_see_each_other():
    layer = batch_norm()
    x = np.random.default_rng(1).normal(size=(8, 5, CHANNELS))
    both = layer(x, training=True, update_statistics=False).numpy()
    second = layer(x[GROUP:], training=True, update_statistics=False).numpy()
    np.testing.assert_allclose(both[GROUP:], second, rtol=1e-13, atol=1e-13)


def test_moving_averages_move_once_a_call_and_serve_inference():
    layer = batch_norm(momentum=0.9)
    rng = np.random.default_rng(2)
    first, second = rng.normal(1, 2, (4, 5, CHANNELS)), rng.normal(-1, 1, (4, 5, CHANNELS))
    with keras.StatelessScope() as scope:
        layer(first, training=True)
        layer(second, training=True, update_statistics=False)
        layer(second, training=True)
    mean = scope.get_current_value(layer.moving_mean)
    variance = scope.get_current_value(layer.moving_variance)
    means, variances = (
        [statistic(x, (0, 1)) for x in (first, second)] for statistic in (np.mean, np.var)
    )
    np.testing.assert_allclose(mean, 0.09 * means[0] + 0.1 * means[1], rtol=1e-12)
    np.testing.assert_allclose(
        variance, 0.81 + 0.09 * variances[0] + 0.1 * variances[1], rtol=1e-12
    )
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    # Any batch size will do out of training.
    y = layer(first[:3]).numpy()
    expected = (first[:3] - mean) / np.sqrt(variance + 1e-3) * layer.gamma + layer.beta
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_ghost_batch_norm_computes_statistics_in_float32():
    """The mean of 4096 and 4104 in bfloat16 would be off by up to 16."""
    with dtype_policy("mixed_bfloat16"):
        layer = GhostBatchNorm(2, "norm")
    layer.build((None, 1))
    x = tf.constant([[4096.0], [4128.0]], tf.bfloat16)
    with keras.StatelessScope() as scope:
        y = layer(x, training=True)
    assert y.dtype == tf.bfloat16 and layer.moving_mean.dtype == layer.gamma.dtype == "float32"
    np.testing.assert_array_equal(tf.cast(y, tf.float32), [[-1], [1]])
    np.testing.assert_allclose(scope.get_current_value(layer.moving_mean), [0.01 * 4112], rtol=1e-6)


def test_a_group_that_does_not_divide_the_batch_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"groups of 4 examples.* batch of 6"):
        batch_norm()(tf.ones((6, 5, CHANNELS), tf.float64), training=True)


@pytest.mark.parametrize("jit", [False, True])
def test_class_conditional_batch_norm(jit):
    """Each class' factor and shift after the statistics of all; their gradients are sums over the class' examples."""
    with dtype_policy("float64"):
        layer = GhostBatchNorm(GROUP, "norm", classes=3)
        layer.build((None, 5, CHANNELS))
    rng = np.random.default_rng(3)
    gamma, beta = rng.normal(size=(2, 3, CHANNELS))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    x, weight = rng.normal(2, 3, (8, 5, CHANNELS)), rng.normal(size=(8, 5, CHANNELS))
    labels = np.array([0, 2, 2, 0, 2, 0, 0, 2])

    @tf.function(jit_compile=jit)
    def run(x):
        with keras.StatelessScope(), tf.GradientTape() as tape:
            y = layer(x, labels=tf.constant(labels), training=True)
            loss = tf.reduce_sum(weight * y)
        return y, tape.gradient(loss, [layer.gamma.value, layer.beta.value])

    y, (dgamma, dbeta) = run(tf.constant(x))
    normal = reference(x, np.ones(CHANNELS), np.zeros(CHANNELS))[0]
    expected = normal * gamma[labels][:, None] + beta[labels][:, None]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    member = np.eye(3)[labels]
    np.testing.assert_allclose(dbeta, member.T @ weight.sum(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dgamma, member.T @ (weight * normal).sum(1), rtol=1e-12, atol=1e-12)
    still = (x - 0) / np.sqrt(1 + 1e-3) * gamma[labels][:, None] + beta[labels][:, None]
    np.testing.assert_allclose(layer(x, labels=labels), still, rtol=1e-12)
    with pytest.raises(ValueError, match="has 3 classes: call it with labels"):
        layer(x)


def test_centring_subtracts_the_moving_mean_of_the_data():
    layer = Centring("centring", initial=2.0, momentum=0.75)
    x = np.array([[1.0, 4.0], [3.0, 8.0]], np.float32)
    np.testing.assert_array_equal(layer(x), x - 2)
    layer.update(x)
    np.testing.assert_array_equal(layer.moving_mean, [2.0, 3.0])
    layer.update(x)
    np.testing.assert_array_equal(layer(x), x - [2.0, 3.75])
    with dtype_policy("mixed_bfloat16"):
        layer = Centring("centring", initial=0.5)
    # Of 0.501 that has 0.5.
    np.testing.assert_array_equal(
        layer(np.array([[0.501]], np.float32)), [[np.float32(0.501) - 0.5]]
    )
