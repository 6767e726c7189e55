"""Reading while storage fails: what is tried again and how often, for each kind of source."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import retrying, streamed
from input_pipeline.arrays import Arrays
from input_pipeline.batches import DataError
from input_pipeline.image_folder import ImageFolder
from input_pipeline.reading import read_utf8
from input_pipeline.records import TFRecordFiles


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that it would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", seconds.append)
    return seconds


def failing(*errors: int):
    """A function that raises these errors in turn and then returns 7."""
    left = list(errors)

    def read() -> int:
        if left:
            raise OSError(left[0], os.strerror(left.pop(0)))
        return 7

    return read


def test_momentary_errors_are_tried_again_with_back_off(waited, caplog):
    caplog.set_level(logging.WARNING)
    assert retrying.retrying(failing(errno.EIO, errno.ESTALE, errno.ENOENT), "a") == 7
    assert waited == [0.5, 1.0, 2.0]
    first, *_, last = caplog.records
    assert (first.file, first.error) == ("a", "Input/output error")
    assert (
        last.getMessage()
        == "a cannot be read (No such file or directory): trying again in 2 seconds"
    )


@pytest.mark.parametrize(
    ("errors", "gone", "number", "seconds"),
    [
        ([errno.EIO] * 5, True, errno.EIO, 7.5),
        ([errno.EIO, errno.EACCES], True, errno.EACCES, 0.5),
        ([errno.EISDIR], True, errno.EISDIR, 0),
        ([errno.ENOENT] * 5, True, errno.ENOENT, 7.5),
        ([errno.ENOENT], False, errno.ENOENT, 0),  # A path that was never there is said at once.
    ],
)
def test_others_and_lasting_ones_are_raised(errors, gone, number, seconds, waited):
    with pytest.raises(OSError) as error:
        retrying.retrying(failing(*errors), "a", gone)
    assert (error.value.errno, sum(waited)) == (number, seconds)


# ---------------------------------------------------------------------- sources


def shard(path: pathlib.Path) -> list[bytes]:
    records = [bytes([n]) * (n + 1) for n in range(20)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return records


def test_records_of_a_shard_that_fails_for_a_moment(tmp_path, waited, monkeypatch):
    """It is opened anew, since its handle may be stale, and read again; a shard that was cut off is an error then."""
    path = tmp_path / "train-0"
    records, whole = shard(path), path.read_bytes()
    files = TFRecordFiles([path])
    pread, errors = os.pread, [errno.ESTALE, errno.EIO]
    handle = files._shards[0]._file

    def flaky(file, length, start):
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop(0)))
        return pread(file, length, start)

    monkeypatch.setattr("input_pipeline.records.os.pread", flaky)
    assert files[3] == records[3]
    assert waited == [0.5, 1.0] and files._shards[0]._file is not handle
    # Gone: what is open stays readable.
    path.unlink()
    assert files.several([3, 19]) == [records[3], records[19]]
    path.write_bytes(whole)
    errors.append(errno.EIO)
    assert files[4] == records[4]
    os.truncate(path, 100)
    with pytest.raises(
        DataError, match=r"train-0 cannot be read \(it is shorter than it was\): mend"
    ):
        files.several([19])
    path.write_bytes(whole)
    assert files.several([19, 5]) == [records[19], records[5]]


def test_a_mapped_file_that_is_cut_off_does_not_end_the_process(tmp_path, waited, monkeypatch):
    """Reading beyond its end would, by SIGBUS. Put back while it is tried again, it is read on."""
    path = tmp_path / "a.npy"
    expected = np.arange(400_000, dtype=np.int64).reshape(-1, 4)
    np.save(path, expected)
    whole = path.read_bytes()
    arrays = Arrays({"a": np.lib.format.open_memmap(path, mode="r")})
    ids = tf.constant([0, 99_999], tf.int64)
    os.truncate(path, 4096)
    with pytest.raises(DataError, match=rf"{path} cannot be read \(it has 4,096"):
        arrays.read(ids)
    assert sum(waited) == 7.5
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: path.write_bytes(whole))
    np.testing.assert_array_equal(arrays.read(ids)["a"], expected[[0, -1]])


def test_a_picture_that_is_gone_for_a_moment(tmp_path, waited, monkeypatch):
    """Neither an error nor, with "skip", another picture; gone for good it is an error."""
    for number in range(3):
        Image.fromarray(np.full((4, 4), number * 100, np.uint8)).save(tmp_path / f"{number}.png")
    moved = tmp_path / "elsewhere"
    for policy in ("fail", "skip"):
        source = ImageFolder(str(tmp_path), on_bad_record=policy)
        (tmp_path / "1.png").rename(moved)
        with pytest.raises(DataError, match=r"1\.png cannot be read \(No such file"):
            source.read(tf.constant([1], tf.int64))
        back = threading.Event()

        def sleep(seconds, back=back):
            if not back.is_set():
                moved.rename(tmp_path / "1.png")
                back.set()

        monkeypatch.setattr(retrying.time, "sleep", sleep)
        (image,) = source.read(tf.constant([1], tf.int64))["image"].numpy()
        assert np.all(image == np.float32(100) / 255) and back.is_set()
        monkeypatch.setattr(retrying.time, "sleep", waited.append)


def test_a_streamed_shard_that_is_gone_for_a_moment(tmp_path, monkeypatch):
    path, moved = tmp_path / "train-0", tmp_path / "elsewhere"
    records = shard(path)
    path.rename(moved)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: moved.rename(path))
    found, end = streamed._block(str(path).encode(), 0, 0)
    # Each with its checksum, which is not compared yet.
    assert [record[:-4] for record in found] == records and end == path.stat().st_size
    monkeypatch.setattr(retrying, "DELAYS_SECONDS", ())
    path.unlink()
    with pytest.raises(DataError, match="train-0 cannot be read"):
        streamed._block(str(path).encode(), 0, 0)


def test_a_text_on_storage_that_fails_for_a_moment(tmp_path, waited, monkeypatch):
    (tmp_path / "a.txt").write_text("ä")
    read, errors = pathlib.Path.read_bytes, [errno.EIO]

    def flaky(self):
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop()))
        return read(self)

    monkeypatch.setattr(pathlib.Path, "read_bytes", flaky)
    assert read_utf8(tmp_path / "a.txt") == "ä"
    assert waited == [0.5]
    with pytest.raises(DataError, match=r"b\.txt cannot be read \(No such file"):
        read_utf8(tmp_path / "b.txt")
    assert waited == [0.5]
