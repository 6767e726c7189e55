"""Pictures in TFRecord shards of tf.train.Example, read by id."""

from __future__ import annotations

import bisect
import glob
import itertools
import math
import mmap
import pathlib
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from input_pipeline.arrays import numpy_rows
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.decoding import BadRecord, EncodedPictures, Form, Size
from input_pipeline.images import pictures

HEADER_BYTES, FOOTER_BYTES = 12, 4
"""Of a record: its length, 8 bytes, and their checksum; the data; the checksum of these."""
GZIP = b"\x1f\x8b"


class TFRecords:
    """Pictures, and labels, of tf.train.Example records in one or more files.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with `label` "label", int32. The files are mapped
    into memory; where each record begins is found once, when they are opened.

    Args:
      files: path of the shards, with * and ? for several: they follow each other in the order of their names.
      image: key of the feature that holds a picture: a JPEG or PNG file, or its bytes.
      label: key of an integer feature, or None.
      classes: how many labels there are, from 0 on; needed with `label`.
      shape: height, width and channels of pictures that are bytes; None for JPEG and PNG.
      size: as that of `ImageFolder`, with `channels`, `fit`, `on_bad_record` and `bad_budget`; not of bytes.

    Raises:
      ValueError: if an argument has none of its values.
      DataError: if there are no records, or a shard was cut off or altered. Reading raises it for a record whose checksum
        is wrong, at its first reading, or which has not these features.
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
        on_bad_record: str = "fail",
        bad_budget: int = 100,
    ) -> None:
        form = Form("TFRecords", size, fit, channels)
        if (label is None) != (classes is None) or (classes is not None and classes < 1):
            raise ValueError(
                f"TFRecords.label is {label!r} and classes {classes}: set both, classes at least 1, or neither"
            )
        if shape is not None and (len(shape) != 3 or min(shape) < 1):
            raise ValueError(
                f"TFRecords.shape is {shape}: it must be height, width and channels, or None for JPEG and PNG"
            )
        self._image, self._label, self._classes = image, label, classes
        self._paths = [pathlib.Path(path) for path in sorted(glob.glob(files))]
        self._shards = [_mapped(path) for path in self._paths]
        self._offsets = [_offsets(p, s) for p, s in zip(self._paths, self._shards, strict=True)]
        self._firsts = list(itertools.accumulate(map(len, self._offsets), initial=0))
        if not len(self):
            raise DataError(f"{files} names no records: give the path of TFRecord files")
        self._checked = np.zeros(len(self), bool)
        self._known_labels = np.full(len(self), -1, np.int32)
        self._pictures = None
        if shape is None:
            self._pictures = EncodedPictures(
                len(self), self._encoded, self._fetch, form, on_bad_record, bad_budget
            )
            self._shape = self._pictures.shape
        elif (size, channels, on_bad_record) != (None, None, "fail"):
            raise ValueError(
                "TFRecords.shape is of bytes: size, channels and on_bad_record are for JPEG and PNG, leave them out"
            )
        else:
            self._shape = tuple(shape)
        self.element_spec: ElementSpec = {"image": Feature(self._shape, "float32")}
        if label is not None:
            self.element_spec["label"] = Feature((), "int32", cardinality=classes)

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`)."""
        if self._pictures is not None:
            images, ids = self._pictures.read(ids)
        else:
            images = numpy_rows(self._bytes, ids, tf.uint8, self._shape)
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if self._label is not None:
            batch["label"] = numpy_rows(self._labels, ids, tf.int32, ())
        return batch

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)

    def _fetch(self, ids: tf.Tensor) -> tf.Tensor:
        def records(ids: np.ndarray) -> np.ndarray:
            return np.array([self._record(at) for at in ids], object)

        wanted = {self._image: tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_example(numpy_rows(records, ids, tf.string, ()), wanted)[self._image]

    def _encoded(self, at: int) -> tuple[str, bytes]:
        """The name and the file of a picture."""
        return self._name(at), self._feature(at, self._image, "bytes_list")

    def _bytes(self, ids: np.ndarray) -> np.ndarray:
        """Pictures that are bytes, uint8 `[n, *shape]`."""
        found = []
        for at in ids:
            try:
                data = self._feature(at, self._image, "bytes_list")
            except BadRecord as error:
                raise DataError(str(error)) from None
            if len(data) != math.prod(self._shape):
                raise DataError(
                    f"{self._name(at)} has {len(data):,} bytes in {self._image}, and {list(self._shape)} are "
                    f"{math.prod(self._shape):,}: set TFRecords.shape to what they are, or to None for JPEG and PNG"
                )
            found.append(np.frombuffer(data, np.uint8).reshape(self._shape))
        return np.stack(found)

    def _labels(self, ids: np.ndarray) -> np.ndarray:
        assert self._label is not None and self._classes is not None
        for at in ids[self._known_labels[ids] < 0]:
            label = self._feature(at, self._label, "int64_list")
            if not 0 <= label < self._classes:
                raise DataError(
                    f"{self._name(at)} has the {self._label} {label}, and TFRecords.classes is {self._classes}: labels go "
                    "from 0 on, set classes to more"
                )
            self._known_labels[at] = label
        return self._known_labels[ids]

    def _feature(self, at: int, key: str, kind: str) -> Any:
        """The one value of a feature; raises BadRecord for a damaged record, DataError for one without the feature."""
        data = self._record(at)
        try:
            features = tf.train.Example.FromString(data).features.feature
        except Exception as error:  # protobuf's, which it does not export.
            raise BadRecord(
                f"{self._name(at)} cannot be read (it is no tf.train.Example): mend or remove it"
            ) from error
        values = getattr(features[key], kind).value if key in features else []
        if len(values) != 1:
            there = ", ".join(sorted(features)) or "none"
            raise DataError(
                f"{self._name(at)} has {len(values)} values of {kind.partition('_')[0]} in {key}, not one: name one of "
                f"its features ({there})"
            )
        return values[0]

    def _record(self, at: int) -> bytes:
        """The data of a record, compared with their checksum the first time."""
        shard, number = self._place(at)
        mapping, start = self._shards[shard], int(self._offsets[shard][number])
        length = int.from_bytes(mapping[start : start + 8], "little")
        first = start + HEADER_BYTES
        data = mapping[first : first + length]
        if not self._checked[at]:
            stored = mapping[first + length : first + length + FOOTER_BYTES]
            if masked_crc32c(data) != int.from_bytes(stored, "little"):
                raise BadRecord(
                    f"{self._name(at)} cannot be read (its checksum is wrong): mend or remove it"
                )
            self._checked[at] = True
        return data

    def _name(self, at: int) -> str:
        shard, number = self._place(at)
        return f"record {number} of {self._paths[shard]}"

    def _place(self, at: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._firsts, at) - 1
        return shard, int(at) - self._firsts[shard]


def _mapped(path: pathlib.Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) else error.strerror
        raise DataError(f"{path} cannot be read ({reason}): write it again") from None


def _offsets(path: pathlib.Path, shard: mmap.mmap) -> np.ndarray:
    """Where each record begins, int64 `[n]`."""
    if shard[:2] == GZIP:
        raise DataError(f"{path} is compressed, which has no records by number: unpack it")
    found: list[int] = []
    at = 0
    while at + HEADER_BYTES <= len(shard):
        length, stored = shard[at : at + 8], shard[at + 8 : at + HEADER_BYTES]
        if masked_crc32c(length) != int.from_bytes(stored, "little"):
            raise DataError(
                f"{path} is no TFRecord file, or was altered at record {len(found)}: write it again"
            )
        found.append(at)
        at += HEADER_BYTES + int.from_bytes(length, "little") + FOOTER_BYTES
    if at != len(shard):
        cut = len(found) - (at > len(shard))
        raise DataError(f"{path} was cut off within record {cut}: copy or write it again")
    return np.array(found, np.int64)


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes, rotated and moved as TFRecord files have it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
