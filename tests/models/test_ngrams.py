"""The likelihood of n-gram models: by hand, by dictionaries, and of texts whose likelihood is known."""

import collections
import math
import time
from typing import ClassVar

import numpy as np
import pytest

from input_pipeline.batches import Feature
from models.ngrams import NGrams, ngram_baseline

RANDOM = np.random.default_rng(0)


def by_dictionaries(train, held_out, vocabulary, order):
    """As the formula is written, a token at a time."""
    followers = collections.defaultdict(collections.Counter)
    for n in range(order):
        for i in range(n, len(train)):
            followers[tuple(train[i - n : i])][train[i]] += 1

    def probability(w, h):
        if h is None:
            return 1 / vocabulary
        shorter = probability(w, h[1:] if h else None)
        counts = followers[h]
        total, different = sum(counts.values()), len(counts)
        return (counts[w] + different * shorter) / (total + different) if total else shorter

    nats = [
        -math.log(probability(held_out[i], tuple(held_out[max(0, i - order + 1) : i])))
        for i in range(1, len(held_out))
    ]
    return sum(nats) / len(nats)


def test_by_hand():
    """After "aab": p(b) = (1 + 2/2) / (3 + 2) = 0.4, p(b | a) = (1 + 2 · 0.4) / (2 + 2) = 0.45."""
    train, held_out = np.array([0, 0, 1], np.uint8), np.array([0, 1])
    assert ngram_baseline(train, held_out, 2, order=1) == pytest.approx(-math.log(0.4))
    assert ngram_baseline(train, held_out, 2, order=2) == pytest.approx(-math.log(0.45))
    # Nothing follows b, and with one token more nothing is as long.
    assert ngram_baseline(train, held_out[[1, 0]], 2, order=9) == pytest.approx(-math.log(0.6))


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("vocabulary, length", [(3, 200), (50, 300), (4, 3)])
def test_as_by_dictionaries(vocabulary, length, order):
    """Also of tokens that the training text lacks, and of one shorter than the order."""
    train = (vocabulary * RANDOM.random(length) ** 2).astype(np.uint8)
    held_out = RANDOM.integers(0, vocabulary, 100)
    held_out[20:60] = np.resize(train[-40:], 40)
    expected = by_dictionaries(train.tolist(), held_out.tolist(), vocabulary, order)
    assert ngram_baseline(train, held_out, vocabulary, order) == pytest.approx(expected, rel=1e-12)


def test_probabilities_sum_to_one():
    train = RANDOM.integers(0, 6, 40)
    for context in range(7):
        each = [ngram_baseline(train, np.array([context, w]), 7, 2) for w in range(7)]
        assert np.exp(-np.array(each)).sum() == pytest.approx(1, abs=1e-12)


def test_a_text_that_its_context_decides_is_learnt_by_enough_context():
    """Each token is the sum of the two before it, modulo 10: 60 tokens long, then again."""
    tokens = [1, 1]
    while len(tokens) < 60_000:
        tokens.append((tokens[-1] + tokens[-2]) % 10)
    train, held_out = np.array(tokens[:50_000]), np.array(tokens[50_000:])
    assert ngram_baseline(train, held_out, 10, 3) < 0.03
    assert ngram_baseline(train, held_out, 10, 1) > 2


def test_random_tokens_are_uniform():
    train, held_out = RANDOM.integers(0, 20, (2, 50_000))
    assert ngram_baseline(train, held_out, 20, 1) == pytest.approx(math.log(20), abs=1e-3)


def test_a_million_tokens_take_seconds():
    train = (60 * RANDOM.random(1_000_000) ** 3).astype(np.uint8)
    start = time.process_time()
    ngram_baseline(train, train[:100_000], 60, 5)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0], [0, 1], 2, 0), "order is 0"),
        (([], [0, 1], 2, 1), "there are 0 tokens to count and 2 to predict"),
        (([0], [0], 2, 1), "there are 1 tokens to count and 1 to predict"),
        (([0, 2], [0, 1], 2, 1), "tokens go from 0 to 2: they must be from 0 to 1"),
        (([0, 1], [0, -1], 2, 1), "tokens go from -1 to 0"),
    ],
)
def test_what_cannot_be_counted(arguments, message):
    train, held_out, *rest = arguments
    with pytest.raises(ValueError, match=message):
        ngram_baseline(np.array(train, int), np.array(held_out, int), *rest)


class Text:
    """Tokens as a source has them."""

    element_spec: ClassVar = {"tokens": Feature((3,), "int32", 3)}

    def __init__(self, *tokens, characters=None):
        self.tokens, self.characters = np.array(tokens), characters


def test_the_baseline_of_an_experiment():
    train, held_out = Text(0, 1, 0, 2, 0, 1), Text(0, 1, 1)
    nats = ngram_baseline(train.tokens, held_out.tokens, 3, 2)
    assert NGrams(order=2)(train, held_out) == {"loss": nats, "perplexity": np.exp(nats)}
    # Token 1 is of three characters, and a target twice; token 0 is context only.
    told = Text(0, 1, 1, characters=np.array([1, 3, 7], np.int32))
    per_character = {"nats_per_character": nats / 3, "bits_per_character": nats / 3 / math.log(2)}
    assert NGrams(order=2)(train, told) == pytest.approx(
        {"loss": nats, "perplexity": np.exp(nats)} | per_character, rel=1e-12
    )
    with pytest.raises(ValueError, match="counts tokens, which these data have not"):
        NGrams()(train, object())
    with pytest.raises(ValueError, match="order is 0"):
        NGrams(order=0)
    with pytest.raises(ValueError, match="most is 1: it must be at least 2"):
        NGrams(most=1)


def test_of_long_texts_the_tokens_beside_the_cut_count():
    """The last of the training and the first held-out ones, and it says so; what is not cut stays as it is."""
    train, held_out = RANDOM.integers(0, 3, 900), RANDOM.integers(0, 3, 500)
    characters = np.array([1, 3, 7], np.int32)
    source, validation = Text(*train), Text(*held_out, characters=characters)
    for most, cut in (
        (900, ""),
        (899, " of the last 899 tokens"),
        (400, " of the last 400 tokens on the first 400"),
    ):
        baseline = NGrams(order=3, most=most)
        assert str(baseline) == "NGrams(order=3)"
        found = baseline(source, validation)
        nats = ngram_baseline(train[-most:], held_out[:most], 3, 3)
        assert found["loss"] == nats
        per_character = nats / characters[held_out[1:most]].mean()
        assert found["nats_per_character"] == pytest.approx(per_character, rel=1e-12)
        assert str(baseline) == "NGrams(order=3)" + cut
