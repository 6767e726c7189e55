"""A folder of picture files, read from the disk as training goes on."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import Arrays
from input_pipeline.batches import DataError, ElementSpec, Feature, digest
from input_pipeline.cache import CACHE_MIB
from input_pipeline.decoding import EncodedPictures, Form, Size
from input_pipeline.images import pictures
from input_pipeline.retrying import read_bytes, reason_of, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class ImageFolder:
    """The pictures of a folder, in the order of their names; sub-folders, if there are any, are the classes.

    Files and folders whose names begin with a dot are left alone; what else is no picture, or deeper, is counted in a
    warning. Pictures are turned as their EXIF orientation says; of an animation the first is taken.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with sub-folders "label", int32, by the order of
    their names. Paths are held in memory, and pictures up to `cache_mib`.

    Args:
      folder: path of files that end in .jpg, .jpeg, .png, .webp, .gif or .bmp, or of one folder of such files for each
        class.
      size: height and width that pictures are brought to, each on its own, or one number for both; None if all have one
        size, which is read faster.
      channels: 3 for colour, 1 for grey, pictures are converted; None if all have as many.
      fit: what `size` does: "crop", the middle of that form, of full height or width, is resized; "stretch", the whole.
      on_bad_record: "fail", a file that is no picture is an error; "skip", the next in order that is one takes its place
        with its label: the same on any layout and after a restart. A `Split` of a folder may so have a picture of its other
        part. A file that is gone, or that storage does not give, is an error in any case, after some tries.
      bad_budget: of "skip": more bad files than this are an error. Each worker counts those that it meets from its start on.
      cache_mib: MiB of memory for decoded pictures. If all of them fit they are kept, and each is read and decoded once; 0 for
        never.

    Attributes:
      skipped: names of the bad files so far.

    Raises:
      ValueError: if an argument has none of its values.
      DataError: if there are no pictures, or some in the folder and some in sub-folders, or a folder cannot be read. Reading raises it for a file
        that is no picture, or of another size or kind than the first where `size` or `channels` is None.
    """

    def __init__(
        self,
        folder: str,
        size: Size = None,
        channels: int | None = None,
        fit: str = "crop",
        on_bad_record: str = "fail",
        bad_budget: int = 100,
        cache_mib: int = CACHE_MIB,
    ) -> None:
        form = Form("ImageFolder", size, fit, channels)
        self.classes, self.paths, labels = _list(pathlib.Path(os.path.expanduser(folder)))
        names = np.array([os.fsencode(path) for path in self.paths], object)
        self._arrays = Arrays({"path": names, "label": np.array(labels, np.int32)})
        self._pictures = EncodedPictures(
            len(self.paths), self._load, self._fetch, form, on_bad_record, bad_budget, cache_mib
        )
        self.skipped = self._pictures.bad.names
        self.element_spec: ElementSpec = {"image": Feature(self._pictures.shape, "float32")}
        if self.classes:
            self.element_spec["label"] = Feature((), "int32", cardinality=len(self.classes))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`), decoded by threads of tf.data."""
        images, ids = self._pictures.read(ids)
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if self.classes:
            batch["label"] = self._arrays.read(ids)["label"]
        return batch

    @property
    def content(self) -> str:
        """A digest of the names of the pictures and of their classes' folders."""
        within = len(self.paths[0].parents[1 if self.classes else 0].parts)
        return digest(["/".join(path.parts[within:]) for path in self.paths])

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)

    def _load(self, at: int) -> tuple[str, bytes]:
        path = self.paths[at]
        name = shown(path)
        try:
            return name, read_bytes(path, gone=True)
        except OSError as error:
            # Not a bad record: another start, or another layout, could have read it.
            raise DataError(
                f"{name} cannot be read ({reason_of(error)}): mend it and start again"
            ) from None

    def _fetch(self, ids: tf.Tensor) -> tf.Tensor:
        paths = tf.unstack(self._arrays.read(ids)["path"], num=ids.shape[0])
        return tf.stack([tf.io.read_file(path) for path in paths])


def _list(folder: pathlib.Path) -> tuple[list[str], list[pathlib.Path], list[int]]:
    """Classes, and of each picture its path and class; what is no such picture is counted in a warning."""
    try:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: name one of pictures")
        flat, others, folders = _entries(folder)
        within = {path: _entries(path) for path in folders}
        deeper = sorted(
            pathlib.Path(where, name)
            for _, _, further in within.values()
            for path in further
            for where, _, names in os.walk(path)
            for name in names
            if _is_picture(name)
        )
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({reason_of(error)}): make it readable, or name another folder"
        ) from None
    classes = [path for path in folders if within[path][0]]
    if flat and classes:
        raise DataError(
            f"{folder} has pictures, such as {flat[0].name}, and folders of pictures, such as {classes[0].name}: put all "
            "into folders, one a class, or none"
        )
    found = [(path, label) for label, name in enumerate(classes) for path in within[name][0]]
    found = found or [(path, 0) for path in flat]
    if not found:
        instead = f", or name {deeper[0].parent.parent}" if deeper else ""
        raise DataError(
            f"{folder} has no pictures: put files that end in {', '.join(SUFFIXES)} there, or in folders, one a class"
            f"{instead}"
        )
    others += [path for _, more, _ in within.values() for path in more]
    kinds = collections.Counter(path.suffix.lower() or "without an ending" for path in others)
    left_out = [f"{count:,} {kind}" for kind, count in sorted(kinds.items())]
    if deeper:
        left_out.append(f"{len(deeper):,} deeper than a class, such as {deeper[0]}")
    if left_out:
        logging.getLogger(__name__).warning(
            "left out of %s: %s (pictures: %s)", folder, ", ".join(left_out), f"{len(found):,}"
        )
    return [path.name for path in classes], [path for path, _ in found], [at for _, at in found]


def _entries(
    folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """Pictures, other files and folders in a folder, each in the order of their names."""
    pictures: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    folders: list[pathlib.Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                kind = pictures if _is_picture(entry.name) else others
                (folders if entry.is_dir() else kind).append(folder / entry.name)
    return pictures, others, folders


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
