"""Pictures in TFRecord shards of tf.train.Example, read by id."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Sequence

from input_pipeline.batches import DataError
from input_pipeline.cache import CACHE_MIB
from input_pipeline.decoding import Form, Size
from input_pipeline.examples import Examples, Fields
from input_pipeline.records import TFRecordFiles


class TFRecords(Examples):
    """Pictures, and labels, of tf.train.Example records in one or more files.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with `label` "label", int32. Where each
    record begins is found once, when the files are opened.

    Args:
      files: path of the shards, with * and ? for several: they follow each other in the order of their names. A path that
        is there is taken as it is.
      image: key of the feature that holds a picture: a JPEG or PNG file, or its bytes.
      label: key of an integer feature, or None.
      classes: how many labels there are, from 0 on; needed with `label`.
      shape: height, width and channels of pictures that are bytes; None for JPEG and PNG.
      size: as that of `ImageFolder`, with `channels`, `fit`, `on_bad_record`, `bad_budget` and `cache_mib`; not of bytes.

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
        cache_mib: int = CACHE_MIB,
    ) -> None:
        form = Form("TFRecords", size, fit, channels)
        fields = Fields("TFRecords", image, label, classes, shape)
        records = TFRecordFiles(shards(files))
        if not len(records):
            raise DataError(f"{files} names no records: give the path of TFRecord files")
        super().__init__(records, fields, form, on_bad_record, bad_budget, cache_mib)


def shards(files: str) -> list[pathlib.Path]:
    """The paths that one with * and ? stands for, in the order of their names, or the path itself if it is there."""
    path = os.path.expanduser(files)
    found = [path] if os.path.exists(path) else sorted(glob.glob(path))
    return [pathlib.Path(one) for one in found]
