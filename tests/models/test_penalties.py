"""Gradient penalties in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.penalties import PENALTIES, dragan, r1, wgan_gp

ROWS = 5


def noise():
    return Noise(3, "penalty", rows=ROWS, dtype=tf.float64)


def pair(*shape):
    return np.random.default_rng(0).normal(size=(2, ROWS, *shape))


def half_square(x):
    """A discriminator with the gradient x."""
    return tf.reduce_sum(x**2, list(range(1, len(x.shape)))) / 2


def norms(x):
    return np.sqrt((x**2).reshape(ROWS, -1).sum(1))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_of_a_linear_discriminator(name, jit):
    """Of D(x) = xw: (‖w‖ - 1)² with derivative 2 (‖w‖ - 1) w / ‖w‖, and ‖w‖² / 2 with derivative w."""
    w = tf.constant([[2.0], [-1.0], [2.0]], tf.float64)
    real, fake = map(tf.constant, pair(3))

    @tf.function(jit_compile=jit)
    def run(w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            penalty = PENALTIES[name](lambda x: (x @ w)[:, 0], real, fake, noise())
        return penalty, tape.gradient(penalty, w)

    penalty, gradient = run(w)
    value, slope = (9 / 2, w) if name == "r1" else (4.0, 2 * 2 * w / 3)
    np.testing.assert_allclose(penalty, np.full(ROWS, value), rtol=1e-10)
    np.testing.assert_allclose(gradient, ROWS * slope, rtol=1e-10)


def test_wgan_gp_is_taken_between_real_and_fake():
    real, fake = pair(2, 3)
    share = noise()("fraction").uniform([1, 1]).numpy()
    x = share * real + (1 - share) * fake
    penalty = wgan_gp(half_square, tf.constant(real), tf.constant(fake), noise())
    np.testing.assert_allclose(penalty, (norms(x) - 1) ** 2, rtol=1e-9)


def test_dragan_is_taken_around_real_at_half_of_each_example_s_deviation():
    real, fake = pair(2, 3)
    real *= np.arange(1, ROWS + 1)[:, None, None]
    deviation = real.std((1, 2), keepdims=True)
    x = real + deviation / 2 * noise()("perturbation").normal([2, 3]).numpy()
    penalty = dragan(half_square, tf.constant(real), tf.constant(fake), noise())
    np.testing.assert_allclose(penalty, (norms(x) - 1) ** 2, rtol=1e-9)


def test_r1_is_taken_at_real():
    real, fake = pair(2, 3)
    penalty = r1(half_square, tf.constant(real), tf.constant(fake), noise())
    np.testing.assert_allclose(penalty, norms(real) ** 2 / 2, rtol=1e-12)


@pytest.mark.parametrize(("name", "value"), [("wgan_gp", 1), ("dragan", 1), ("r1", 0)])
def test_a_constant_discriminator_has_a_finite_gradient(name, value):
    w = tf.zeros([3, 1], tf.float64)
    real, fake = map(tf.constant, pair(3))
    with tf.GradientTape() as tape:
        tape.watch(w)
        penalty = PENALTIES[name](lambda x: (x @ w)[:, 0], real, fake, noise())
    np.testing.assert_allclose(penalty, np.full(ROWS, value), rtol=1e-5)
    assert np.all(np.isfinite(tape.gradient(penalty, w)))
