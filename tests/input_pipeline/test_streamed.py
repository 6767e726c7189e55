"""TFRecord shards as a stream: who reads what, in which order, and what is said of what cannot be read."""

import collections
import os

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import Batches, DataError, Slice, Unindexed
from input_pipeline.noise import Noise
from input_pipeline.order import shuffled_ids
from input_pipeline.split import Split
from input_pipeline.streamed import BLOCK_BYTES, StreamedTFRecords
from input_pipeline.tfrecords import TFRecords
from tests.input_pipeline.test_tfrecords import example, flip, png, write

SHARDS, EACH = 6, 5
COUNT = SHARDS * EACH
PICTURES = np.random.default_rng(0).integers(0, 256, (COUNT, 5, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Record k of shard s is example 5 s + k, and its label too."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        records = [
            example(image__encoded=png(PICTURES[at]), bytes=PICTURES[at].tobytes(), label=at)
            for at in range(shard * EACH, (shard + 1) * EACH)
        ]
        write(folder / f"train-{shard}", records)
    return folder


def made(folder, **changes):
    return StreamedTFRecords(
        f"{folder}/train-*", **{"label": "label", "classes": COUNT, "buffer": 8, **changes}
    )


def labels(dataset, count):
    """Of the first `count` elements, in their order."""
    return np.concatenate([element["label"].numpy().ravel() for element in dataset.take(count)])


@pytest.mark.parametrize("form", [{}, {"image": "bytes", "shape": (5, 4, 3)}], ids=["png", "bytes"])
def test_batches_are_as_those_of_tfrecords(form, shards):
    source = made(shards, **form)
    exact = TFRecords(f"{shards}/train-*", label="label", classes=COUNT, **form)
    assert source.element_spec == exact.element_spec
    data = Batches(source, global_batch=6).training(Slice(), updates=2)
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY
    for batch in data.take(3):
        assert batch["image"].shape == (2, 6, 5, 4, 3) and batch["label"].shape == (2, 6)
        found = exact.read(tf.cast(tf.reshape(batch["label"], [-1]), tf.int64))
        np.testing.assert_array_equal(np.reshape(batch["image"], [12, 5, 4, 3]), found["image"])
    np.testing.assert_array_equal(source.decode(found["image"]), exact.decode(found["image"]))


def test_a_path_that_is_there_is_taken_as_it_is(shards, tmp_path):
    path = tmp_path / "set[1]" / "train-*"
    path.parent.mkdir()
    path.write_bytes((shards / "train-2").read_bytes())
    (tmp_path / "set[1]" / "train-1").write_bytes(b"?")
    source = StreamedTFRecords(str(path), label="label", classes=COUNT, buffer=1)
    found = labels(Batches(source, global_batch=1).training(Slice()), EACH)
    np.testing.assert_array_equal(found, 2 * EACH + np.arange(EACH))


def test_pictures_are_resized_and_converted(shards):
    batches = Batches(made(shards, size=(2, 3), channels=1), global_batch=2)
    assert next(iter(batches.training(Slice())))["image"].shape == (1, 2, 2, 3, 1)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_each_shard_of_a_pass_is_one_workers(workers, shards):
    """In the order of the passes: without interleaving and shuffling, the records of whole shards."""
    source = made(shards, buffer=1, interleave=1)
    batches = Batches(source, global_batch=workers, seed=7)
    passes = 4
    positions = tf.range(passes * SHARDS, dtype=tf.int64)
    order = shuffled_ids(positions, SHARDS, seed=7).numpy()
    for worker in range(workers):
        found = labels(
            batches.training(Slice(workers, worker, 1)), passes * SHARDS // workers * EACH
        )
        expected = order[worker::workers, np.newaxis] * EACH + np.arange(EACH)
        np.testing.assert_array_equal(found, expected.ravel())


def test_a_worker_of_several_replicas_gives_them_one_stream(shards):
    source = made(shards, buffer=1, interleave=1)
    one, two = (Batches(source, global_batch=batch, seed=3) for batch in (2, 4))
    np.testing.assert_array_equal(
        labels(one.training(Slice()), 12), labels(two.training(Slice(2, 0, 2)), 12)
    )


def test_interleaved_shards_give_a_record_each_in_turn(shards):
    found = labels(
        Batches(made(shards, buffer=1, interleave=3), global_batch=1).training(Slice()), 3 * EACH
    )
    order = shuffled_ids(tf.range(3, dtype=tf.int64), SHARDS, seed=0).numpy()
    expected = order * EACH + np.arange(EACH)[:, np.newaxis]
    np.testing.assert_array_equal(found, expected.ravel())


@pytest.mark.parametrize("interleave", [1, 4, 16])
def test_a_stream_is_shuffled_and_leaves_nothing_out(interleave, shards):
    buffer, passes = 2 * EACH, 8
    data = Batches(made(shards, buffer=buffer, interleave=interleave), global_batch=COUNT)
    found = labels(data.training(Slice()), passes)
    counts = collections.Counter(found)
    # At most the buffer and the open shards are of a later pass.
    assert set(counts) == set(range(COUNT))
    assert max(counts.values()) <= passes + 2 and min(counts.values()) >= passes - 2
    steps = np.abs(np.diff(found))
    # In the order of the files 5 of 6 would be 1; of random neighbours 1 of 15 is.
    assert np.mean(steps == 1) < 0.25
    assert not np.array_equal(found[:COUNT], found[COUNT : 2 * COUNT])


def test_the_seed_and_the_step_decide_the_stream(shards):
    def begun(seed=0, step=0):
        batches = Batches(made(shards, buffer=4), global_batch=3, seed=seed)
        return labels(batches.training(Slice(), step=step), 10).tolist()

    assert begun() == begun()
    others = [begun(), begun(seed=1), begun(step=1), begun(step=100)]
    assert len({tuple(other) for other in others}) == 4


def test_the_noise_of_a_transform_follows_the_position(shards):
    class Draw:
        def element_spec(self, spec):
            return spec

        def __call__(self, batch, noise):
            return {**batch, "image": noise.uniform([2])}

    batches = Batches(made(shards), global_batch=4, seed=5, transforms=[Draw()])
    for replica in range(2):
        data = batches.training(Slice(2, replica, 1), step=3, updates=2)
        found = next(iter(data))["image"]
        for update in range(2):
            first = (3 * 2 + update) * 4 + replica * 2
            noise = Noise(5, "transform/0/Draw", rows=2, first=first)
            np.testing.assert_array_equal(found[update], noise.uniform([2]))


def test_shards_larger_than_a_block(tmp_path):
    large = np.random.default_rng(1).integers(0, 256, (9, 500, 300, 3), np.uint8)
    assert large[0].nbytes < BLOCK_BYTES < 4 * large[0].nbytes
    write(
        tmp_path / "train-0", [example(bytes=one.tobytes(), label=i) for i, one in enumerate(large)]
    )
    source = made(tmp_path, image="bytes", shape=large.shape[1:], buffer=1)
    batch = next(iter(Batches(source, global_batch=18).training(Slice())))
    np.testing.assert_array_equal(batch["label"][0], [*range(9), *range(9)])
    np.testing.assert_array_equal(source.decode(batch["image"][0, :9]), large)


def test_fewer_shards_than_workers(shards):
    batches = Batches(made(shards), global_batch=8)
    with pytest.raises(DataError, match="names 6 shards, and each of 8 workers needs one of its"):
        batches.training(Slice(8, 0, 1))
    batches.training(Slice(8, 0, 2))


def test_what_needs_numbered_examples_is_refused(shards):
    source = made(shards, buffer=10_000)
    assert isinstance(source, Unindexed)
    assert not isinstance(TFRecords(f"{shards}/train-*"), Unindexed)
    batches = Batches(source, global_batch=2)
    assert batches.examples is None and "shuffled within 10,000 records" in str(batches.inexact)
    for refused in (lambda: len(source), lambda: Split(source)):
        with pytest.raises(DataError, match=r"train-\* is read as a stream, .* take TFRecords or"):
            refused()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.truncate(f, f.stat().st_size - 1), "train-1 was cut off within record 1"),
        (lambda f: os.truncate(f, f.stat().st_size - 5), "train-1 was cut off within record 1"),
        (lambda f: os.truncate(f, 5), "train-1 was cut off within record 0"),
        (lambda f: flip(f, 3), "train-1 is no TFRecord file, or was altered at record 0"),
        (lambda f: flip(f, 9), "train-1 is no TFRecord file, or was altered at record 0"),
        (lambda f: flip(f, 40), "record 0 of TRAIN-1 cannot be read (its checksum is wrong)"),
        (lambda f: f.write_bytes(b"\x1f\x8b\x08"), "train-1 is compressed"),
        (lambda f: f.unlink(), "train-1 cannot be read ("),
        (
            lambda f: write(f, [b"\xff\xff"]),
            "record 0 of TRAIN-1 cannot be read (it is no tf.train",
        ),
        (
            lambda f: write(f, [example(label=0)]),
            "record 0 of TRAIN-1 has 0 values of bytes in image/encoded, not one: name one of its features (label)",
        ),
        (
            lambda f: write(f, [example(image__encoded=png(PICTURES[0]), label=30)]),
            "record 0 of TRAIN-1 has the label 30, and StreamedTFRecords.classes is 30",
        ),
        (
            lambda f: write(f, [example(image__encoded=png(PICTURES[0])[:50], label=0)]),
            "record 0 of TRAIN-1 cannot be read (it is no picture",
        ),
        (
            lambda f: write(f, [example(image__encoded=png(PICTURES[0][:3]), label=0)]),
            "record 0 of TRAIN-1 has 3×4 pixels, and the first picture 5×4: set StreamedTFRecords.size",
        ),
    ],
)
def test_what_cannot_be_read_is_named(damage, message, tmp_path, short_delays):
    """When the training meets it."""
    for shard in range(2):
        records = [example(image__encoded=png(PICTURES[at]), label=at) for at in range(2)]
        write(tmp_path / f"train-{shard}", records)
    source = made(tmp_path)
    damage(tmp_path / "train-1")
    with pytest.raises(tf.errors.OpError) as error:
        list(Batches(source, global_batch=4).training(Slice()).take(2))
    message = message.replace("TRAIN-1", f"{tmp_path}/train-1")
    assert "DataError: " in str(error.value) and message in str(error.value)


def test_bad_records_are_skipped_with_their_labels(tmp_path):
    """Whatever is wrong with them, resized or not; the next of the batch takes the place of each, or else the first."""
    records = [example(image__encoded=png(PICTURES[at]), label=at) for at in range(10)]
    records[0] = records[4] = b"\xff\xff"
    records[7] = example(image__encoded=b"", label=7)
    records[9] = example(image__encoded=png(PICTURES[9])[:50], label=9)
    path = write(tmp_path / "train-0", records)
    start = sum(len(record) + 16 for record in records[:3])
    flip(path, start + 20)  # Of record 3.
    alone = [1, 1, 2, 1, 1, 5, 6, 1, 8, 1]
    for form in ({}, {"size": 5}):
        source = made(tmp_path, buffer=1, on_bad_record="skip", bad_budget=5, **form)
        for batch, expected in ((5, [1, 1, 2, 1, 1, 5, 6, 8, 8, 5]), (1, alone)):
            data = Batches(source, global_batch=batch).training(Slice()).take(20 // batch)
            found = list(data.as_numpy_iterator())
            labels = np.concatenate([element["label"].ravel() for element in found])
            np.testing.assert_array_equal(labels, expected * 2)
            if not form:
                images = np.concatenate([element["image"][0] for element in found])
                np.testing.assert_array_equal(images, PICTURES[labels] / np.float32(255))


def test_more_bad_records_than_the_budget_are_an_error(tmp_path, caplog):
    """Of each pass the same ones, which count once."""
    records = [example(image__encoded=png(PICTURES[at]), label=at) for at in range(4)]
    records[2] = records[3] = example(image__encoded=b"?", label=0)
    path = write(tmp_path / "train-0", records)
    source = made(tmp_path, buffer=1, on_bad_record="skip", bad_budget=2)
    list(Batches(source, global_batch=4).training(Slice()).take(5))
    skipped = [message for message in caplog.messages if message.startswith("skipped: ")]
    assert [message.partition(" cannot")[0] for message in skipped] == [
        f"skipped: record {number} of {path}" for number in (2, 3)
    ]
    source = made(tmp_path, buffer=1, on_bad_record="skip", bad_budget=1)
    with pytest.raises(tf.errors.OpError) as error:
        next(iter(Batches(source, global_batch=4).training(Slice())))
    assert (
        "DataError: 2 pictures cannot be read, more than StreamedTFRecords.bad_budget = 1: mend or replace record 2 of "
        f"{path}, record 3 of {path}"
    ) in str(error.value)
    # Another file: the iterator of before may still read that one.
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "train-0", [b"?"])
    with pytest.raises(DataError, match=r"none of the records that .* begins with can be read"):
        made(tmp_path / "other", on_bad_record="skip")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"files": "nowhere/train-*"}, DataError, r"nowhere/train-\* names no records"),
        ({"files": "nofs://folder/*"}, DataError, r"nofs://folder/\* cannot be listed \(.*nofs"),
        ({"image": "picture"}, DataError, "record 0 of .*train-0 has 0 values of bytes in picture"),
        ({"image": "bytes"}, DataError, r"record 0 of .*train-0 cannot be read \(it is no picture"),
        ({"buffer": 0}, ValueError, "StreamedTFRecords.buffer is 0: it must be at least 1"),
        ({"interleave": 0}, ValueError, "StreamedTFRecords.interleave is 0"),
        ({"classes": None}, ValueError, "StreamedTFRecords.label is 'label' and classes None"),
        ({"shape": (5, 4, 3), "size": 2}, ValueError, "StreamedTFRecords.shape is of bytes"),
        ({"fit": "fill"}, ValueError, 'StreamedTFRecords.fit is "fill"'),
        ({"on_bad_record": "no"}, ValueError, 'StreamedTFRecords.on_bad_record is "no"'),
        (
            {"image": "bytes", "shape": (5, 4, 3), "on_bad_record": "skip"},
            ValueError,
            "shape is of bytes",
        ),
    ],
)
def test_arguments_are_checked(arguments, error, message, shards):
    usual = {"files": f"{shards}/train-*", "label": "label", "classes": COUNT}
    with pytest.raises(error, match=message):
        StreamedTFRecords(**usual | arguments)


def test_a_first_shard_without_records_is_passed_over(tmp_path):
    write(tmp_path / "train-0", [])
    with pytest.raises(DataError, match="names no records"):
        made(tmp_path)
    write(tmp_path / "train-1", [example(image__encoded=png(PICTURES[0]), label=0)])
    found = labels(Batches(made(tmp_path), global_batch=2).training(Slice()), 3)
    np.testing.assert_array_equal(found, np.zeros(6))
