"""Likelihoods of pictures against SciPy."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from models.likelihoods import Bernoulli, Gaussian, softplus_sum

SHAPE = (3, 2, 1)
CHANCE = np.random.default_rng(0)


def pictures_and_outputs(rows=4, samples=3):
    return CHANCE.uniform(size=(rows, *SHAPE)), CHANCE.normal(size=(rows, samples, *SHAPE))


def test_bernoulli_against_scipy():
    x, logits = pictures_and_outputs()
    x = np.round(x)
    expected = scipy.stats.bernoulli(1 / (1 + np.exp(-logits))).logpmf(x[:, None]).sum((2, 3, 4))
    bernoulli = Bernoulli(SHAPE, name="likelihood")
    found = bernoulli.log_probability(tf.constant(x), tf.constant(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(
        bernoulli.mean(tf.constant(logits[:, 0])), 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-12
    )
    assert bernoulli.outputs == SHAPE and not bernoulli.variables


def test_bernoulli_mixes_grey_values_linearly():
    _, logits = pictures_and_outputs()
    black, grey, white = (
        Bernoulli(SHAPE, name="likelihood").log_probability(
            tf.fill([4, *SHAPE], tf.constant(value, tf.float64)), tf.constant(logits)
        )
        for value in (0, 0.25, 1)
    )
    np.testing.assert_allclose(grey, 0.75 * black + 0.25 * white, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.3, None])
def test_gaussian_against_scipy(scale):
    x, outputs = pictures_and_outputs()
    gaussian = Gaussian(SHAPE, name="likelihood", scale=scale)
    if scale is None:
        gaussian.raw.assign(-0.5)
    deviation = scale or np.exp(-6 + np.log1p(np.exp(np.float64(-0.5) + 6)))
    means = 1 / (1 + np.exp(-outputs))
    expected = scipy.stats.norm(means, deviation).logpdf(x[:, None]).sum((2, 3, 4))
    found = gaussian.log_probability(tf.constant(x), tf.constant(outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_bits_of_spread_levels_bound_those_of_the_levels():
    """Of a normal density wider than a level, by little (Theis, van den Oord & Bethge 2016)."""
    levels, scale, draws = 17, 0.5, 2000
    k = CHANCE.integers(levels, size=SHAPE)
    outputs = CHANCE.normal(size=SHAPE)
    normal = scipy.stats.norm(1 / (1 + np.exp(-outputs)), scale)
    expected = -np.log2(normal.cdf((k + 1) / levels) - normal.cdf(k / levels)).mean()

    gaussian = Gaussian(SHAPE, name="likelihood", scale=scale, levels=levels)
    # The same place of a cell for every pixel: the mean over evenly spread places is the integral.
    places = (np.arange(draws) + 0.5) / draws
    x = (k + places.reshape(-1, 1, 1, 1)) / levels
    repeated = np.broadcast_to(outputs, (draws, 1, *SHAPE))
    nats = -gaussian.log_probability(tf.constant(x), tf.constant(repeated))[:, 0]
    bits = float(tf.reduce_mean(gaussian.bits_per_dimension("bits", nats)["bits"]))
    assert expected < bits < expected + 0.01


def test_bits_a_dimension():
    six_bits = tf.constant([0.0, 6 * np.log(2)], tf.float64)
    binary = Bernoulli(SHAPE, name="likelihood", binary=True)
    bits = binary.bits_per_dimension("bits", six_bits)["bits"]
    np.testing.assert_allclose(bits, [0, 1], rtol=1e-12)
    uniform = Gaussian(SHAPE, name="likelihood", levels=256).bits_per_dimension("bits", six_bits)
    np.testing.assert_allclose(uniform["bits"], [8, 9], rtol=1e-12)
    for neither in (Bernoulli, Gaussian):
        assert neither(SHAPE, name="likelihood").bits_per_dimension("bits", six_bits) == {}


@pytest.mark.parametrize(("name", "value"), [("scale", 0.0), ("levels", 1)])
def test_arguments_of_a_gaussian_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"Gaussian\.{name} is {value}: it must be "):
        Gaussian(SHAPE, name="likelihood", **{name: value})


@pytest.mark.parametrize("length", [784, 192, 67, 1])
def test_softplus_sum(length):
    """In float32 too, where all factors are 2 and where numbers are large; its gradient is the sigmoid."""
    x = CHANCE.normal(size=(5, 2, length)) * 10
    expected = np.logaddexp(0, x).sum(-1)
    np.testing.assert_allclose(softplus_sum(tf.constant(x)), expected, rtol=1e-13, atol=1e-14)
    for value in (0.0, 1e4, -1e4):
        found = softplus_sum(tf.fill([length], tf.constant(value, tf.float32)))
        np.testing.assert_allclose(found, length * np.logaddexp(0, value), rtol=1e-6)
    x, weights = tf.constant(x), tf.constant(CHANCE.normal(size=(5, 2)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(softplus_sum(x) * weights)
    expected = weights[..., None] / (1 + np.exp(-x))
    np.testing.assert_allclose(tape.gradient(total, x), expected, rtol=1e-11)
