"""Pictures in TFRecord shards of tf.train.Example, read from their beginnings to their ends: not exact."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.bad_records import BadRecord, BadRecords
from input_pipeline.batches import DataError
from input_pipeline.decoding import Decoder, Form, Size
from input_pipeline.examples import Fields
from input_pipeline.images import pictures
from input_pipeline.order import shuffled_ids
from input_pipeline.records import (
    FOOTER_BYTES,
    GZIP,
    HEADER_BYTES,
    checked,
    cut_off,
    data_bytes,
)
from input_pipeline.retrying import reason_of, retrying

BLOCK_BYTES = 1 << 20
"""Of a shard, read at once."""

BAD = b""
"""In place of a picture that cannot be read: no picture either."""

ERRORS = {
    tf.errors.NOT_FOUND: errno.ENOENT,
    tf.errors.PERMISSION_DENIED: errno.EACCES,
    tf.errors.UNAUTHENTICATED: errno.EACCES,
    tf.errors.INVALID_ARGUMENT: errno.EINVAL,
    tf.errors.FAILED_PRECONDITION: errno.EINVAL,
    tf.errors.UNIMPLEMENTED: errno.EINVAL,
}
"""TensorFlow's codes of errors that no further try mends, and of files that are gone."""

Record = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""Its data with their checksum, its number in its shard, and the shard's path."""


class StreamedTFRecords:
    """As `TFRecords`, for sets too large to index: an `Unindexed` source, whose training is not exact.

    A pass is in an order of shards keyed by the seed; each shard of a pass is one worker's, which reads several at a time, a
    record of each in turn, into a buffer from which records are taken at random. A training that goes on does so with other
    shards. Only a first block is read when it is opened, and paths may be of any file system that TensorFlow knows.

    Args:
      files: as that of `TFRecords`, with `image`, `label`, `classes`, `shape`, `size`, `channels` and `fit`; at least one
        shard for each worker.
      buffer: records of each worker from which the next is taken, in memory as they are in the shards.
      interleave: shards that each worker reads at a time.
      on_bad_record: "fail", a record that is damaged or no picture is an error; "skip", the next of its batch that is none
        takes its place, of a batch without one the first of the set; not of bytes.
      bad_budget: of "skip": more bad records than this are an error. Each worker counts those that it meets.

    Raises:
      ValueError: if an argument has none of its values.
      DataError: if there are no records, or none of the first is a picture. Reading raises it, for a shard that was cut off or
        altered, or a record that has not these features, with its name.
    """

    def __init__(
        self,
        files: str,
        image: str = "image/encoded",
        label: str | None = None,
        classes: int | None = None,
        shape: Sequence[int] | None = None,
        size: Size = None,
        channels: int | None = None,
        fit: str = "crop",
        buffer: int = 10_000,
        interleave: int = 16,
        on_bad_record: str = "fail",
        bad_budget: int = 100,
    ) -> None:
        for argument, value in {"buffer": buffer, "interleave": interleave}.items():
            if value < 1:
                raise ValueError(f"StreamedTFRecords.{argument} is {value}: it must be at least 1")
        form = Form("StreamedTFRecords", size, fit, channels)
        self._fields = Fields("StreamedTFRecords", image, label, classes, shape)
        self._fields.check_form(form, on_bad_record)
        self._bad = BadRecords("StreamedTFRecords", on_bad_record, bad_budget)
        self._files, self._buffer, self._interleave = files, buffer, interleave
        path = os.path.expanduser(files)
        try:
            self._paths = [path] if tf.io.gfile.exists(path) else sorted(tf.io.gfile.glob(path))
        except tf.errors.OpError as error:
            raise DataError(f"{files} cannot be listed ({error.message}): check the path") from None
        self._decoder: Decoder | None = None
        if not any(True for _ in self._beginnings()):
            raise DataError(f"{files} names no records: give the path of TFRecord files")
        if shape is None:
            self._decoder, self._first = self._opened(form)
            shape = self._decoder.shape
        self.element_spec = self._fields.element_spec(tuple(shape))

    @property
    def inexact(self) -> str:
        """Why a training is not exact."""
        return (
            f"{self._files} is read as a stream, shuffled within {self._buffer:,} records, so that a run which goes on, or "
            "another layout, sees other examples (those of TFRecords and Packed are the same)"
        )

    def __len__(self) -> int:
        """Refused."""
        raise DataError(
            f"{self._files} is read as a stream, of which neither the number of examples is known nor a part can be held "
            "out: take TFRecords or Packed for Experiment.validation and for Split"
        )

    def records(self, worker: int, workers: int, seed: int, step: int) -> tf.data.Dataset:
        """The `Record`s of one worker without end, beginning at a place that depends on the step.

        Raises:
          DataError: if there are fewer shards than workers.
        """
        if len(self._paths) < workers:
            raise DataError(
                f"{self._files} names {len(self._paths)} shard{'s' * (len(self._paths) > 1)}, and each of {workers} workers needs one of its own: write "
                "more shards, or train on fewer workers"
            )
        # Position p of the endless sequence of passes is that of worker p modulo workers.
        positions = tf.data.Dataset.counter(step * workers + worker, workers)
        data = self._shuffled(positions, len(self._paths) // workers, seed, f"{step}:{worker}")
        return data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    def once(self, seed: int) -> tf.data.Dataset:
        """The `Record`s of one pass over all shards."""
        return self._shuffled(
            tf.data.Dataset.range(len(self._paths)), len(self._paths), seed, "once"
        )

    def _shuffled(
        self, positions: tf.data.Dataset, most: int, seed: int, which: str
    ) -> tf.data.Dataset:
        """The `Record`s of the shards at some positions of the endless sequence of passes.

        Args:
          positions: of a part of the shards each.
          most: how many of them may be read at a time; more would be a shard and its next pass.
          seed: of the order of the shards and, with `which`, of the records.
          which: part it is.
        """
        paths = tf.constant(self._paths)

        def shard(position: tf.Tensor) -> tf.data.Dataset:
            return _records(paths[shuffled_ids(position[tf.newaxis], len(paths), seed)[0]])

        data = positions.interleave(
            tf.autograph.experimental.do_not_convert(shard),
            cycle_length=min(self._interleave, most),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        key = hashlib.blake2b(f"{seed}:{which}".encode(), digest_size=7).digest()
        return data.shuffle(self._buffer, seed=int.from_bytes(key, "little"))

    def read(self, records: Record) -> dict[str, tf.Tensor]:
        """The examples of `Record`s, `[n]` each."""
        data, numbers, paths = records
        count, labelled = data.shape[0], self._fields.label is not None
        spec = self.element_spec["image"]

        def images_and_labels(*records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Encoded pictures as bytes `[n]`, or else pixels, and labels."""
            read = self._fields.encoded if self._decoder else self._fields.pixels
            images, labels = [], []
            for name, record in _named(*records):
                try:
                    data = checked(name, record)
                    image, label = read(name, data), self._label(name, data)
                except BadRecord as error:
                    self._bad.skip(error)
                    image, label = BAD, 0
                images.append(image)
                labels.append(label)
            found = np.array(images, object) if self._decoder else np.stack(images)
            return found, np.array(labels, np.int32)

        kinds = [tf.string if self._decoder else tf.uint8, tf.int32]
        images, labels = tf.numpy_function(images_and_labels, records, kinds, stateful=False)
        if self._decoder:
            encoded = tf.ensure_shape(images, [count])
            images, labels = self._decoded(self._decoder, encoded, labels, numbers, paths)
        images = tf.ensure_shape(images, [count, *spec.shape])
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if labelled:
            batch["label"] = tf.ensure_shape(labels, [count])
        return batch

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)

    def _beginnings(self) -> Iterator[tuple[str, bytes]]:
        """The name and the record of each in the first block of each shard."""
        for path in self._paths:
            for number, record in enumerate(_block(path.encode(), 0, 0)[0]):
                yield _name(number, path), record

    def _opened(self, form: Form) -> tuple[Decoder, tuple[np.ndarray, int]]:
        """A decoder of pictures like the first that can be read, and that picture and its label."""
        for name, record in self._beginnings():
            try:
                data = checked(name, record)
                encoded = self._fields.encoded(name, data)
                example = form.decode(name, encoded), self._label(name, data)
                return Decoder(form, name, encoded), example
            except BadRecord as error:
                self._bad.skip(error)
        raise DataError(
            f"none of the records that {self._files} begins with can be read: mend them"
        )

    def _label(self, name: str, data: bytes) -> int:
        return 0 if self._fields.label is None else self._fields.number(name, data)

    def _decoded(
        self, decoder: Decoder, encoded: tf.Tensor, labels: tf.Tensor, *places: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Pictures, uint8 `[n, height, width, channels]`, and their labels."""

        def one_by_one(encoded: np.ndarray, labels: np.ndarray, *places: np.ndarray) -> Any:
            found: dict[int, tuple[np.ndarray, int]] = {}
            for at, (name, data) in enumerate(_named(encoded, *places)):
                try:
                    found[at] = decoder.one(name, data), labels[at]
                except BadRecord as error:
                    self._bad.skip(error)
            if not found:
                found[0] = self._first
            count = len(encoded)
            rows = [at if at in found else _next(found, at, count) for at in range(count)]
            images, of_images = zip(*(found[row] for row in rows), strict=True)
            return np.stack(images), np.array(of_images, np.int32)

        def each() -> list[tf.Tensor]:
            kinds = [tf.uint8, tf.int32]
            return tf.numpy_function(one_by_one, [encoded, labels, *places], kinds, stateful=False)

        if not decoder.native:
            return tuple(each())
        found, complete = decoder.several(encoded, lambda encoded: encoded)
        return tuple(tf.cond(complete, lambda: [found, labels], each))


def _records(path: tf.Tensor) -> tf.data.Dataset:
    """The `Record`s of a shard."""

    def block(
        state: tuple[tf.Tensor, tf.Tensor], _: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Record]:
        data, end = tf.numpy_function(_block, [path, *state], [tf.string, tf.int64], stateful=False)
        data, end = tf.ensure_shape(data, [None]), tf.ensure_shape(end, [])
        number, count = state[0], tf.size(data, tf.int64)
        return (number + count, end), (data, number + tf.range(count), tf.fill([count], path))

    # Not by a generator: what is left of one at the end of a program is reported as an error.
    begin = (tf.constant(0, tf.int64), tf.constant(0, tf.int64))
    blocks = tf.data.Dataset.counter().scan(begin, block)
    return blocks.take_while(lambda data, number, path: tf.size(data) > 0).unbatch()


def _block(path: bytes, number: int, start: int) -> tuple[np.ndarray, np.int64]:
    """Records of a shard from a byte on with their checksums, `[n]`, none at its end, and where they end.

    Args:
      path: of the shard.
      number: of the first of them.
      start: where it begins.

    Raises:
      DataError: if it cannot be read, or was cut off or altered.
    """
    name = path.decode()

    def read() -> tuple[np.ndarray, np.int64]:
        records: list[bytes] = []
        end = int(start)
        try:
            with tf.io.gfile.GFile(name, "rb") as file:
                file.seek(end)
                while end < start + BLOCK_BYTES and (head := file.read(HEADER_BYTES)):
                    records.append(_record(name, number + len(records), head, file))
                    end += HEADER_BYTES + len(records[-1])
        except tf.errors.OpError as error:
            # Of what remote storage says the rest may be over soon.
            raise OSError(ERRORS.get(error.error_code, errno.EIO), error.message) from None
        return np.array(records, object), np.int64(end)

    try:
        return retrying(read, name)
    except OSError as error:
        raise DataError(
            f"{name} cannot be read ({reason_of(error)}): mend it and start again"
        ) from None


def _record(path: str, number: int, head: bytes, file: tf.io.gfile.GFile) -> bytes:
    """The data, with their checksum, of the record whose header was just read and is compared with its own."""
    if number == 0 and head.startswith(GZIP):
        raise DataError(f"{path} is compressed, which is not read: unpack it")
    size = data_bytes(head, path, number) + FOOTER_BYTES
    body = file.read(size)
    if len(body) < size:
        raise cut_off(path, number)
    return body


def _next(rows: Iterable[int], at: int, count: int) -> int:
    """The first of some rows from a place on, after the last of `count` from the beginning."""
    return min(rows, key=lambda row: (row - at) % count)


def _named(data: np.ndarray, numbers: np.ndarray, paths: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The name and the data of each `Record`, or what was made of its data."""
    for record, number, path in zip(data, numbers, paths, strict=True):
        yield _name(number, path.decode()), record


def _name(number: int, path: str) -> str:
    return f"record {number} of {path}"
