"""Pictures and labels in records of tf.train.Example."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import numpy_rows
from input_pipeline.bad_records import BadRecord
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.cache import CACHE_MIB
from input_pipeline.decoding import EncodedPictures, Form
from input_pipeline.images import MOST_CLASSES, pictures
from input_pipeline.records import Records


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where a record has its picture and its label.

    Attributes:
      owner: the class that the other attributes are arguments of, for messages.
      image: key of the feature that holds a picture: a JPEG or PNG file, or its bytes.
      label: key of an integer feature, or None.
      classes: how many labels there are, from 0 on; with `label`.
      shape: height, width and channels of pictures that are bytes; None for JPEG and PNG.

    Raises:
      ValueError: if an attribute has none of its values.
    """

    owner: str
    image: str
    label: str | None
    classes: int | None
    shape: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if (self.label is None) != (self.classes is None) or (
            self.classes is not None and not 1 <= self.classes <= MOST_CLASSES
        ):
            raise ValueError(
                f"{self.owner}.label is {self.label!r} and classes {self.classes}: set both, classes from 1 to "
                f"{MOST_CLASSES:,}, or neither"
            )
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise ValueError(
                f"{self.owner}.shape is {self.shape}: it must be height, width and channels, or None for JPEG and PNG"
            )

    def check_form(self, form: Form, on_bad_record: str = "fail") -> None:
        """Checks that nothing is asked of pictures that are bytes but what they are; raises ValueError."""
        if self.shape is not None and (form.size, form.channels, on_bad_record) != (
            None,
            None,
            "fail",
        ):
            raise ValueError(
                f"{self.owner}.shape is of bytes: size, channels and on_bad_record are for JPEG and PNG, leave them out"
            )

    def element_spec(self, shape: tuple[int, ...]) -> ElementSpec:
        """The features of pictures of a shape, and of labels if there are any."""
        image = {"image": Feature(shape, "float32")}
        if self.label is None:
            return image
        return {**image, "label": Feature((), "int32", cardinality=self.classes)}

    def encoded(self, name: str, record: bytes) -> bytes:
        """The picture's file; `name` is the record's, for messages. Raises BadRecord and DataError, as `_value` does."""
        return self._value(name, record, self.image, "bytes_list")

    def pixels(self, name: str, record: bytes) -> np.ndarray:
        """The picture that is bytes, uint8 `shape`; raises BadRecord and DataError."""
        assert self.shape is not None
        data = self.encoded(name, record)
        if len(data) != math.prod(self.shape):
            raise DataError(
                f"{name} has {len(data):,} bytes in {self.image}, and {list(self.shape)} are "
                f"{math.prod(self.shape):,}: set {self.owner}.shape to what they are, or to None for JPEG and PNG"
            )
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def number(self, name: str, record: bytes) -> int:
        """The label; raises BadRecord and DataError."""
        assert self.label is not None and self.classes is not None
        label = self._value(name, record, self.label, "int64_list")
        if label < 0:  # As TensorFlow Datasets writes where it is not known.
            raise DataError(
                f"{name} has the {self.label} {label}, which is no class: take a split with labels, or read none "
                f"({self.owner}.label)"
            )
        if label >= self.classes:
            raise DataError(
                f"{name} has the {self.label} {label}, and {self.owner}.classes is {self.classes}: labels go from 0 on, "
                "set classes to more"
            )
        return label

    def _value(self, name: str, record: bytes, key: str, kind: str) -> Any:
        """The one value of a feature; raises BadRecord for a damaged record, DataError for one without the feature."""
        try:
            features = tf.train.Example.FromString(record).features.feature
        except Exception as error:  # protobuf's, which it does not export.
            raise BadRecord(
                f"{name} cannot be read (it is no tf.train.Example): mend or replace it"
            ) from error
        found = features[key].WhichOneof("kind") if key in features else None
        values = getattr(features[key], kind).value if found == kind else []
        if len(values) != 1:
            wanted = kind.partition("_")[0]
            wrong = f"{len(values)} values of {wanted} in {key}, not one"
            if found not in (None, kind):
                wrong = f"{found.partition('_')[0]} in {key}, not {wanted}"
            there = ", ".join(sorted(features)) or "none"
            remedy = "mend it, or name another" if found else "name one"
            raise DataError(f"{name} has {wrong}: {remedy} of its features ({there})")
        return values[0]


class Examples:
    """A source of the pictures, and labels, of records.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with labels "label", int32.

    Args:
      records: at least one.
      fields: where a record has what.
      form: that JPEG and PNG files are brought to.
      on_bad_record: as that of `EncodedPictures`, with `bad_budget` and `cache_mib`; not of pictures that are bytes.

    Attributes:
      skipped: names of the bad records so far.
    """

    def __init__(
        self,
        records: Records,
        fields: Fields,
        form: Form,
        on_bad_record: str = "fail",
        bad_budget: int = 0,
        cache_mib: int = CACHE_MIB,
    ) -> None:
        fields.check_form(form, on_bad_record)
        self._records, self._fields = records, fields
        self._known_labels = np.full(len(records), -1, np.int32)
        self._pictures = None
        self.skipped: list[str] = []
        shape = fields.shape
        if shape is None:
            self._pictures = EncodedPictures(
                len(records), self._encoded, self._fetch, form, on_bad_record, bad_budget, cache_mib
            )
            shape, self.skipped = self._pictures.shape, self._pictures.bad.names
        self.element_spec = fields.element_spec(tuple(shape))

    def __len__(self) -> int:
        return len(self._records)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`)."""
        if self._pictures is not None:
            images, ids = self._pictures.read(ids)
        else:
            images = numpy_rows(self._pixels, ids, tf.uint8, self.element_spec["image"].shape)
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if self._fields.label is not None:
            batch["label"] = numpy_rows(self._labels, ids, tf.int32, ())
        return batch

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)

    def _fetch(self, ids: tf.Tensor) -> tf.Tensor:
        def records(ids: np.ndarray) -> np.ndarray:
            return np.array(self._records.several(ids.tolist()), object)

        key = self._fields.image
        wanted = {key: tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_example(numpy_rows(records, ids, tf.string, ()), wanted)[key]

    def _encoded(self, at: int) -> tuple[str, bytes]:
        """The name and the file of a picture."""
        name = self._records.name(at)
        return name, self._fields.encoded(name, self._records[at])

    def _pixels(self, ids: np.ndarray) -> np.ndarray:
        """Pictures that are bytes, uint8 `[n, *shape]`."""
        return np.stack(self._of_records(ids, self._fields.pixels))

    def _labels(self, ids: np.ndarray) -> np.ndarray:
        new = ids[self._known_labels[ids] < 0]
        self._known_labels[new] = self._of_records(new, self._fields.number)
        return self._known_labels[ids]

    def _of_records(self, ids: np.ndarray, read: Callable[[str, bytes], Any]) -> list[Any]:
        """What is read of the name and the data of each record; raises DataError for a damaged one."""
        try:
            records = zip(ids, self._records.several(ids.tolist()), strict=True)
            return [read(self._records.name(at), record) for at, record in records]
        except BadRecord as error:
            raise DataError(str(error)) from None
