"""Sets that TensorFlow Datasets has prepared, in both of its formats, read by number as it reads them itself, without a network."""

import json
import os
import pathlib
import shutil
import socket
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import tensorflow_dataset
from input_pipeline.batches import Batches, DataError, MissingLibrary, Slice
from input_pipeline.tensorflow_dataset import TensorFlowDataset

FORMATS = ("tfrecord", "array_record")
SHARDS, VERSION = 3, "1.0.0"
COUNTS = {"train": 20, "test": 5}


FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(5, 4, 3)),
        "depth": tfds.features.Image(shape=(5, 4, 1), dtype=np.uint16),
        "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
        "colour": tfds.features.ClassLabel(num_classes=7),
        "number": tfds.features.Scalar(np.int64),
    }
)


def example(number):
    random = np.random.default_rng(number)
    return {
        "image": random.integers(0, 256, (5, 4, 3), np.uint8),
        "depth": np.zeros((5, 4, 1), np.uint16),
        "label": number % 3,
        "colour": number % 7,
        "number": number,
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder for each format, with the set in it."""
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("prepared")
    for form in FORMATS:
        tfds.dataset_builders.store_as_tfds_dataset(
            name="tiny",
            version=VERSION,
            features=FEATURES,
            split_datasets={
                split: [(at, example(at)) for at in range(count)] for split, count in COUNTS.items()
            },
            data_dir=folder / form,
            file_format=form,
            download_config=tfds.download.DownloadConfig(num_shards=SHARDS),
        )
    return folder


@pytest.fixture(autouse=True)
def _without_network(prepared, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def copy(prepared, tmp_path):
    """A function from a format to a copy of the prepared set: its data_dir, and the folder of its files."""

    def made(form):
        shutil.copytree(prepared / form, tmp_path / form)
        return str(tmp_path / form), tmp_path / form / "tiny" / VERSION

    return made


def read(source, *ids):
    return {k: v.numpy() for k, v in source.read(tf.constant(ids, tf.int64)).items()}


def expected(folder, form, split):
    """Pictures, bytes `[n, 5, 4, 3]`, and examples as TensorFlow Datasets reads them."""
    builder = tfds.builder_from_directory(folder / form / "tiny" / VERSION)
    skip = {"depth": tfds.decode.SkipDecoding()}
    if form == "array_record":
        examples = list(builder.as_data_source(split=split, decoders=skip))
    else:
        examples = list(builder.as_dataset(split=split, decoders=skip).as_numpy_iterator())
    return np.stack([example["image"] for example in examples]), examples


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 20), ("test", 5), ("train[25%:]", 15), ("train[:3]", 3), ("test+train[2:9]", 12)],
)
def test_a_split_is_read_by_number_as_by_tensorflow_datasets(form, split, count, prepared):
    source = TensorFlowDataset("tiny", split, str(prepared / form))
    images, examples = expected(prepared, form, split)
    assert len(source) == len(images) == count
    assert source.classes == ["ant", "bee", "cow"]
    assert source.element_spec["label"].cardinality == 3
    ids = np.random.default_rng(0).integers(0, count, 9)
    found = read(source, *ids)
    np.testing.assert_array_equal(found["image"], images[ids] / np.float32(255))
    np.testing.assert_array_equal(found["label"], [examples[at]["label"] for at in ids])


@pytest.mark.parametrize("form", FORMATS)
def test_training_reads_each_example_once_an_epoch(form, prepared):
    source = TensorFlowDataset("tiny", data_dir=str(prepared / form), label="colour")
    batches = Batches(source, global_batch=5, seed=1)
    steps = list(batches.training(Slice(), step=4).take(4))
    images, examples = expected(prepared, form, "train")
    ids = batches.ids(tf.range(20, 40, dtype=tf.int64)).numpy()
    found = np.concatenate([step["image"][0] for step in steps])
    np.testing.assert_array_equal(found, images[ids] / np.float32(255))
    labels = np.concatenate([step["label"][0] for step in steps])
    np.testing.assert_array_equal(labels, [examples[at]["colour"] for at in ids])
    assert sorted(ids) == list(range(20))


def test_a_set_is_named_by_version_or_folder_too(prepared, monkeypatch):
    folder = prepared / "tfrecord"
    for name, data_dir in {"tiny:1.0.0": str(folder), str(folder / "tiny" / VERSION): None}.items():
        assert len(TensorFlowDataset(name, "test", data_dir)) == 5
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", folder)
    assert len(TensorFlowDataset("tiny")) == 20


def test_pictures_are_resized_and_converted(prepared):
    source = TensorFlowDataset("tiny", data_dir=str(prepared / "tfrecord"), size=2, channels=1)
    assert read(source, 1)["image"].shape == (1, 2, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mnist"},
            r"""mnist is not prepared in .*tfrecord: .*tfds\.load\("mnist", data_dir=".*tfrecord"\)'$""",
        ),
        ({"name": "tiny:2.0.0"}, "tiny:2.0.0 is not prepared in"),
        ({"name": "a b"}, "a b cannot be opened in .*: check TensorFlowDataset.name"),
        (
            {"split": "tets"},
            "tiny has no split tets .*: set TensorFlowDataset.split to one of .*test",
        ),
        ({"split": "train["}, r"tiny has no split train\["),
        ({"split": "train[:0]"}, r"train\[:0\] of tiny has no examples"),
        ({"split": "train[10:5]"}, r"train\[10:5\] of tiny has no examples"),
        ({"split": "train[10:9]"}, r"train\[10:9\] of tiny has no examples"),
        ({"split": "test+train[10:9]"}, r"test\+train\[10:9\] of tiny has no examples"),
        ({"split": "all[:90%]"}, r"tiny has no split all\[:90%\] "),
        ({"image": "picture"}, r"tiny has no picture picture: .* \(depth, image\)"),
        ({"image": "depth"}, r"depth of tiny is uint16: it must be bytes"),
        ({"label": "number"}, r"tiny has no class number: .* \(colour, label\)"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, prepared):
    usual = {"name": "tiny", "data_dir": str(prepared / "tfrecord")}
    with pytest.raises(DataError, match=message) as error:
        TensorFlowDataset(**usual | arguments)
    assert "\n" not in str(error.value)


def test_labels_that_are_not_known(tmp_path):
    """As of a test part that is kept secret: they are named, and may be left out."""
    example = {"image": np.full((5, 4, 3), 7, np.uint8), "label": -1}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="secret",
        version=VERSION,
        features=tfds.features.FeaturesDict({name: FEATURES[name] for name in example}),
        split_datasets={"test": [(0, example)]},
        data_dir=tmp_path,
    )
    usual = {"name": "secret", "split": "test", "data_dir": str(tmp_path)}
    message = (
        r"has the label -1, which is no class: take .*, or read none \(TensorFlowDataset.label\)"
    )
    with pytest.raises((DataError, tf.errors.OpError), match=message):
        read(TensorFlowDataset(**usual), 0)
    unlabelled = TensorFlowDataset(**usual, label="")
    assert list(read(unlabelled, 0)) == ["image"] and unlabelled.classes == []


def test_a_split_without_examples_is_named():
    empty = tfds.core.splits.SplitInfo(name="train", shard_lengths=[], num_bytes=0)
    splits = tfds.core.splits.SplitDict([empty])
    info = types.SimpleNamespace(file_format=types.SimpleNamespace(value="tfrecord"), splits=splits)
    with pytest.raises(DataError, match="train of tiny has no examples: set"):
        tensorflow_dataset._records("tiny", "train", info)


def test_what_is_not_installed_is_named(prepared, monkeypatch):
    for package, form, message in (
        (
            "array_record.python.array_record_module",
            "array_record",
            r'pip install -e "\.\[datasets\]"',
        ),
        ("tensorflow_datasets", "tfrecord", r'pip install -e "\.\[datasets\]"'),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingLibrary, match=message):
            TensorFlowDataset("tiny", data_dir=str(prepared / form))


@pytest.mark.parametrize(
    ("form", "damage", "message"),
    [
        (
            "tfrecord",
            lambda shard: os.truncate(shard, shard.stat().st_size - 1),
            "tfrecord-00001-of-00003 was cut off within record",
        ),
        ("tfrecord", pathlib.Path.unlink, "tfrecord-00001-of-00003 cannot be read"),
        *(
            (
                "array_record",
                damage,
                r"array_record-00001-of-00003 has 0 records, and \d by dataset_info.json: prepare tiny",
            )
            for damage in (
                lambda shard: os.truncate(shard, 1000),
                lambda shard: os.truncate(shard, shard.stat().st_size - 1),
                pathlib.Path.unlink,
            )
        ),
    ],
)
def test_a_damaged_shard_is_named(form, damage, message, copy):
    data_dir, files = copy(form)
    damage(files / f"tiny-train.{form}-00001-of-00003")
    with pytest.raises(DataError, match=message):
        TensorFlowDataset("tiny", data_dir=data_dir)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_record_is_named_or_skipped(form, copy):
    data_dir, files = copy(form)
    shard = files / f"tiny-train.{form}-00001-of-00003"
    images, examples = expected(files.parents[2], form, "train")
    data = bytearray(shard.read_bytes())
    # Within the picture of its third record.
    data[data.index(b"PNG", data.index(b"PNG", data.index(b"PNG") + 400) + 400) + 50] ^= 1
    shard.write_bytes(data)
    source = TensorFlowDataset("tiny", data_dir=data_dir)
    bad = []
    for at in range(20):
        try:
            found = read(source, at)["image"][0]
        except DataError as error:
            assert f"record {at - 7} of {shard} cannot be read" in str(error)
            bad.append(at)
        else:
            np.testing.assert_array_equal(found, images[at] / np.float32(255))
    assert len(bad) == 1
    skipping = TensorFlowDataset("tiny", data_dir=data_dir, on_bad_record="skip")
    np.testing.assert_array_equal(
        read(skipping, *bad)["image"][0], images[bad[0] + 1] / np.float32(255)
    )
    assert read(skipping, *bad)["label"] == examples[bad[0] + 1]["label"]


def test_other_formats_and_damaged_metadata_are_named(copy):
    data_dir, files = copy("tfrecord")
    info = json.loads((files / "dataset_info.json").read_text())
    (files / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    with pytest.raises(DataError, match=r"tiny is prepared as riegeli, .* as array_record"):
        TensorFlowDataset("tiny", data_dir=data_dir)
    (files / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"tiny cannot be opened in .*JSON"):
        TensorFlowDataset("tiny", data_dir=data_dir)
