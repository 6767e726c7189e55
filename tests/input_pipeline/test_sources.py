"""The sources in memory, and their parts to train on and to hold out."""

import copy
import functools
import itertools
import pickle
from pydoc_data.topics import topics

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Feature, Slice
from input_pipeline.digits import Digits
from input_pipeline.split import Split
from input_pipeline.text import TextWindows, pydoc_topics


def ids(*numbers):
    return tf.constant(numbers, tf.int64)


def check_spec(source):
    """What is read has the shapes and dtypes of the element spec, within the cardinality; also traced."""
    numbers = ids(0, len(source) - 1, 0)
    read = source.read(numbers)
    assert read.keys() == source.element_spec.keys()
    for name, feature in source.element_spec.items():
        assert read[name].shape == (3, *feature.shape)
        assert read[name].dtype == feature.dtype
        if feature.cardinality:
            assert np.min(read[name]) >= 0 and np.max(read[name]) < feature.cardinality
    dataset = tf.data.Dataset.from_tensors(numbers).map(source.read)
    for name, value in next(iter(dataset)).items():
        np.testing.assert_array_equal(value, read[name])


def test_digits_are_those_of_scikit_learn():
    digits, original = Digits(), sklearn.datasets.load_digits()
    check_spec(digits)
    assert len(digits) == 1797
    assert digits.element_spec["label"].cardinality == 10
    everything = digits.read(tf.range(1797, dtype=tf.int64))
    np.testing.assert_array_equal(everything["image"][..., 0] * 16, original.images)
    np.testing.assert_array_equal(everything["label"], original.target)


def test_digits_are_decoded_to_bytes():
    samples = np.zeros([2, 8, 8, 1], np.float32)
    samples[0, 0, :5, 0] = [0.5, 1, 2, -1, 1 / 16]
    pictures = Digits().decode(tf.constant(samples))
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(pictures[0, 0, :5, 0], [128, 255, 255, 0, 16])


def test_windows_of_a_short_text():
    source = TextWindows("abcabd\nxyz", window=3, stride=2)
    check_spec(source)
    assert source.vocabulary == "\nabcdxyz"
    assert source.element_spec == {"tokens": Feature((4,), "int32", 8)}
    assert len(source) == 4  # The last begins at 6: "\nxyz".
    tokens = source.read(ids(0, 1, 3))["tokens"]
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 1], [3, 1, 2, 4], [0, 5, 6, 7]])
    assert source.decode(tokens) == ["abca", "cabd", "\nxyz"]
    assert source.decode(np.array([[7, 0]])) == ["z\n"]


def test_by_default_each_character_but_the_first_is_a_target_once():
    source = TextWindows("".join(map(chr, range(65, 90))), window=8)
    targets = source.read(tf.range(len(source), dtype=tf.int64))["tokens"][:, 1:]
    np.testing.assert_array_equal(np.ravel(targets), np.arange(1, 25))


def test_encoding_is_undone_by_decoding():
    source = TextWindows("naïve – 𝔘nicode\ud800!", window=2)
    text = "ücode"[1:] + "𝔘 –ï\ud800"
    tokens = source.encode(text)
    assert tokens.dtype == np.int32 and tokens.shape == (len(text),)
    assert source.decode(tokens[np.newaxis]) == [text]
    assert source.encode("").shape == (0,)


@pytest.mark.parametrize("character", ["A", "\x00", "\U0001f600"])
def test_an_unknown_character_is_named(character):
    with pytest.raises(DataError, match="at position 2 is not among the 3") as error:
        TextWindows("abcabc", window=2).encode(f"ab{character}c")
    assert repr(character) in str(error.value)


def test_a_text_shorter_than_a_window():
    assert len(TextWindows("abcd", window=3)) == 1
    with pytest.raises(DataError, match="has 3 characters, but one window of 3 needs 4"):
        TextWindows("abc", window=3)
    with pytest.raises(ValueError, match="stride 0"):
        TextWindows("abcd", window=2, stride=0)


def test_pydoc_topics():
    source = pydoc_topics(window=100)
    check_spec(source)
    text = "\n".join(topics[name] for name in sorted(topics))
    assert len(text) > 400_000
    assert source.vocabulary == "".join(sorted(set(text)))
    assert len(source) == (len(text) - 1) // 100
    assert source.decode(source.read(ids(7))["tokens"]) == [text[700:801]]


def shares_a_character(one, other, *, window, stride):
    return abs(one - other) * stride <= window


@pytest.mark.parametrize("window, stride", [(4, 1), (4, 2), (4, 3), (4, 4), (4, 5), (4, 9)])
def test_overlap_is_the_number_of_examples_that_share_characters(window, stride):
    source = TextWindows("abcdefghij" * 6, window, stride)
    after = range(1, len(source))
    sharing = [i for i in after if shares_a_character(0, i, window=window, stride=stride)]
    assert source.overlap == len(sharing)


class Numbers:
    """Example i is the number i."""

    def __init__(self, length, overlap=0):
        self.length, self.overlap = length, overlap
        self.element_spec = {"number": Feature((), "int64")}

    def __len__(self):
        return self.length

    def read(self, ids):
        tf.debugging.assert_less(ids, tf.constant(self.length, tf.int64))
        return {"number": ids}

    def decode(self, samples):
        return [str(sample) for sample in samples]


def numbers_of(source):
    return source.read(tf.range(len(source), dtype=tf.int64))["number"].numpy().tolist()


@pytest.mark.parametrize("by", ["shuffle", "tail"])
@pytest.mark.parametrize("length, share, held_out", [(100, 0.1, 10), (7, 0.5, 4), (50, 0.001, 1)])
def test_the_parts_are_disjoint_and_complete(by, length, share, held_out):
    source = Numbers(length)
    train, validation = (Split(source, part, share, by) for part in ["train", "validation"])
    assert len(validation) == held_out
    assert sorted(numbers_of(train) + numbers_of(validation)) == list(range(length))


def test_a_tail_is_the_end_in_order():
    assert numbers_of(Split(Numbers(10), "train", 0.3, "tail")) == list(range(7))
    assert numbers_of(Split(Numbers(10), "validation", 0.3, "tail")) == [7, 8, 9]


def test_a_shuffled_split_depends_on_its_seed_and_is_spread():
    held_out = [
        numbers_of(Split(Numbers(1000), "validation", 0.2, seed=seed)) for seed in [0, 0, 1]
    ]
    assert held_out[0] == held_out[1]
    assert 20 <= len(set(held_out[0]) & set(held_out[2])) <= 60  # 40 by chance, ± 5.
    assert np.mean(held_out[0]) == pytest.approx(499.5, abs=4 * 289 / np.sqrt(200))


@pytest.mark.parametrize("window, stride", [(4, 1), (4, 3), (4, 4), (4, 5)])
def test_no_held_out_character_is_trained_on(window, stride):
    text = "".join(map(chr, range(1000, 1200)))
    source = TextWindows(text, window, stride)
    parts = [Split(source, part, by="tail") for part in ["train", "validation"]]
    train, validation = (
        np.unique(part.read(tf.range(len(part), dtype=tf.int64))["tokens"]) for part in parts
    )
    assert train.max() < validation.min()
    assert validation.min() - train.max() <= stride  # No more is given up than must be.
    assert len(source) - len(parts[0]) - len(parts[1]) == source.overlap


def test_a_shuffled_split_of_overlapping_windows_is_an_error():
    with pytest.raises(ValueError, match='by="tail"'):
        Split(TextWindows("abcdefgh", window=2), by="shuffle")
    Split(TextWindows("abcdefgh" * 3, window=2, stride=3), by="shuffle")


def test_wrong_arguments_of_a_split():
    with pytest.raises(ValueError, match="part is 'test'"):
        Split(Numbers(10), "test")
    with pytest.raises(ValueError, match="by is 'head'"):
        Split(Numbers(10), by="head")
    for share in [0, 1, 1.5, -1]:
        with pytest.raises(ValueError, match="share"):
            Split(Numbers(10), share=share)
    with pytest.raises(DataError, match="none for training"):
        Split(Numbers(1))
    with pytest.raises(DataError, match="6 in the gap"):
        Split(Numbers(10, overlap=6), share=0.4, by="tail")


def test_a_split_has_what_its_source_has():
    source = TextWindows("abcdefgh" * 3, window=2)
    split = Split(source, by="tail")
    assert split.element_spec is source.element_spec
    assert split.vocabulary == "abcdefgh"
    assert split.overlap == 1
    assert split.decode(split.encode("bad")[np.newaxis]) == ["bad"]
    with pytest.raises(AttributeError):
        _ = split.labels
    for twin in [copy.copy(split), pickle.loads(pickle.dumps(split))]:
        assert len(twin) == len(split)
    check_spec(split)


def test_a_split_of_a_split():
    inner = functools.partial(Split, Numbers(100), share=0.2)
    train, test = Split(inner("train"), "train", 0.25), inner("validation")
    validation = Split(inner("train"), "validation", 0.25)
    parts = [numbers_of(part) for part in [train, validation, test]]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(itertools.chain(*parts)) == list(range(100))


def test_splits_in_the_pipeline():
    """Each example of a part once an epoch, and none of the other part."""
    train, validation = (Split(Numbers(50), part) for part in ["train", "validation"])
    batches = Batches(source=train, global_batch=9, validation=validation)
    epoch = [batch["number"].numpy() for batch in batches.training(Slice()).take(5)]
    assert sorted(np.ravel(epoch)) == sorted(numbers_of(train))
    held_out = [batch["number"].numpy() for batch, _ in batches.evaluation(Slice(), batch=5)]
    assert np.ravel(held_out).tolist() == numbers_of(validation)
