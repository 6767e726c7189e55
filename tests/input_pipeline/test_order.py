"""Every epoch of the order is a permutation, and each its own."""

import hashlib

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from input_pipeline.order import _keys, shuffled_ids


def epoch(length, number=0, seed=0):
    start = length * number
    return shuffled_ids(tf.range(start, start + length, dtype=tf.int64), length, seed).numpy()


@pytest.mark.parametrize("number", [0, 1, 1000])
@pytest.mark.parametrize("length", [1, 2, 3, 10, 16, 1000])
def test_each_epoch_is_a_permutation(length, number):
    ids = epoch(length, number)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.sort(ids), np.arange(length))


def test_a_length_beyond_32_bits():
    length = 2**40
    ids = shuffled_ids(tf.constant([0, 1, length - 1, length, 2 * length], tf.int64), length, 0)
    assert len(set(ids.numpy().tolist())) == 5
    assert ids.numpy().min() >= 0 and 2**32 < ids.numpy().max() < length


def test_epochs_and_seeds_differ():
    some = [epoch(1000), epoch(1000, 1), epoch(1000, 2), epoch(1000, 0, 1), epoch(1000, 1, 1)]
    some += [epoch(1000, 0, -1), epoch(1000, 0, 2**32), np.arange(1000)]
    for i, one in enumerate(some):
        for other in some[:i]:
            # Two random permutations agree at one place on average, at more than 12 with p < 1e-9.
            assert np.sum(one == other) <= 12


def test_one_position_at_a_time_equals_all_at_once():
    whole = np.concatenate([epoch(10, number, 4) for number in range(5)])
    for position in range(50):
        alone = shuffled_ids(tf.constant([position], tf.int64), 10, 4)
        np.testing.assert_array_equal(alone, whole[position : position + 1])
    mixed = shuffled_ids(tf.constant([33, 2, 17, 2], tf.int64), 10, 4)
    np.testing.assert_array_equal(mixed, whole[[33, 2, 17, 2]])


def test_keys_are_splitmix64_traced_or_not():
    """Against Python's integers; traced, they would differ on uint64 (see `_mix`)."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    # The first numbers of SplitMix64 with seed 0, in the test vectors of xoshiro's authors and of Java.
    assert mix(0) == 0xE220A8397B1DCDAF
    epochs = tf.range(6, dtype=tf.int64)
    for seed in [0, 4, -1, 2**70]:
        digest = hashlib.blake2b(str(seed).encode(), digest_size=24).digest()
        words = np.frombuffer(digest, "<u8").tolist()
        expected = [[mix((word + mix(epoch)) % 2**64) for word in words] for epoch in range(6)]
        traced = tf.function(lambda epochs, seed=seed: _keys(epochs, seed))(epochs)
        for keys in [_keys(epochs, seed), traced]:
            np.testing.assert_array_equal(keys.numpy().view(np.uint64), expected)


def test_traced_equals_eager():
    traced = tf.function(lambda positions: shuffled_ids(positions, 10, 4))(
        tf.range(20, dtype=tf.int64)
    )
    np.testing.assert_array_equal(traced, np.concatenate([epoch(10, 0, 4), epoch(10, 1, 4)]))


def orders(length, epochs, seed=0):
    """Ids `[epochs, length]`."""
    positions = tf.range(length * epochs, dtype=tf.int64)
    return shuffled_ids(positions, length, seed).numpy().reshape(epochs, length)


def test_all_permutations_are_equally_likely():
    """Chi-square over 2,400 epochs of 4 ids."""
    _, counts = np.unique(orders(4, 2400), axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_each_id_is_as_likely_at_each_place():
    table = orders(10, 2000)
    counts = np.stack([np.bincount(column, minlength=10) for column in table.T])
    assert scipy.stats.chi2.sf(np.sum((counts - 200.0) ** 2 / 200), 81) > 1e-3


def test_seeds_alone_shuffle_as_well_as_epochs():
    """The first epochs of seeds 0 to 499: small seeds make random keys too."""
    table = np.stack([epoch(10, seed=seed) for seed in range(500)])
    counts = np.stack([np.bincount(column, minlength=10) for column in table.T])
    assert scipy.stats.chi2.sf(np.sum((counts - 50.0) ** 2 / 50), 81) > 1e-3


@pytest.mark.parametrize("length", [1000, 1797, 60_000])
def test_ids_are_not_ordered_by_place(length):
    """The correlations of place and id, and of one id and another some places on, are those of chance."""
    for ids in orders(length, 10):
        assert abs(np.corrcoef(np.arange(length), ids)[0, 1]) < 4 / np.sqrt(length)
        for places in [1, 2, 4, 16, 256]:
            assert abs(np.corrcoef(ids[places:], ids[:-places])[0, 1]) < 4.5 / np.sqrt(length)
