"""Rows of noise belong to examples: equal to the bit however the examples are dealt out, and random otherwise."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import input_pipeline.noise
from input_pipeline.noise import UPDATES_PER_STEP, Noise

KINDS = ["bits", "uniform", "normal"]


def draw(kind, shape, *, dtype=tf.float32, jit=False, rows=12, first=0, probability=None, **key):
    """A draw from a new stream inside a `tf.function`, where `first` is a tensor as it is in a training step."""
    before = [] if probability is None else [probability]

    @tf.function(jit_compile=jit)
    def drawn(first):
        noise = Noise(3, "stream", rows=rows, first=first, dtype=dtype, **key)
        return getattr(noise, kind)(*before, shape)

    return drawn(tf.constant(first, tf.int64)).numpy()


def philox(key: int, low: int, high: int) -> list[int]:
    """One block of Philox 4x32 with 10 rounds, after Salmon et al. 2011, figure 2 and section 3.3."""
    word = 2**32 - 1
    x = [low & word, low >> 32, high & word, high >> 32]
    k = [key & word, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & word, (a >> 32) ^ x[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    return x


def test_the_reference_has_the_published_answers():
    # Random123's kat_vectors: philox4x32 10.
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**64 - 1
    assert philox(ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("first", [0, 5, 2**33])
def test_bits_are_philox_at_the_block_of_the_example(first):
    bits = draw("bits", [5], rows=3, first=first, step=7, update=2)
    digest = hashlib.blake2b(b"3:stream", digest_size=8).digest()
    key, time = int.from_bytes(digest, "little"), 7 * UPDATES_PER_STEP + 2
    for row in range(3):
        block = (first + row) * 4  # Five numbers are padded to sixteen, four blocks.
        expected = philox(key, block, time) + philox(key, block + 1, time)[:1]
        np.testing.assert_array_equal(bits[row], expected)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_rows_of_a_slice_equal_rows_of_the_whole(dtype, jit):
    shapes = [(), (1,), (3,), (16,), (17,), (4, 5, 3), (8, 8, 1)]

    def draw_all(rows, first):
        @tf.function(jit_compile=jit)
        def drawn(first):
            noise = Noise(3, "stream", rows=rows, first=first, dtype=dtype)
            return [getattr(noise(f"{kind}{s}"), kind)(s) for kind in KINDS for s in shapes]

        return drawn(tf.constant(first, tf.int64))

    whole = draw_all(12, 0)
    kinds = [kind for kind in KINDS for _ in shapes]
    for numbers, kind, shape in zip(whole, kinds, shapes * len(KINDS), strict=True):
        assert numbers.shape == (12, *shape)
        assert numbers.dtype == (tf.uint32 if kind == "bits" else dtype)
    for rows, first in [(6, 6), (1, 7), (5, 2)] + ([] if jit else [(6, 0), (1, 0), (3, 9)]):
        for part, numbers in zip(draw_all(rows, first), whole, strict=True):
            np.testing.assert_array_equal(part, numbers[first : first + rows])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_too_short_for_its_blocks_would_be_caught(monkeypatch, kind):
    """The check above bites: without the padding, slices hold rows of other examples."""
    monkeypatch.setattr(input_pipeline.noise, "ROW_MULTIPLE", 1)
    whole, part = draw(kind, [3]), draw(kind, [3], rows=6, first=6)
    assert not np.array_equal(part, whole[6:])


@pytest.mark.parametrize("shape", [(3,), (17,), (4, 5, 3), (1000,)])
def test_bits_and_uniforms_are_the_same_with_and_without_xla(shape):
    for kind, dtype in [("bits", tf.float32), ("uniform", tf.float32), ("uniform", tf.float64)]:
        plain, compiled = (
            draw(kind, shape, dtype=dtype, jit=jit, first=5) for jit in [False, True]
        )
        np.testing.assert_array_equal(plain, compiled)


def test_normals_with_and_without_xla_differ_by_rounding_only():
    for dtype, tolerance in [(tf.float32, 2e-5), (tf.float64, 1e-12)]:
        plain, compiled = (draw("normal", [4000], dtype=dtype, jit=jit) for jit in [False, True])
        np.testing.assert_allclose(plain, compiled, rtol=tolerance, atol=tolerance)


def test_floats_are_functions_of_the_bits():
    bits = draw("bits", [1000]).astype(np.float64)
    uniform = (np.floor(bits / 512) + 0.5) / 2**23
    np.testing.assert_array_equal(draw("uniform", [1000]), uniform.astype(np.float32))
    np.testing.assert_array_equal(draw("uniform", [1000], dtype=tf.float64), uniform)
    normal = draw("normal", [1000], dtype=tf.float64)
    np.testing.assert_allclose(normal, scipy.stats.norm.ppf(uniform), rtol=1e-11, atol=1e-11)


def test_the_ends_of_the_interval_cannot_come_out(monkeypatch):
    def ends(self, numbers):
        return tf.constant([[0, 2**32 - 1]], tf.uint32)

    monkeypatch.setattr(Noise, "_padded_bits", ends)
    for dtype in [tf.float32, tf.float64]:
        noise = Noise(0, "ends", rows=1, dtype=dtype)
        np.testing.assert_array_equal(noise.uniform([2]), [[2.0**-24, 1 - 2.0**-24]])
        low, high = noise.normal([2]).numpy()[0]
        assert -5.4 < low < -5.2 and 5.2 < high < 5.4


@pytest.mark.parametrize("probability", [0, 2.0**-25, 0.3, 0.5, 0.9, 1 - 2.0**-25, 1])
def test_bernoulli_is_true_where_a_uniform_number_is_below(monkeypatch, probability):
    ends = [0, 511, 512, 2**31, 2**32 - 513, 2**32 - 512, 2**32 - 1]
    edge = max(0, math.ceil(probability * 2**23 - 0.5)) * 512
    ends += [n for n in (edge - 512, edge - 1, edge, edge + 511) if 0 <= n < 2**32]
    below = draw("uniform", [1000], dtype=tf.float64) < probability
    for jit in (False, True):
        drawn = draw("bernoulli", [1000], jit=jit, probability=probability)
        np.testing.assert_array_equal(drawn, below)
    monkeypatch.setattr(Noise, "_padded_bits", lambda *_: tf.constant([ends], tf.uint32))
    noise = Noise(0, "ends", rows=1, dtype=tf.float64)
    np.testing.assert_array_equal(
        noise.bernoulli(probability, [len(ends)]), noise.uniform([len(ends)]) < probability
    )


def test_a_probability_out_of_range_is_refused():
    for probability in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"the probability is {probability}: it must be"):
            Noise(0, "a", rows=1).bernoulli(probability)


def test_distributions():
    """200,000 numbers of fixed keys; the bounds are those of four standard errors and of p = 1 %."""
    n = 200_000
    uniform = draw("uniform", [n // 100], rows=100, dtype=tf.float64).ravel()
    assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / n)
    assert abs(uniform.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 0.01
    for dtype in [tf.float32, tf.float64]:
        normal = draw("normal", [n // 100], rows=100, dtype=dtype, step=1).ravel()
        assert abs(normal.mean()) < 4 / np.sqrt(n)
        assert abs(normal.var() - 1) < 4 * np.sqrt(2 / n)
        assert scipy.stats.kstest(normal.astype(np.float64), "norm").pvalue > 0.01


def test_streams_are_independent():
    """Other seeds, names, steps, updates and examples: no number in common, and no correlation."""
    n = 4096
    streams = {
        "base": Noise(0, "a", rows=1),
        "child": Noise(0, "a", rows=1)("b"),
        "sibling": Noise(0, "a", rows=1)("c"),
        "grandchild": Noise(0, "a", rows=1)("b")("c"),
        "seed": Noise(1, "a", rows=1),
        "negative seed": Noise(-1, "a", rows=1),
        "step": Noise(0, "a", rows=1, step=1),
        "update": Noise(0, "a", rows=1, update=1),
        "example": Noise(0, "a", rows=1, first=1),
    }
    numbers = {name: noise.normal([n]).numpy().ravel() for name, noise in streams.items()}
    for one, other in itertools.combinations(numbers, 2):
        correlation = np.mean(numbers[one] * numbers[other])
        assert abs(correlation) < 4.5 / np.sqrt(n), (one, other)
        assert np.mean(numbers[one] == numbers[other]) < 0.001, (one, other)


def test_the_last_update_of_a_step_is_not_the_first_of_the_next():
    last = draw("bits", [64], step=4, update=UPDATES_PER_STEP - 1)
    assert not np.array_equal(last, draw("bits", [64], step=5, update=0))


def test_step_and_update_may_be_tensors():
    fixed = Noise(0, "a", rows=2, step=9, update=3).bits([4])
    traced = Noise(0, "a", rows=2, step=tf.constant(9, tf.int64), update=tf.constant(3)).bits([4])
    np.testing.assert_array_equal(fixed, traced)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_second_draw_is_an_error_that_names_the_stream(first, second):
    noise = Noise(0, "generator", rows=2)
    getattr(noise("latent"), first)([3])
    with pytest.raises(ValueError, match='"generator/latent" is drawn twice'):
        getattr(noise("latent"), second)([5])
    noise("mask").uniform()
    noise.uniform()


def test_a_second_draw_by_another_path_to_the_same_name_is_an_error():
    noise = Noise(0, "a", rows=1)
    noise("b")("c").uniform()
    with pytest.raises(ValueError, match="a/b/c"):
        noise("b/c").uniform()


def test_an_empty_shape_of_numbers():
    assert Noise(0, "a", rows=3).uniform([0]).shape == (3, 0)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
def test_numbered_streams_are_independent(jit):
    """As numbers of a loop, that is as tensors; 0 is the stream itself."""

    def stream():
        return Noise(3, "numbered", rows=4, first=8)

    @tf.function(jit_compile=jit)
    def draw(number):
        return stream().numbered(number).bits([6])

    drawn = [draw(tf.constant(n, tf.int64)).numpy() for n in range(50)]
    np.testing.assert_array_equal(drawn[0], stream().bits([6]))
    np.testing.assert_array_equal(drawn[7], stream().numbered(7).bits([6]))
    assert len(np.unique(drawn)) == 50 * 4 * 6
    uniform = np.stack([stream().numbered(n).uniform([500]) for n in range(2)]).reshape(2, -1)
    assert abs(np.corrcoef(uniform)[0, 1]) < 5 / np.sqrt(2000)


def test_rows_know_their_number():
    noise = Noise(0, "x", rows=3, first=tf.constant(4, tf.int64))
    assert noise("child").index.dtype == tf.int64
    assert noise("child").index.numpy().tolist() == [4, 5, 6]
