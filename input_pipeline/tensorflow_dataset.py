"""Pictures of TensorFlow Datasets, as they were prepared on this machine, read by id."""

from __future__ import annotations

import bisect
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.bad_records import BadRecord
from input_pipeline.batches import DataError, MissingLibrary
from input_pipeline.cache import CACHE_MIB
from input_pipeline.decoding import Form, Size
from input_pipeline.examples import Examples, Fields
from input_pipeline.records import Records, TFRecordFiles

FORMATS = ("tfrecord", "array_record")


class TensorFlowDataset(Examples):
    """Pictures, and labels, of a set of TensorFlow Datasets, which must be installed (extra "datasets").

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with labels "label", int32. The set must be prepared:
    nothing is fetched. Records are numbered in the order of the shards, which is that of `tfds.data_source`.

    Args:
      name: as `tfds.builder` takes it: "mnist", "cifar10:3.0.2", "cifar10_corrupted/fog_1"; or the folder of a version.
      split: as TensorFlow Datasets has it: "train", "train[:90%]", "train+test".
      data_dir: where sets are prepared; None for ~/tensorflow_datasets, or $TFDS_DATA_DIR.
      image: the feature that is the picture.
      label: the feature that is the class; None for "label", if that is one, and no labels otherwise; "" for no labels.
      size: as that of `ImageFolder`, with `channels`, `fit`, `on_bad_record`, `bad_budget` and `cache_mib`.

    Attributes:
      classes: names of the labels.

    Raises:
      ValueError: if an argument has none of its values.
      MissingLibrary: if TensorFlow Datasets, or what reads its files, is not installed.
      DataError: if the set is not prepared or has not this split or these features, or its files are incomplete or of a
        format that cannot be read by number. Reading raises it as that of `TFRecords` does.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image: str = "image",
        label: str | None = None,
        size: Size = None,
        channels: int | None = None,
        fit: str = "crop",
        on_bad_record: str = "fail",
        bad_budget: int = 100,
        cache_mib: int = CACHE_MIB,
    ) -> None:
        form = Form("TensorFlowDataset", size, fit, channels)
        builder = _builder(name, data_dir)
        label, self.classes = _check_features(name, builder.info.features, image, label)
        fields = Fields(
            "TensorFlowDataset", image, label, None if label is None else len(self.classes)
        )
        records, self.paths = _records(name, split, builder.info)
        super().__init__(records, fields, form, on_bad_record, bad_budget, cache_mib)


def _builder(name: str, data_dir: str | None) -> Any:
    """What TensorFlow Datasets knows of a prepared set."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise MissingLibrary(
            f'TensorFlow Datasets is not installed ({error}): pip install -e ".[datasets]"'
        ) from None
    folder = str(pathlib.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)))
    try:
        version = pathlib.Path(os.path.expanduser(name))
        if (version / "features.json").is_file():
            return tfds.builder_from_directory(version)
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError:
        command = f'import tensorflow_datasets as tfds; tfds.load("{name}", data_dir="{folder}")'
        raise DataError(
            f"{name} is not prepared in {folder}: set TensorFlowDataset.data_dir, or prepare it, with a network, by python "
            f"-c '{command}'"
        ) from None
    except Exception as error:  # Of many kinds: for a name that it cannot parse, for damaged JSON.
        raise DataError(
            f"{name} cannot be opened in {folder} ({_first_line(error)}): check TensorFlowDataset.name, or prepare it again"
        ) from None


def _check_features(
    name: str, features: Any, image: str, label: str | None
) -> tuple[str | None, list[str]]:
    """The feature of labels and the names of the classes, both empty without labels."""
    import tensorflow_datasets as tfds

    def named(kind: type) -> list[str]:
        return sorted(key for key, feature in features.items() if type(feature) is kind)

    images, labels = named(tfds.features.Image), named(tfds.features.ClassLabel)
    if image not in images:
        there = ", ".join(images) or "none"
        raise DataError(
            f"{name} has no picture {image}: set TensorFlowDataset.image to one of those it has ({there})"
        )
    if np.dtype(features[image].np_dtype) != np.uint8:
        raise DataError(
            f"{image} of {name} is {features[image].np_dtype}: it must be bytes (uint8), take another set"
        )
    if label is None and "label" in labels:
        label = "label"
    label = label or None
    if label is not None and label not in labels:
        there = ", ".join(labels) or "none"
        raise DataError(
            f"{name} has no class {label}: set TensorFlowDataset.label to one of those it has ({there})"
        )
    return label, [] if label is None else list(features[label].names)


def _records(name: str, split: str, info: Any) -> tuple[Records, list[pathlib.Path]]:
    """The records of a split, and the files they are in."""
    kind = info.file_format.value
    if kind not in FORMATS:
        raise DataError(
            f"{name} is prepared as {kind}, which is not read by number: prepare it again, as array_record, by "
            'tfds.load(…, builder_kwargs={"file_format": "array_record"})'
        )
    import tensorflow_datasets as tfds

    try:
        parts = info.splits[split].file_instructions
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{name} has no split {split} ({_first_line(error)}): set TensorFlowDataset.split to one of "
            f"{', '.join(info.splits)}, or a part of one"
        ) from None
    # A slice that ends before it starts is as many examples as TensorFlow Datasets' arithmetic makes of it.
    if not parts or any(s.to is not None and s.to <= (s.from_ or 0) for s in slices):
        raise DataError(f"{split} of {name} has no examples: set TensorFlowDataset.split to more")
    opened: dict[str, Records] = {}
    for part in parts:
        if part.filename not in opened:
            opened[part.filename] = _opened(part.filename, kind)
        found, expected = len(opened[part.filename]), part.examples_in_shard
        if found != expected:
            raise DataError(
                f"{part.filename} has {found} records, and {expected} by dataset_info.json: prepare {name} again"
            )
    ranges = [range(part.skip, part.skip + part.take) for part in parts]
    files = [pathlib.Path(path) for path in opened]
    return _Parts([opened[part.filename] for part in parts], ranges), files


def _first_line(error: Exception) -> str:
    return str(error).strip("\"'").partition("\n")[0]


def _opened(path: str, kind: str) -> Records:
    return TFRecordFiles([pathlib.Path(path)]) if kind == "tfrecord" else _ArrayRecordFile(path)


class _Parts:
    """Ranges of records, one after another."""

    def __init__(self, wholes: Sequence[Records], ranges: Sequence[range]) -> None:
        self._wholes, self._ranges = wholes, ranges
        self._firsts = list(itertools.accumulate(map(len, ranges), initial=0))

    def __len__(self) -> int:
        return self._firsts[-1]

    def name(self, at: int) -> str:
        whole, number = self._place(at)
        return whole.name(number)

    def __getitem__(self, at: int) -> bytes:
        whole, number = self._place(at)
        return whole[number]

    def several(self, ids: Sequence[int]) -> list[bytes]:
        # Of each whole at once.
        wanted: dict[Records, list[tuple[int, int]]] = {}
        for row, at in enumerate(ids):
            whole, number = self._place(at)
            wanted.setdefault(whole, []).append((row, number))
        found = [b""] * len(ids)
        for whole, places in wanted.items():
            records = whole.several([number for _, number in places])
            for (row, _), record in zip(places, records, strict=True):
                found[row] = record
        return found

    def _place(self, at: int) -> tuple[Records, int]:
        part = bisect.bisect_right(self._firsts, at) - 1
        return self._wholes[part], self._ranges[part][int(at) - self._firsts[part]]


class _ArrayRecordFile:
    """The records of an ArrayRecord file, which compares checksums at each reading."""

    def __init__(self, path: str) -> None:
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ImportError as error:
            raise MissingLibrary(
                f'ArrayRecord, which {path} needs, is not installed ({error}): pip install -e ".[datasets]", or prepare '
                "the set as tfrecord where it does not run"
            ) from None
        self._path = path
        # It has no records where it cannot be read.
        self._reader = ArrayRecordReader(path, "readahead_buffer_size:0")
        self._length = self._reader.num_records()

    def __len__(self) -> int:
        return self._length

    def name(self, at: int) -> str:
        return f"record {at} of {self._path}"

    def __getitem__(self, at: int) -> bytes:
        try:
            return self._reader.read([int(at)])[0]
        except RuntimeError as error:
            raise BadRecord(
                f"{self.name(at)} cannot be read ({_first_line(error)}): prepare the set again"
            ) from None

    def several(self, ids: Sequence[int]) -> list[bytes]:
        # A tenth of the time that they take one by one.
        try:
            return self._reader.read(list(ids))
        except RuntimeError:
            return [self[at] for at in ids]  # Which says which of them it is.
