"""Draws from categories: which ones top-k and top-p keep, by hand, and how often each is drawn."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from models.categorical import draw, penalise

GRID = (np.arange(4000) + 0.5) / 4000
"""Places in the distribution, so fine that each category with a thousandth of it is hit."""


def drawn(p, jit=False, uniform=GRID, **how):
    """The categories of all these places, for one distribution."""
    logits = tf.constant(np.log(np.tile(p, [len(uniform), 1])))
    return tf.function(draw, jit_compile=jit)(logits, tf.constant(uniform), **how).numpy()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "p, how, kept",
    [
        ([0.125, 0.5, 0.25, 0.125], {"top_p": 0.5}, [1]),
        ([0.125, 0.5, 0.25, 0.125], {"top_p": 0.51}, [1, 2]),
        ([0.125, 0.5, 0.25, 0.125], {"top_p": 0.75}, [1, 2]),
        # Of equals the first.
        ([0.125, 0.5, 0.25, 0.125], {"top_p": 0.8}, [0, 1, 2]),
        ([0.125, 0.5, 0.25, 0.125], {"top_p": 0.876}, [0, 1, 2, 3]),
        ([0.25, 0.25, 0.25, 0.25], {"top_p": 0.5}, [0, 1]),
        ([0.25, 0.25, 0.25, 0.25], {"top_p": 0.01}, [0]),
        ([0.25, 0.25, 0.25, 0.25], {"top_k": 3}, [0, 1, 2]),
        ([0.1, 0.4, 0.1, 0.4], {"top_k": 3}, [0, 1, 3]),
        # The nucleus of what top-k leaves: 0.4 of 0.5 is more than 0.75, of 1 it is less.
        ([0.1, 0.4, 0.3, 0.2], {"top_k": 2, "top_p": 0.57}, [1]),
        ([0.1, 0.4, 0.3, 0.2], {"top_p": 0.57}, [1, 2]),
        # And of what the temperature makes: of 1, 16, 9, 4 in 30.
        ([0.1, 0.4, 0.3, 0.2], {"temperature": 0.5, "top_p": 0.53}, [1]),
        ([0.1, 0.4, 0.3, 0.2], {"temperature": 0.5, "top_p": 0.54}, [1, 2]),
        ([0.1, 0.4, 0.3, 0.2], {"temperature": 0.5, "top_k": 3, "top_p": 0.55}, [1]),
    ],
)
def test_the_categories_that_are_kept(p, how, kept, jit):
    found = drawn(p, jit, **how)
    np.testing.assert_array_equal(np.unique(found), kept)
    odds = np.array(p)[kept] ** (1 / how.get("temperature", 1))
    share = np.bincount(found, minlength=4)[kept] / len(GRID)
    np.testing.assert_allclose(share, odds / odds.sum(), atol=1 / len(GRID))
    assert np.all(np.diff(found) >= 0)  # In the order of categories, not of probabilities.


def test_rows_have_nuclei_of_their_own():
    p = np.log([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    uniform = tf.constant([0.99, 0.99, 0.99], tf.float64)
    np.testing.assert_array_equal(draw(tf.constant(p), uniform, top_p=0.65), [0, 3, 2])


@pytest.mark.parametrize("top_k", [None, 7])
def test_a_nucleus_of_all_changes_nothing(top_k):
    logits = tf.random.stateless_normal([500, 30], [1, 2]) * 3
    uniform = tf.random.stateless_uniform([500], [3, 4])
    expected = draw(logits, uniform, 0.8, top_k)
    np.testing.assert_array_equal(draw(logits, uniform, 0.8, top_k, 1.0), expected)


def test_the_nucleus_against_numpy():
    logits = np.random.default_rng(0).normal(size=[300, 40]) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-p, 1)
    sums = np.cumsum(np.take_along_axis(p, order, 1), 1)
    fewest = (sums < 0.9).sum(1) + 1
    assert 1 < fewest.min() < fewest.max() < 40
    ends = [
        draw(tf.constant(logits), tf.fill([300], tf.constant(u, tf.float64)), top_p=0.9)
        for u in (1e-9, 1 - 1e-9)
    ]
    sets = [order[i, :n] for i, n in enumerate(fewest)]
    np.testing.assert_array_equal(ends[0], [kept.min() for kept in sets])
    np.testing.assert_array_equal(ends[1], [kept.max() for kept in sets])


@pytest.mark.parametrize("jit", [False, True])
def test_the_last_place_stays_in_the_nucleus(jit):
    """In float32, where sums over 5,000 categories round."""
    logits = tf.random.stateless_normal([64, 5000], [5, 6])
    uniform = tf.fill([64], tf.constant(1 - 2.0**-24))
    found = tf.function(draw, jit_compile=jit)(logits, uniform, top_p=0.2).numpy()
    ordered = np.sort(logits.numpy(), 1)[:, ::-1]
    p = np.exp(ordered.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    fewest = (np.cumsum(p, 1) < 0.2).sum(1) + 1
    lowest = np.take_along_axis(ordered, fewest[:, np.newaxis], 1)[:, 0]  # One more, for rounding.
    assert np.all(np.take_along_axis(logits.numpy(), found[:, np.newaxis], 1)[:, 0] >= lowest)


def test_draws_of_the_nucleus_have_its_distribution():
    p = np.array([0.05, 0.3, 0.05, 0.35, 0.15, 0.1])
    uniform = np.random.default_rng(0).random(5000)
    counts = np.bincount(drawn(p, uniform=uniform, top_p=0.75), minlength=6)
    kept = [1, 3, 4]
    assert counts.sum() == counts[kept].sum() == 5000
    assert scipy.stats.chisquare(counts[kept], 5000 * p[kept] / p[kept].sum()).pvalue > 0.01


def test_the_penalty_by_hand():
    logits = tf.constant([[2.0, -2.0, 3.0, -3.0, 0.0]], tf.float64)
    seen = tf.constant([[True, True, False, False, True]])
    np.testing.assert_allclose(penalise(logits, seen, 1.25), [[1.6, -2.5, 3.0, -3.0, 0.0]])
    np.testing.assert_array_equal(penalise(logits, seen, 1.0), logits)
