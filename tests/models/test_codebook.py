"""The codebook against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.noise import Noise
from models.codebook import OFFSET, SMOOTHING, Codebook

CODES, WIDTH, VECTORS = 6, 3, 4
SMOOTHED = SMOOTHING * VECTORS / CODES


def codebook(counts=None, codes=None, **arguments):
    """In float64, if given with these counts and sum / count."""
    made = Codebook(
        CODES,
        WIDTH,
        VECTORS,
        noise=Noise(3, "init", rows=1, dtype=tf.float64),
        name="codebook",
        **arguments,
    )
    if counts is not None:
        made.counts.assign(counts)
        made.sums.assign(np.array(counts)[:, np.newaxis] * codes)
    return made


@pytest.fixture(autouse=True)
def float64():
    from tests.models.objective_checks import dtype_policy

    with dtype_policy("float64"):
        yield


def places(chance):
    return chance.normal(size=(CODES, WIDTH))


def test_used_codes_are_sum_by_count_and_dead_ones_copies():
    """Counts 2, 0, 1, 0, 1, 0 in order: of 4 vectors, number 1/3, 1, 5/3, 7/3, 3, 11/3 belong to codes 0, 0, 0, 2, 4, 4."""
    codes = places(np.random.default_rng(0))
    book = codebook([2.0, 0, 1, 0, 1, 0], codes)
    copied = codes[[0, 0, 0, 2, 4, 4]] * (1 + book.offsets.numpy())
    counts = np.array([2.0, 0, 1, 0, 1, 0])[:, np.newaxis]
    expected = (counts * codes + SMOOTHED * copied) / (counts + SMOOTHED)
    np.testing.assert_allclose(book.vectors(tf.float64), expected, rtol=1e-12)
    np.testing.assert_allclose(expected[1], codes[0], rtol=5 * OFFSET)
    np.testing.assert_allclose(expected[0], codes[0], rtol=1e-3)
    usage = (counts[:, 0] + SMOOTHED) / (4 + CODES * SMOOTHED)
    np.testing.assert_allclose(book.usage(tf.float64), usage, rtol=1e-12)
    np.testing.assert_allclose(usage.sum(), 1)


def test_nearest_against_numpy():
    chance = np.random.default_rng(1)
    book = codebook(np.ones(CODES), places(chance))
    x = chance.normal(size=(2, 5, WIDTH))
    codes = book.vectors(tf.float64).numpy()
    expected = np.linalg.norm(x[..., np.newaxis, :] - codes, axis=-1).argmin(-1)
    numbers = book.nearest(tf.constant(x))
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(book.look_up(numbers, tf.float64), codes[expected])


def test_averages_move_by_means_over_examples():
    book = codebook(np.full(CODES, 0.5), places(np.random.default_rng(2)), decay=0.9)
    x = np.random.default_rng(3).normal(size=(2, 4, WIDTH))
    numbers = np.array([[0, 0, 1, 5], [0, 5, 5, 1]])
    sums = book.sums.numpy()
    book.update(tf.constant(x), tf.constant(numbers))
    np.testing.assert_allclose(book.counts, 0.45 + 0.1 * np.array([3, 2, 0, 0, 0, 3]) / 2)
    total = np.zeros((CODES, WIDTH))
    np.add.at(total, numbers, x)
    np.testing.assert_allclose(book.sums, 0.9 * sums + 0.1 * total / 2, rtol=1e-12)


def test_codes_find_the_centres_of_clusters():
    """Six clusters far from all first codes, which are near 0: every code ends at one of its own."""
    chance = np.random.default_rng(4)
    centres = chance.normal(size=(CODES, WIDTH)) * 3 + 20
    book = codebook(decay=0.9)

    @tf.function
    def update(x):
        book.update(x, book.nearest(x))

    for _ in range(300):
        x = centres + 0.01 * chance.normal(size=(8, CODES, WIDTH))
        update(tf.constant(x))
    found = book.vectors(tf.float64).numpy()
    distances = np.linalg.norm(found[:, np.newaxis] - centres, axis=2)
    assert sorted(distances.argmin(1)) == list(range(CODES))
    assert distances.min(1).max() < 0.2
    np.testing.assert_allclose(book.counts, np.ones(CODES), atol=1e-6)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="has 6 codes of width 3 and decay 1"):
        codebook(decay=1.0)
