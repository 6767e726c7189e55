"""Texts from a network whose every logit is known: parts of them, what is penalised, how they end, and searches."""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from input_pipeline.noise import Noise
from models.beam_search import search
from models.decoding import OF_DRAWS, Decoding

VOCABULARY, STATES = 5, 97
TABLE = np.random.default_rng(3).normal(size=[STATES, VOCABULARY]) * 1.5
PROMPT = (2, 0)


class Hashed:
    """Logits are a row of a table, whose number depends on all tokens so far. One state has no rows, as a position."""

    name, trainable_variables, carry, context = "hashed", (), {}, None

    def start(self, rows, length):
        return {"number": tf.zeros([rows], tf.int32), "position": tf.constant(0)}

    def __call__(self, tokens, state=None, *, noise=None, training=False):
        number, logits = state["number"], []
        for token in tf.unstack(tokens, axis=1):
            number = (number * 31 + token + 1) % STATES
            logits.append(tf.gather(tf.constant(TABLE), number))
        position = state["position"] + tokens.shape[1]
        return tf.stack(logits, 1), {"number": number, "position": position}


def logits_after(tokens):
    number = 0
    for token in tokens:
        number = (number * 31 + int(token) + 1) % STATES
    return TABLE[number]


def log_probability(continuation, prompt=PROMPT):
    return sum(
        scipy.special.log_softmax(logits_after([*prompt, *continuation[:i]]))[token]
        for i, token in enumerate(continuation)
    )


def noise(rows=6, first=0):
    return Noise(0, "noise", rows=rows, first=first, dtype=tf.float64)


def drawn(rows=6, first=0, jit=False, **how):
    decoding = Decoding(**{"prompt": PROMPT, "length": 9} | how)
    return tf.function(lambda: decoding(Hashed(), noise(rows, first)), jit_compile=jit)().numpy()


EACH = [{}, {"top_p": 0.8}, {"top_k": 3, "top_p": 0.7}, {"repetition_penalty": 1.4}, {"end": 1}]


# ---------------------------------------------------------------------- drawn texts


@pytest.mark.parametrize(
    ("jit", "parts"), [(False, [(2, 4), (1, 3), (3, 0)]), (True, [(2, 4)])], ids=["plain", "xla"]
)
@pytest.mark.parametrize("how", EACH)
def test_a_text_depends_on_its_row_alone(how, jit, parts):
    whole = drawn(jit=jit, **how)
    assert whole.shape == (6, 9) and whole.dtype == np.int32
    assert len(np.unique(whole, axis=0)) > 3
    for rows, first in parts:
        np.testing.assert_array_equal(drawn(rows, first, jit, **how), whole[first : first + rows])


@pytest.mark.parametrize("count", [1, 4, 9, 16])
@pytest.mark.parametrize("how", EACH)
def test_texts_are_the_same_in_parts(how, count):
    decoding = Decoding(prompt=PROMPT, length=9, **how)
    go_on = tf.function(lambda state: decoding.go_on(Hashed(), noise(), state, count))
    state, parts = decoding.begin(Hashed(), noise()), []
    for _ in range(-(-9 // count)):
        part, state = go_on(state)
        assert part.shape == (6, count)
        parts.append(part)
    tokens = np.concatenate(parts, 1)
    np.testing.assert_array_equal(tokens[:, :9], drawn(**how))
    assert not tokens[:, 9:].any()


@pytest.mark.parametrize(
    ("jit", "lengths"), [(False, (1, 9, 33)), (True, (33,))], ids=["plain", "xla"]
)
@pytest.mark.parametrize("how", EACH)
def test_a_longer_text_begins_with_the_shorter_one(how, jit, lengths):
    """All at once, and in parts that end elsewhere."""
    long = drawn(rows=4, length=40, jit=jit, **how)
    for length in lengths:
        np.testing.assert_array_equal(
            drawn(rows=4, length=length, jit=jit, **how), long[:, :length]
        )
    decoding = Decoding(prompt=PROMPT, length=21, **how)
    go_on = tf.function(
        lambda state: decoding.go_on(Hashed(), noise(4), state, 16), jit_compile=jit
    )
    state, parts = decoding.begin(Hashed(), noise(4)), []
    for _ in range(2):
        part, state = go_on(state)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, 1)[:, :21], long[:, :21])


def test_places_and_rows_draw_independently():
    """Of a network whose tokens are uniform whatever was before: of 5 tokens no pair of places or rows agrees too often."""
    decoding = Decoding(prompt=PROMPT, length=60)

    class Uniform(Hashed):
        def __call__(self, tokens, state=None, **_):
            return tf.zeros([*tokens.shape, VOCABULARY], tf.float64), state

    texts = tf.function(lambda: decoding(Uniform(), noise(1000)))().numpy()
    agree = np.array([[np.mean(a == b) for b in texts.T] for a in texts.T])
    assert np.abs(agree - np.eye(60) * 0.8 - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 1000)
    assert np.abs((texts[1:] == texts[:-1]).mean(1) - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 60)


def test_a_prompt_is_read_once_for_all_rows():
    """And only after its last token there are logits for the draws."""
    read = []

    class Watched(Hashed):
        def __call__(self, tokens, state=None, **how):
            read.append(tokens.shape.as_list())
            return super().__call__(tokens, state, **how)

    tf.function(lambda: Decoding(prompt=(2, 0, 1), length=3)(Watched(), noise(6)))()
    tf.function(lambda: search(Watched(), (2, 0, 1), length=3, beams=4, dtype=tf.float64))()
    assert read == [[1, 2], [1, 1], [6, 1], [1, 2], [1, 1], [4, 1]]


def test_what_leaves_the_distribution_leaves_the_bits():
    np.testing.assert_array_equal(drawn(**OF_DRAWS, rows=50), drawn(rows=50))
    np.testing.assert_array_equal(drawn(top_p=1.0, rows=50), drawn(rows=50))
    assert (drawn(top_p=0.9, rows=50) != drawn(rows=50)).any()


@pytest.mark.parametrize("length", [1, 3])
def test_the_order_penalty_temperature_top_k_top_p(length):
    """The last of several tokens, given those before it, has the distribution that NumPy computes so."""
    how = {"repetition_penalty": 1.5, "temperature": 0.8, "top_k": 4, "top_p": 0.85}
    samples = drawn(20_000, length=length, **how)
    starts, counts = np.unique(samples[:, :-1], axis=0, return_counts=True)
    start = starts[np.argmax(counts)]
    logits = logits_after([*PROMPT, *start]).copy()
    for token in {*PROMPT, *start}:
        logits[token] *= 1.5 if logits[token] < 0 else 1 / 1.5
    logits /= 0.8
    logits[np.argsort(-logits)[4:]] = -np.inf
    p = scipy.special.softmax(logits)
    order = np.argsort(-p)
    nucleus = order[: (np.cumsum(p[order]) < 0.85).sum() + 1]
    p = p[nucleus] / p[nucleus].sum()
    last = samples[np.all(samples[:, :-1] == start, axis=1), -1]
    assert len(last) > 1000 and 1 < len(nucleus) < 4
    assert length == 1 or not {*start} <= {*PROMPT}  # So that drawn tokens count too.
    counts = np.bincount(last, minlength=VOCABULARY)
    assert counts[nucleus].sum() == len(last)
    assert scipy.stats.chisquare(counts[nucleus], len(last) * p).pvalue > 0.01


def test_nothing_follows_the_end():
    whole, ended = drawn(rows=200), drawn(rows=200, end=1)
    stops = 0
    for row, cut in zip(whole, ended, strict=True):
        places = np.flatnonzero(row == 1)
        n = places[0] if len(places) else len(row)
        np.testing.assert_array_equal(cut[:n], row[:n])
        assert np.all(cut[n:] == 1)
        stops += n < len(row)
    assert 50 < stops < 200


# ---------------------------------------------------------------------- searches


def found(jit=False, **how):
    how = {"length": 2, "beams": VOCABULARY, "dtype": tf.float64} | how
    how = {"prompt": PROMPT} | how
    return tf.function(lambda: search(Hashed(), **how), jit_compile=jit)().numpy()


def likeliest(length, end=None, length_penalty=0.6, prompt=PROMPT):
    """All continuations, those that end filled up, the one with the highest normalised score first."""
    scores = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=length):
        n = tokens.index(end) + 1 if end in tokens else length
        text = tokens[:n] + (end,) * (length - n)
        scores[text] = log_probability(text[:n], prompt) / ((5 + n) / 6) ** length_penalty
    return np.array(sorted(scores, key=lambda text: -scores[text]))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"end": 1}, {"end": 1, "length_penalty": 0.0}, {"end": 3, "length_penalty": 2.0}]
)
def test_a_search_that_keeps_all_beginnings_finds_all(how, jit):
    """Of two tokens: all first ones go on."""
    np.testing.assert_array_equal(found(jit, **how), likeliest(2, **how)[:VOCABULARY])


@pytest.mark.parametrize("prompt", [(1, 2), (3, 3)])
def test_a_longer_search_against_all_continuations(prompt):
    """Where the likeliest is not the one of the likeliest tokens, which one beam finds."""
    best = likeliest(5, prompt=prompt)[0]
    greedy: list[int] = []
    for _ in range(5):
        greedy.append(int(np.argmax(logits_after([*prompt, *greedy]))))
    np.testing.assert_array_equal(found(length=5, beams=1, prompt=prompt), [greedy])
    np.testing.assert_array_equal(found(length=5, prompt=prompt)[0], best)
    assert log_probability(greedy, prompt) < log_probability(best, prompt) - 0.01


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("beams", [2, 4])
def test_few_beams_against_a_search_in_numpy(beams, end):
    length, penalty = 6, 0.9
    kept = [()]
    for _ in range(length):
        grown = [
            text if end in text else (*text, token) for text in kept for token in range(VOCABULARY)
        ]
        scores = {text: log_probability(text) / ((5 + len(text)) / 6) ** penalty for text in grown}
        kept = sorted(scores, key=lambda text: -scores[text])[:beams]
    expected = [text + (end,) * (length - len(text)) for text in kept]
    tokens = found(length=length, beams=beams, end=end, length_penalty=penalty)
    np.testing.assert_array_equal(tokens, expected)


def test_the_length_penalty_prefers_longer_texts():
    lengths = [
        (found(length=6, end=1, length_penalty=penalty)[0] != 1).sum() for penalty in (0.0, 3.0)
    ]
    assert lengths[0] < lengths[1]


def test_samples_are_the_continuations_in_turn():
    texts = found(length=4, beams=3)
    samples = drawn(rows=5, first=2, length=4, beams=3)
    np.testing.assert_array_equal(samples, texts[[2, 0, 1, 2, 0]])


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "how, message",
    [
        ({"top_p": 0.0}, "top_p is 0.0: it must be None, or from 1e-06 to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: it must be from 1e-06 to"),
        ({"temperature": 1e-38}, "temperature is 1e-38: it must be from 1e-06 to"),
        ({"end": -1}, "end is -1"),
        ({"end": 5}, "end is 5: the tokens go from 0 to 4"),
        ({"beams": 0}, "beams is 0: it must be None or at least 1"),
        ({"beams": 6}, "beams is 6: it must be at most 5"),
        ({"length_penalty": -1.0}, "length_penalty is -1.0"),
        (
            {"beams": 3, "temperature": 0.5},
            "beams is 3 and temperature 0.5: a search draws nothing",
        ),
        ({"beams": 3, "top_k": 2}, r"beams is 3 and top_k 2: .*\(top_k is out at None\)"),
        ({"beams": 3, "top_p": 0.5}, "beams is 3 and top_p 0.5"),
        ({"beams": 3, "repetition_penalty": 1.5}, "beams is 3 and repetition_penalty 1.5"),
    ],
)
def test_wrong_arguments(how, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**how).check(VOCABULARY)
