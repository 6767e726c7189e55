"""Layer and root-mean-square normalisation against TensorFlow's own operations and their gradients."""

import numpy as np
import pytest
import tensorflow as tf

from models.normalisation import Norm
from tests.models.objective_checks import dtype_policy

X = np.random.default_rng(0).normal(1.0, 2.0, size=[3, 4, 5])
WEIGHTS = np.random.default_rng(1).normal(size=X.shape)
GAMMA, BETA = np.random.default_rng(2).normal(size=[2, 5])


def make(kind, policy="float64", **options):
    with dtype_policy(policy):
        layer = Norm(kind, "norm", **options)
        layer.build((None, None, 5))
    layer.set_weights([GAMMA, BETA][: len(layer.weights)])
    return layer


def written(kind, x, gamma, beta):
    """The same by TensorFlow's operations, with their gradients."""
    if kind == "layer":
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-5) * gamma + beta
    return x / tf.sqrt(tf.reduce_mean(x**2, -1, keepdims=True) + 1e-5) * gamma


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_values_and_gradients(kind, jit):
    layer = make(kind)

    @tf.function(jit_compile=jit)
    def ours(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * WEIGHTS)
        return y, tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])

    y, gradients = ours(tf.constant(X))
    arguments = [tf.constant(value) for value in (X, GAMMA, BETA)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        expected = written(kind, *arguments)
        loss = tf.reduce_sum(expected * WEIGHTS)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    for one, other in zip(gradients, tape.gradient(loss, arguments[: len(gradients)]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    assert len(gradients) == (3 if kind == "layer" else 2)


def test_without_a_bias():
    layer = make("layer", use_bias=False)
    assert [v.path for v in layer.weights] == ["norm/gamma"]
    np.testing.assert_allclose(layer(X), written("layer", X, GAMMA, 0), rtol=1e-12)


def test_low_precision_is_computed_in_float32():
    layer = make("layer", "mixed_bfloat16")
    x = tf.cast(100 + X, tf.bfloat16)
    y = layer(x)
    assert y.dtype == tf.bfloat16
    expected = tf.cast(
        written("layer", tf.cast(x, tf.float32), np.float32(GAMMA), np.float32(BETA)), tf.bfloat16
    )
    np.testing.assert_allclose(tf.cast(y, tf.float32), tf.cast(expected, tf.float32), rtol=2**-7)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match='norm is "group"'):
        Norm("group", "norm")
