"""The discretised mixture of logistics against direct sums."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from input_pipeline.batches import Feature
from input_pipeline.noise import Noise
from models.logistic_mixture import LogisticMixture
from models.mlp import MLPDecoder, MLPEncoder
from models.vae import VAE
from tests.models.objective_checks import build, check_phase

K = 2


def outputs(channels, rows=1, samples=1, side=1):
    numbers = {1: 3, 3: 10}[channels] * K
    return np.random.default_rng(0).normal(size=(rows, samples, side, side, numbers))


def probability(pixel, numbers, levels):
    """By SciPy, of one pixel's levels `[channels]` and the decoder's numbers for it `[numbers]`."""
    channels = len(pixel)
    numbers = numbers.reshape(-1, K)
    logits, means, log_scales = np.split(numbers[: 1 + 2 * channels], [1, 1 + channels])
    slopes = np.tanh(numbers[1 + 2 * channels :])
    x = 2 * np.array(pixel) / (levels - 1) - 1
    total = 0
    for k, weight in enumerate(scipy.special.softmax(logits[0])):
        for channel, level in enumerate(pixel):
            mean = means[channel, k]
            if channel == 1:
                mean += slopes[0, k] * x[0]
            if channel == 2:
                mean += slopes[1, k] * x[0] + slopes[2, k] * x[1]
            cdf = scipy.stats.logistic(mean, np.exp(log_scales[channel, k])).cdf
            above = 1 if level == levels - 1 else cdf(x[channel] + 1 / (levels - 1))
            below = 0 if level == 0 else cdf(x[channel] - 1 / (levels - 1))
            weight = weight * (above - below)
        total += weight
    return total


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (1, 2), (3, 5)])
def test_against_scipy_and_all_levels_sum_to_one(channels, levels):
    likelihood = LogisticMixture((1, 1, channels), name="l", levels=levels, mixtures=K)
    numbers = outputs(channels)
    assert likelihood.outputs == numbers.shape[2:]
    pixels = np.array(list(itertools.product(range(levels), repeat=channels)))
    x = (pixels / (levels - 1)).reshape(-1, 1, 1, channels)
    found = likelihood.log_probability(
        tf.constant(x), tf.constant(np.repeat(numbers, len(pixels), 0))
    )
    assert found.shape == (len(pixels), 1)
    np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-12)
    expected = [probability(pixel, numbers.ravel(), levels) for pixel in pixels]
    np.testing.assert_allclose(np.exp(found[:, 0]), expected, rtol=1e-9)


def test_pixels_and_samples_are_independent():
    likelihood = LogisticMixture((2, 2, 3), name="l", levels=8, mixtures=K)
    numbers, levels = outputs(3, rows=2, samples=3, side=2), np.arange(24).reshape(2, 2, 2, 3) % 8
    found = likelihood.log_probability(tf.constant(levels / 7), tf.constant(numbers))
    expected = [
        [
            sum(
                math.log(probability(levels[b, i, j], numbers[b, k, i, j], 8))
                for i, j in itertools.product(range(2), repeat=2)
            )
            for k in range(3)
        ]
        for b in range(2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("mean", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("log_scale", [-20.0, 4.0])
def test_float32_is_finite_far_from_the_mean_with_its_gradient(mean, log_scale):
    """A mean 30 ranges off, and scales of both extremes: a difference of two sigmoids would be 0."""
    likelihood = LogisticMixture((1, 1, 1), name="l", mixtures=1)
    x = tf.constant(np.linspace(0, 1, 256).reshape(-1, 1, 1, 1), tf.float32)
    numbers = tf.tile(tf.constant([[[[[0.0, mean, log_scale]]]]]), [256, 1, 1, 1, 1])
    with tf.GradientTape() as tape:
        tape.watch(numbers)
        found = likelihood.log_probability(x, numbers)
    gradient = tape.gradient(found, numbers)
    assert np.all(np.isfinite(found)) and np.all(np.isfinite(gradient))
    assert np.all(found.numpy() <= 1e-6)


def test_mean_against_many_draws():
    """Of narrow components well within the range: where nothing is cut off, levels drawn in turn have this mean."""
    levels, numbers = 9, outputs(3) * 0.3
    numbers[..., 4 * K : 7 * K] = -2.3
    likelihood = LogisticMixture((1, 1, 3), name="l", levels=levels, mixtures=K)
    pixels = np.array(list(itertools.product(range(levels), repeat=3)))
    chances = np.array([probability(pixel, numbers.ravel(), levels) for pixel in pixels])
    expected = chances @ pixels / (levels - 1)
    found = likelihood.mean(tf.constant(numbers[:, 0]))
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=0.003)


@pytest.mark.parametrize("log_scale", [-5.0, -1.0, 0.5])
def test_mean_of_components_far_out_of_the_range(log_scale):
    """What is beyond black and white is black and white: of 256 levels, the expectation is that of the cut-off draws."""
    likelihood = LogisticMixture((1, 1, 1), name="l", mixtures=K)
    numbers = tf.constant([0.0, 0.5, -5.0, 0.9, log_scale, log_scale], tf.float64)
    levels = tf.range(256, dtype=tf.float64)[:, tf.newaxis, tf.newaxis, tf.newaxis] / 255
    every = tf.tile(numbers[tf.newaxis, tf.newaxis, tf.newaxis, tf.newaxis], [256, 1, 1, 1, 1])
    chances = tf.exp(likelihood.log_probability(levels, every)[:, 0])
    expected = tf.reduce_sum(chances * levels[:, 0, 0, 0])
    found = likelihood.mean(numbers[tf.newaxis, tf.newaxis, tf.newaxis])
    np.testing.assert_allclose(tf.squeeze(found), expected, atol=3e-4)


def test_mean_of_green_and_blue_given_a_red_far_out_of_the_range():
    likelihood = LogisticMixture((1, 1, 3), name="l", mixtures=1)
    means, scales, slopes = [-5.0, 0.2, 0.1], [-6.0, -6.0, -6.0], np.arctanh([0.5, 0.2, 0.3])
    numbers = tf.constant([[[[0.0, *means, *scales, *slopes]]]], tf.float64)
    green = 0.2 - 0.5
    blue = 0.1 - 0.2 + 0.3 * green
    expected = (np.array([-1, green, blue]) + 1) / 2
    np.testing.assert_allclose(tf.squeeze(likelihood.mean(numbers)), expected, atol=1e-6)


def test_a_vae_learns_and_counts_bits():
    spec = {"image": Feature((4, 4, 3), "float32")}
    vae = build(
        lambda: VAE(
            spec,
            encoder=functools.partial(MLPEncoder, widths=(5,)),
            decoder=functools.partial(MLPDecoder, widths=(6,)),
            latent=3,
            likelihood=functools.partial(LogisticMixture, levels=16, mixtures=K),
            evaluation_samples=10,
            evaluation_chunk=5,
        )
    )
    batch = {"image": tf.round(tf.random.stateless_uniform((4, 4, 4, 3), (1, 2)) * 15) / 15}
    for jit in (False, True):
        check_phase(vae, vae.phases[0], batch, "float32", jit)

    @tf.function(autograph=False)
    def evaluate():
        return vae.evaluate(batch, Noise(1, "evaluate", rows=4), tf.constant(0, tf.int64))

    metrics = evaluate()
    expected = metrics["negative_elbo"] / (48 * np.log(2))
    np.testing.assert_allclose(metrics["bits_per_dimension"], expected, rtol=1e-6)
    expected = metrics["negative_log_likelihood"] / (48 * np.log(2))
    np.testing.assert_allclose(metrics["likelihood_bits_per_dimension"], expected, rtol=1e-6)
    # Before training a level costs little more than among 16 alike.
    assert 4 < float(tf.reduce_mean(metrics["bits_per_dimension"])) < 6


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="levels 1 and mixtures 5"):
        LogisticMixture((1, 1, 1), name="l", levels=1)
