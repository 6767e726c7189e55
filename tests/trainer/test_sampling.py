"""Samples: each depends on the weights, the seed and its number alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from input_pipeline.corpus import Characters, Corpus
from input_pipeline.text import TextWindows
from models.decoding import Decoding
from models.language_model import LanguageModel
from models.lstm_network import LSTMNetwork
from models.transformer_network import TransformerNetwork
from tests.trainer.objectives import ONE, TWO, Regression, experiment, points, quiet
from trainer.exits import UsageError
from trainer.heat_maps import heat_maps


def regression():
    return experiment(Regression, points(21), steps=12, seed=5)


def test_sample_i_depends_on_the_seed_and_i_alone():
    trainer = quiet(regression(), ONE)
    trainer.train()
    nine = trainer.sample(9)
    assert nine.shape == (9, 4)
    assert len(np.unique(nine)) == 36
    np.testing.assert_array_equal(trainer.sample(5), nine[:5])
    np.testing.assert_array_equal(trainer.sample(9, seed=5), nine)
    assert not np.isin(trainer.sample(9, seed=6), nine).any()
    # The network's weights, in NumPy, on the noise that came with the sample.
    weights = trainer.snapshot().arrays
    expected = nine[:, :3] @ weights["average/kernel"] + weights["average/bias"]
    np.testing.assert_allclose(nine[:, 3:], expected, rtol=1e-14)


def test_many_samples_are_drawn_in_parts(monkeypatch):
    trainer = quiet(regression(), TWO)
    whole = trainer.sample(11)
    monkeypatch.setattr("trainer.sampling.CHUNK", 4)
    np.testing.assert_array_equal(trainer.sample(11), whole)
    np.testing.assert_array_equal(trainer.sample(4), whole[:4])


class Classes(Regression):
    """Samples of three classes in turn, which begin with theirs."""

    classes = 3

    def sample(self, noise):
        label = tf.cast(noise.index % self.classes, noise.dtype)[:, tf.newaxis]
        return tf.concat([label, super().sample(noise)], 1)


def test_one_class_is_drawn_of_those_that_take_turns():
    trainer = quiet(experiment(Classes, points(21), steps=1, seed=5), ONE)
    every = trainer.sample(12)
    assert list(every[:, 0]) == 4 * [0, 1, 2]
    for label in range(3):
        one = trainer.sample(4, label=label)
        np.testing.assert_allclose(one, every[label::3], rtol=1e-14)
    with pytest.raises(UsageError, match="--class=3: the model has classes 0 to 2"):
        trainer.sample(4, label=3)
    with pytest.raises(
        UsageError, match="Regression draws no class that one could choose: leave --class=0 out"
    ):
        quiet(regression(), ONE).sample(4, label=0)


# ---------------------------------------------------------------------- texts


LETTERS = "abcdefgh \n"


def writer(hardware=ONE, network=None, window=8, **decoding):
    """A language model that was not trained."""
    tokenizer = Characters(LETTERS)
    source = TextWindows(Corpus({"train": tokenizer.encode(LETTERS * 9)}, tokenizer), window=window)
    network = network or functools.partial(LSTMNetwork, embedding=4, widths=(6,))
    decoding = Decoding(**{"length": 37} | decoding)
    objective = functools.partial(LanguageModel, network=network, decoding=decoding)
    return quiet(experiment(objective, source, steps=1, seed=5, global_batch=4), hardware)


def test_charts_are_written_beside_the_texts(tmp_path):
    """Of the first held-out window, its last tokens below, in the training's samples and in TensorBoard."""
    tokenizer = Characters(LETTERS)
    corpus = Corpus(
        {"train": tokenizer.encode(LETTERS), "held": tokenizer.encode("bad\ncab")}, tokenizer
    )
    network = functools.partial(LSTMNetwork, embedding=4, widths=(6,))
    objective = functools.partial(
        LanguageModel, network=network, decoding=Decoding(length=2), gates=3
    )
    fields = {"steps": 2, "samples": 1, "sample_every": 1, "global_batch": 1}
    held = TextWindows(corpus, "held", window=6)
    source = TextWindows(corpus, window=6)
    trainer = quiet(experiment(objective, source, validation=held, **fields), workdir=tmp_path)
    trainer.train()
    (name, picture), *others = trainer._sampling.charts().items()
    assert (name, others) == ("lstm_0", [])
    batch = {"tokens": held.read(np.array([0]))["tokens"]}
    panels = trainer.objective.charts(batch)[1]["lstm_0"]
    expected = heat_maps(
        {title: panel.numpy() for title, panel in panels.items()}, ["\n", "c", "a"]
    )
    np.testing.assert_array_equal(picture, expected)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"step-0000000{step}{ending}" for step in (1, 2) for ending in ("-lstm_0.png", ".txt")
    ] + ["training-lstm_0.gif"]
    with PIL.Image.open(tmp_path / "samples/step-00000002-lstm_0.png") as image:
        np.testing.assert_array_equal(image, picture)
    (events,) = (tmp_path / "summaries").iterdir()
    assert b"lstm_0" in events.read_bytes()


def test_texts_begin_with_their_prompt():
    trainer = writer()
    tokens = tuple(trainer.batches.source.encode("head").tolist())
    texts = trainer.sample(3, prompt="head")
    assert [len(text) for text in texts] == [41, 41, 41]
    assert all(text.startswith("head") for text in texts)
    assert [text[4:] for text in texts] == writer(prompt=tokens).sample(3)
    assert len({*texts, *trainer.sample(3, seed=6, prompt="head")}) == 6
    assert [len(text) for text in trainer.sample(3)] == [37, 37, 37]  # Its own prompt is not shown.


def test_texts_are_the_same_on_replicas_and_in_parts(monkeypatch):
    expected = writer().sample(7, prompt="a")
    monkeypatch.setattr("trainer.sampling.CHUNK", 2)
    assert writer(TWO).sample(7, prompt="a") == expected


@pytest.mark.parametrize("how", [{}, {"top_p": 0.7, "temperature": 0.8}, {"end": 3}])
@pytest.mark.parametrize("prompt", [None, "bad cafe"])
def test_a_text_that_grows_is_the_first_sample(how, prompt):
    trainer = writer(**how)
    assert trainer.streams
    texts = list(trainer.stream(seed=2, prompt=prompt))
    assert texts[-1] == trainer.sample(1, 2, prompt)[0]
    if not how:
        assert [len(text) - len(prompt or "") for text in texts] == [16, 32, 37]
    for one, other in itertools.pairwise(texts):
        assert other.startswith(one)


@pytest.mark.parametrize("xla", ["on", "off"])
def test_longer_texts_begin_with_the_shorter_ones(xla):
    """Rows 0 to 3, as grown text too."""
    hardware = dataclasses.replace(ONE, xla=xla)
    short, long = (writer(hardware, length=length) for length in (20, 45))
    texts = long.sample(4, prompt="bad")
    assert short.sample(4, prompt="bad") == [text[:23] for text in texts]
    assert list(short.stream(seed=5, prompt="bad"))[-1] == texts[0][:23]
    assert len(set(texts)) == 4


def test_a_text_ends_before_its_end():
    """Which is drawn sooner or later, and not shown."""
    whole, ended = writer(length=60).sample(9, prompt="a\nb"), writer(length=60, end=0)
    texts = ended.sample(9, prompt="a\nb")
    for text, longer in zip(texts, whole, strict=True):
        assert text == longer[:3] + longer[3:].partition("\n")[0]
    assert len({len(text) for text in texts}) > 3


def test_texts_go_on_beyond_the_context():
    transformer = functools.partial(TransformerNetwork, layers=1, heads=2, width=8, context=40)
    trainer = writer(network=transformer, window=40)
    assert [len(text) for text in trainer.sample(2)] == [37, 37]
    texts = trainer.sample(2, prompt="head feed")
    assert [len(text) for text in texts] == [46, 46]
    assert list(trainer.stream(seed=5, prompt="head feed"))[-1] == texts[0]
    assert len(trainer.sample(1, prompt="b" * 40)[0]) == 40 + 37
    said = "the prompt has 41 tokens, and the network's context is 40: give a prompt of 40 or less"
    for draw in (trainer.sample, lambda _, prompt: list(trainer.stream(5, prompt))):
        with pytest.raises(UsageError, match=said):
            draw(1, prompt="b" * 41)


def test_xla_compiles_the_drawing_once():
    """For all of its parts, and draws the same."""
    compiled = writer(dataclasses.replace(ONE, xla="on"))
    with mock.patch("trainer.sampling.CHUNK", 4):
        texts = compiled.sample(8, prompt="a")
    assert texts == writer().sample(8, prompt="a")
    draw = compiled._sampling._draw
    assert draw.function_spec.jit_compile and draw.experimental_get_tracing_count() == 1


def test_searched_texts_do_not_grow():
    assert not writer(beams=3).streams
    texts = writer(beams=3, length=5).sample(4, prompt="fed")
    assert len(set(texts)) == 3 and texts[3] == texts[0]


def test_prompts_that_do_not_fit():
    trainer = writer()
    with pytest.raises(UsageError, match="the prompt cannot be encoded: the character 'z' at pos"):
        trainer.sample(1, prompt="baz")
    with pytest.raises(UsageError, match="the prompt '' has no tokens: give more, or leave it out"):
        trainer.sample(1, prompt="")
    with pytest.raises(UsageError, match="Regression goes on from no prompt: leave it out"):
        quiet(regression(), ONE).sample(1, prompt="baz")
    assert not quiet(regression(), ONE).streams
