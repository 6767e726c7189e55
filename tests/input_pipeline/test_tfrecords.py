"""TFRecord shards, written by TensorFlow, read by number; what is damaged is named with its shard and record."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline.batches import Batches, DataError, Slice
from input_pipeline.tfrecords import TFRecords

PICTURES = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
LABELS = [3, 0, 2, 2, 1, 0, 3]
SHARDS = {"train-1": [3, 4], "train-0": [0, 1, 2], "train-2": [5, 6]}


def example(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    named = {name.replace("__", "/"): feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.fixture
def shards(tmp_path):
    for name, numbers in SHARDS.items():
        records = [
            example(image__encoded=png(PICTURES[i]), bytes=PICTURES[i].tobytes(), label=LABELS[i])
            for i in numbers
        ]
        write(tmp_path / name, records)
    return tmp_path


def read(source, *ids):
    return {k: v.numpy() for k, v in source.read(tf.constant(ids, tf.int64)).items()}


@pytest.mark.parametrize("form", [{}, {"image": "bytes", "shape": (5, 4, 3)}], ids=["png", "bytes"])
def test_records_are_numbered_through_the_shards(form, shards):
    source = TFRecords(f"{shards}/train-*", label="label", classes=4, **form)
    assert len(source) == 7
    assert source.element_spec["image"].shape == (5, 4, 3)
    assert source.element_spec["label"].cardinality == 4
    for _ in range(2):
        found = read(source, 6, 0, 3, 2, 0)
        np.testing.assert_array_equal(found["image"], PICTURES[[6, 0, 3, 2, 0]] / np.float32(255))
        np.testing.assert_array_equal(found["label"], [3, 3, 2, 2, 3])
    batch = next(iter(Batches(source, global_batch=4).training(Slice())))
    assert batch["image"].shape == (1, 4, 5, 4, 3) and batch["label"].shape == (1, 4)


def test_pictures_of_records_are_resized_and_converted(shards):
    source = TFRecords(f"{shards}/train-*", size=(2, 3), channels=1)
    assert read(source, 1)["image"].shape == (1, 2, 3, 1)


def test_a_bad_record_is_skipped_with_its_label(shards):
    flip(shards / "train-1", 40)
    source = TFRecords(f"{shards}/train-*", label="label", classes=4, on_bad_record="skip")
    found = read(source, 2, 3, 4)
    np.testing.assert_array_equal(found["image"], PICTURES[[2, 4, 4]] / np.float32(255))
    np.testing.assert_array_equal(found["label"], [2, 1, 1])


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: os.truncate(f / "train-2", (f / "train-2").stat().st_size - 1),
            "train-2 was cut off within record 1",
        ),
        (lambda f: os.truncate(f / "train-2", 20), "train-2 was cut off within record 0"),
        (lambda f: os.truncate(f / "train-1", 5), "train-1 was cut off within record 0"),
        (
            lambda f: flip(f / "train-0", 3),
            "train-0 is no TFRecord file, or was altered at record 0",
        ),
        (
            lambda f: flip(f / "train-0", 9),
            "train-0 is no TFRecord file, or was altered at record 0",
        ),
        (lambda f: (f / "train-3").touch(), r"train-3 cannot be read \(it is empty\)"),
        (lambda f: (f / "train-3").write_bytes(b"\x1f\x8b\x08"), "train-3 is compressed"),
        (lambda f: (f / "train-3").write_text("no records here"), "train-3 is no TFRecord file"),
        (lambda f: [p.unlink() for p in f.iterdir()], r"train-\* names no records"),
        # The first picture is read at once.
        (lambda f: flip(f / "train-0", 40), r"record 0 of .*train-0 cannot be read \(its checksum"),
    ],
)
def test_a_damaged_shard_is_named_when_it_is_opened(damage, message, shards):
    damage(shards)
    with pytest.raises(DataError, match=message):
        TFRecords(f"{shards}/train-*")


@pytest.mark.parametrize("arguments", [{}, {"image": "bytes", "shape": (5, 4, 3)}])
def test_a_damaged_record_is_named_when_it_is_read(arguments, shards):
    """Also where the training meets it."""
    truth = (shards / "train-1").stat().st_size
    flip(shards / "train-1", truth - 20)
    source = TFRecords(f"{shards}/train-*", **arguments)
    read(source, 0, 3)
    with pytest.raises(tf.errors.OpError) as error:
        list(Batches(source, global_batch=7).training(Slice()).take(1))
    assert f"DataError: record 1 of {shards}/train-1 cannot be read (its checksum" in str(
        error.value
    )


def test_a_damaged_record_is_named_by_its_label_too(shards):
    """Of pictures that are bytes labels are read beside them, and may come to it first."""
    flip(shards / "train-1", (shards / "train-1").stat().st_size - 20)
    source = TFRecords(
        f"{shards}/train-*", image="bytes", shape=(5, 4, 3), label="label", classes=4
    )
    labels = tf.function(lambda ids: source.read(ids)["label"])
    np.testing.assert_array_equal(labels(tf.constant([0, 3], tf.int64)), [LABELS[0], LABELS[3]])
    with pytest.raises(tf.errors.OpError, match=r"DataError: record 1 of .*train-1 cannot be read"):
        labels(tf.constant([0, 4], tf.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image": "picture"},
            r"record 0 of .*train-0 has 0 values of bytes in picture, not one: name one of its features "
            r"\(bytes, image/encoded, label\)",
        ),
        (
            {"label": "image/encoded", "classes": 4},
            r"record 0 of .* has bytes in image/encoded, not int64: mend it, or name another of its features \(bytes, ",
        ),
        (
            {"label": "label", "classes": 3},
            "record 0 of .*train-0 has the label 3, and TFRecords.classes is 3",
        ),
        ({"image": "bytes"}, r"record 0 of .* cannot be read \(it is no picture"),
        ({"image": "bytes", "shape": (5, 4, 1)}, r"has 60 bytes in bytes, and \[5, 4, 1\] are 20"),
    ],
)
def test_records_without_what_is_asked_for_are_named(arguments, message, shards):
    with pytest.raises((DataError, tf.errors.OpError), match=message):
        read(TFRecords(f"{shards}/train-*", **arguments), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "label"}, "TFRecords.label is 'label' and classes None: set both"),
        ({"shape": (28, 28)}, r"TFRecords.shape is \(28, 28\)"),
        ({"image": "bytes", "shape": (5, 4, 3), "size": 2}, "TFRecords.shape is of bytes"),
        ({"channels": 2}, "TFRecords.channels is 2"),
    ],
)
def test_arguments_are_checked(arguments, message, shards):
    with pytest.raises(ValueError, match=message):
        TFRecords(f"{shards}/train-*", **arguments)


def test_records_that_are_no_examples(tmp_path):
    path = write(tmp_path / "a", [b"\xff\xff", b"text"])
    with pytest.raises(
        DataError, match=r"record 0 of .* cannot be read \(it is no tf\.train\.Example\)"
    ):
        TFRecords(str(path))
