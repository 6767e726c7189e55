"""The sources in memory, and their parts to train on and to hold out."""

import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Feature, Slice
from input_pipeline.corpus import Characters, Corpus
from input_pipeline.digits import Digits
from input_pipeline.split import Split
from input_pipeline.text import TextWindows


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


class Numbers:
    """Example i is the number i."""

    def __init__(self, length):
        self.length, self.doubled = length, 2 * length
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
    corpus = Corpus({"train": np.arange(9)}, Characters("abcdefghi"))
    with pytest.raises(ValueError, match="TextWindows reads one part of its corpus: set its part"):
        Split(TextWindows(corpus, window=2))


def test_a_split_has_what_its_source_has():
    source = Numbers(12)
    split = Split(source, by="tail")
    assert split.element_spec is source.element_spec
    assert split.doubled == 24
    assert split.decode([3]) == ["3"]
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
