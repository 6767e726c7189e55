"""Differentiable augmentation against NumPy, image by image."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.augmentation import CHANGES, augment, colour, cutout, translation

ROWS, SIDE = 64, 12


def noise(first=0, rows=ROWS):
    return Noise(3, "augmentation", rows=rows, first=first, dtype=tf.float64)


def images(height=SIDE, width=SIDE, channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (ROWS, height, width, channels))


def test_colour():
    x = images()
    brightness, saturation, contrast = (
        noise()(name).uniform([1, 1, 1]).numpy()
        for name in ("brightness", "saturation", "contrast")
    )
    y = x + brightness - 0.5
    y = (y - y.mean(3, keepdims=True)) * 2 * saturation + y.mean(3, keepdims=True)
    level = y.mean((1, 2, 3), keepdims=True)
    y = (y - level) * (contrast + 0.5) + level
    np.testing.assert_allclose(colour(tf.constant(x), noise()), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("side", "most"), [(8, 1), (12, 2), (28, 4)])
def test_translation_moves_by_whole_pixels_up_to_an_eighth(side, most):
    x = images(side, side)
    y = translation(tf.constant(x), noise()).numpy()
    padded = np.pad(x, [[0, 0], [most, most], [most, most], [0, 0]])
    windows = 2 * most + 1
    down, right = (
        np.floor(noise()(name).uniform().numpy() * windows).astype(int)
        for name in ("vertical", "horizontal")
    )
    assert set(down) == set(right) == set(range(windows))
    for i in range(ROWS):
        window = padded[i, down[i] : down[i] + side, right[i] : right[i] + side]
        np.testing.assert_array_equal(y[i], window)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (10, 10), (8, 28)])
def test_cutout_zeroes_a_square_of_half_the_side_around_any_pixel(height, width):
    x = images(height, width)
    y = cutout(tf.constant(x), noise()).numpy()
    bounds = []
    for name, length in (("vertical", height), ("horizontal", width)):
        side = length // 2
        middle = noise()(name).uniform().numpy() * (length + 1 - side % 2)
        first = np.floor(middle).astype(int) - side // 2
        assert first.min() < 0 and (first + side).max() > length
        bounds.append((np.maximum(first, 0), np.maximum(first + side, 0)))
    for i in range(ROWS):
        (top, bottom), (left, right) = ((first[i], last[i]) for first, last in bounds)
        expected = x[i].copy()
        expected[top:bottom, left:right] = 0
        np.testing.assert_array_equal(y[i], expected)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_gradient(name, jit):
    """A change is affine: its derivative along d is the difference of the changes of x + d and x."""
    x, d, weight = (np.random.default_rng(i).normal(size=(ROWS, 8, 8, 3)) for i in range(3))

    @tf.function(jit_compile=jit)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = CHANGES[name](x, noise())
        return y, tape.gradient(y, x, output_gradients=tf.constant(weight))

    y, gradient = run(tf.constant(x))
    moved, _ = run(tf.constant(x + d))
    expected = np.sum(weight * (moved - y).numpy(), (1, 2, 3))
    np.testing.assert_allclose(np.sum(gradient * d, (1, 2, 3)), expected, rtol=1e-9, atol=1e-9)


def test_translation_differentiates_twice():
    """Of (d/dx Σ (shift x)²)²/2: the second derivative moves there and back."""
    x = tf.constant(images())
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(tf.square(translation(x, noise()))) / 2
        first = inner.gradient(y, x)
        z = tf.reduce_sum(tf.square(first)) / 2
    stays = translation(tf.ones_like(x), noise())
    kept = tf.where(first == 0, 0.0, x)
    assert float(tf.reduce_sum(tf.cast(first != 0, tf.float64))) == float(tf.reduce_sum(stays))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(outer.gradient(z, x), kept)


def test_changes_follow_each_other_by_their_names_and_rows_are_their_own():
    x = tf.constant(images())
    y = augment(x, ("cutout", "colour"), noise())
    expected = colour(cutout(x, noise()("cutout")), noise()("colour"))
    np.testing.assert_array_equal(y, expected)
    half = augment(x[32:], ("cutout", "colour"), noise(first=32, rows=32))
    np.testing.assert_allclose(half, y[32:], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(augment(x, (), noise()), x)
