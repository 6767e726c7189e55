"""Spectral norm against NumPy's singular values, and the layers against Keras'."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.resnet_networks import doubled, halved
from models.spectral_norm import Convolution, Dense, DoubledConvolution, HalvedConvolution
from tests.models.objective_checks import dtype_policy

KINDS = ["dense", "convolution"]


def layer(kind, policy="float64", **options):
    noise = Noise(1, "init", rows=1, dtype=tf.float64)
    with dtype_policy(policy):
        made = (
            Dense(5, noise, "layer", **options)
            if kind == "dense"
            else Convolution(5, 3, noise, "layer", **options)
        )
        made.build((None, 7) if kind == "dense" else (None, 6, 6, 4))
    return made


def inputs(kind, dtype=np.float64):
    shape = (8, 7) if kind == "dense" else (8, 6, 6, 4)
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def converge(made, kind):
    for _ in range(200):
        made(inputs(kind), training=True)


def applied(kind, x, kernel):
    return x @ kernel if kind == "dense" else tf.nn.conv2d(x, kernel, 1, "SAME").numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_divided_by_its_largest_singular_value(kind):
    made = layer(kind, spectral=True)
    made.bias.assign(np.arange(5.0))
    converge(made, kind)
    kernel = made.kernel.numpy()
    _, singular, right = np.linalg.svd(kernel.reshape(-1, 5))
    np.testing.assert_allclose(np.abs(right[0] @ made.u.numpy()), 1, rtol=1e-10)
    expected = applied(kind, inputs(kind), kernel / singular[0]) + np.arange(5)
    np.testing.assert_allclose(made(inputs(kind)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_makes_one_power_iteration(kind):
    made = layer(kind, spectral=True)
    matrix, u = made.kernel.numpy().reshape(-1, 5), made.u.numpy()
    v = matrix @ u / np.linalg.norm(matrix @ u)
    norm = np.linalg.norm(v @ matrix)
    expected = applied(kind, inputs(kind), made.kernel.numpy() / norm)
    with keras.StatelessScope() as scope:
        y = made(inputs(kind), training=True)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scope.get_current_value(made.u), v @ matrix / norm, rtol=1e-12)
    np.testing.assert_array_equal(made.u.numpy(), u)


def test_u_moves_in_training_with_update_statistics_alone():
    made = layer("dense", spectral=True)
    before = made.u.numpy()
    outputs = [made(inputs("dense"), **state) for state in ({}, {"training": False})]
    outputs.append(made(inputs("dense"), training=True, update_statistics=False))
    np.testing.assert_array_equal(made.u.numpy(), before)
    for output in outputs:
        np.testing.assert_array_equal(output, outputs[0])
    made(inputs("dense"), training=True)
    assert np.all(made.u.numpy() != before)


def test_the_length_of_u_does_not_matter():
    """A mean over replicas may change it in the last bit, a moving average by much."""
    made = layer("dense", spectral=True)
    expected = made(inputs("dense"))
    made.u.assign(0.01 * made.u)
    np.testing.assert_allclose(made(inputs("dense")), expected, rtol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
def test_gradient_of_the_kernel(jit):
    """d Σ C∘(W/σ) / dW = (C - ⟨C, W/σ⟩ v uᵀ) / σ with the singular vectors v and u (the paper's equation 12)."""
    made = layer("dense", spectral=True, use_bias=False)
    converge(made, "dense")
    weight = np.random.default_rng(1).normal(size=(7, 5))

    @tf.function(jit_compile=jit)
    def run():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(weight * made(tf.eye(7, dtype=tf.float64)))
        return tape.gradient(total, made.kernel.value)

    kernel = made.kernel.numpy()
    left, singular, right = np.linalg.svd(kernel)
    outer = np.outer(left[:, 0], right[0])
    expected = (weight - np.sum(weight * kernel / singular[0]) * outer) / singular[0]
    np.testing.assert_allclose(run(), expected, rtol=1e-9, atol=1e-12)


def test_a_kernel_of_zeros_has_a_finite_output_and_gradient():
    made = layer("dense", spectral=True)
    made.kernel.assign(tf.zeros_like(made.kernel))
    with tf.GradientTape() as tape:
        y = made(inputs("dense"), training=True)
    np.testing.assert_array_equal(y, np.zeros((8, 5)))
    assert np.all(np.isfinite(tape.gradient(y, made.kernel.value)))


def test_a_small_kernel_has_norm_one_and_one_that_was_zero_recovers():
    made = layer("dense", "float32", spectral=True)
    kernel = made.kernel.numpy()
    made.kernel.assign(tf.zeros_like(made.kernel))
    for scale in (0, 1e-9, 1e-4):
        made.kernel.assign(scale * kernel)
        for _ in range(60):
            y = made(tf.eye(7), training=True)
        norm = np.linalg.svd(y.numpy())[1][0]
        np.testing.assert_allclose(norm, 1 if scale else 0, rtol=1e-4)


def test_the_norm_is_found_in_the_precision_of_the_weights():
    made = layer("dense", "mixed_bfloat16", spectral=True)
    converge(made, "dense")
    assert made.kernel.dtype == made.u.dtype == "float32"
    kernel = made.kernel.numpy()
    expected = kernel / np.linalg.svd(kernel)[1][0]
    y = made(tf.eye(7))
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(y, tf.cast(expected, tf.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_without_spectral_norm_they_are_keras_layers(kind):
    made = layer(kind)
    with dtype_policy("float64"):
        reference = (
            keras.layers.Dense(5)
            if kind == "dense"
            else keras.layers.Conv2D(5, 3, padding="same", data_format="channels_last")
        )
        reference.build((None, *inputs(kind).shape[1:]))
    made.bias.assign(np.arange(5.0))
    reference.set_weights(made.get_weights())
    np.testing.assert_allclose(
        made(inputs(kind), training=True), reference(inputs(kind)), rtol=1e-12, atol=1e-12
    )
    assert made.compute_output_shape((None, *inputs(kind).shape[1:])) == (
        None,
        *reference(inputs(kind)).shape[1:],
    )


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (DoubledConvolution, lambda made, x: made(doubled(x))),
        (HalvedConvolution, lambda made, x: halved(made(x))),
    ],
)
def test_a_convolution_with_a_change_of_size_is_both_in_turn(kind, plain, jit):
    """To its second gradient, which gradient penalties take."""
    with dtype_policy("float64"):
        changing, same = (
            each(5, 3, Noise(1, each.__name__, rows=1), "layer", spectral=True)
            for each in (kind, Convolution)
        )
    x = tf.constant(inputs("convolution"))
    for made in (changing, same):
        made.build(x.shape)
    changing.bias.assign(np.arange(5.0))
    same.set_weights(changing.get_weights())

    @tf.function(jit_compile=jit)
    def run(forward, made):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = forward(x)
                total = tf.reduce_sum(tf.sin(y))
            gradient = inner.gradient(total, x)
            squares = tf.reduce_sum(gradient**2)
        return y, gradient, outer.gradient(squares, made.kernel.value)

    found = run(changing, changing)
    for a, b in zip(found, run(lambda x: plain(same, x), same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert changing.compute_output_shape(x.shape) == tuple(found[0].shape)
