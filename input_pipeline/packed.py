"""Pictures packed for random access: a folder of NumPy arrays, which are mapped into memory and not loaded.

    images.npy   uint8 [n, height, width, channels]
    labels.npy   int32 [n], if there are labels
    index.json   format and version, number, shape, classes, and the size and SHA-256 of each file

`input_pipeline.packing` writes it; whatever knows NumPy's files can read it.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from input_pipeline.arrays import numpy_rows
from input_pipeline.batches import DataError, ElementSpec, Feature
from input_pipeline.images import pictures

INDEX, IMAGES, LABELS = "index.json", "images.npy", "labels.npy"
FORMAT, VERSION = "lockstep images", 1
CHECKED_BYTES = 1 << 24
"""Files up to this size are compared with their checksum whenever they are opened: some hundredths of a second."""
BLOCK_BYTES = 1 << 22


class Packed:
    """A packed folder. It opens in the same short time and takes the same little memory whatever its size.

    Features: "image", float32 `[height, width, channels]` in [0, 1], and with labels "label", int32.

    Args:
      folder: that `scripts/convert images` has written.

    Raises:
      DataError: if it is no such folder, or a file of it is missing, of another length than it was written with, or, up to
        16 MiB, of other contents. `verify` compares the contents of all files.
    """

    def __init__(self, folder: str) -> None:
        index = read_index(folder)
        check_sizes(folder, index)
        for name, file in index["files"].items():
            if file["bytes"] <= CHECKED_BYTES:
                _check_contents(pathlib.Path(folder, name), file)
        count, shape = index["count"], tuple(index["shape"])
        self.classes: list[str] = index["classes"]
        self._images = _mapped(folder, IMAGES, np.uint8, (count, *shape))
        self.element_spec: ElementSpec = {"image": Feature(shape, "float32")}
        self._labels = None
        if index["cardinality"] is not None:
            self._labels = _mapped(folder, LABELS, np.int32, (count,))
            self.element_spec["label"] = Feature((), "int32", cardinality=index["cardinality"])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of `ids` (int64 `[n]`)."""
        images = _rows(self._images, ids, tf.uint8)
        batch = {"image": tf.cast(images, tf.float32) / 255}
        if self._labels is not None:
            batch["label"] = _rows(self._labels, ids, tf.int32)
        return batch

    def decode(self, samples: Any) -> np.ndarray:
        """Pictures, uint8 `[n, height, width, channels]`, of floats in [0, 1], cut off at both ends."""
        return pictures(samples)


def verify(folder: str, report: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Compares all contents of a packed folder with their checksums.

    Args:
      folder: the packed folder.
      report: told bytes done and in all.

    Returns:
      The number of bytes.

    Raises:
      DataError: naming the first file that is not what was written.
    """
    index = read_index(folder)
    check_sizes(folder, index)
    total = sum(file["bytes"] for file in index["files"].values())
    done = 0
    for name, file in index["files"].items():

        def advance(read: int, before: int = done) -> None:
            report(before + read, total)

        _check_contents(pathlib.Path(folder, name), file, advance)
        done += file["bytes"]
    return total


def read_index(folder: str) -> dict[str, Any]:
    """What index.json says.

    Raises:
      DataError: if there is none, or one of another kind.
    """
    path = pathlib.Path(folder, INDEX)
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no packed folder, or an incomplete one (it has no {INDEX}): make it by "
            f"scripts/convert images SRC {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): convert the pictures again") from None
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise DataError(
            f"{path} is not of the format {FORMAT!r}, version {VERSION}: convert the pictures again"
        )
    missing = {"count", "shape", "classes", "cardinality", "files"} - index.keys()
    if missing:
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: convert the pictures again")
    return index


def check_sizes(folder: str, index: dict[str, Any]) -> None:
    """Checks that each file is there and has the length it was written with.

    Raises:
      DataError: naming the first that has not.
    """
    for name, file in index["files"].items():
        path = pathlib.Path(folder, name)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}): convert the pictures again"
            ) from None
        if found != file["bytes"]:
            raise DataError(
                f"{path} has {found:,} bytes, and {file['bytes']:,} by {INDEX}: it was cut off or altered, copy or "
                "convert it again"
            )


def digest(path: pathlib.Path, report: Callable[[int], None] = lambda read: None) -> str:
    """SHA-256 of a file, in hexadecimal digits; `report` is told the bytes read so far."""
    state, read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            state.update(block)
            read += len(block)
            report(read)
    return state.hexdigest()


def _check_contents(
    path: pathlib.Path, file: dict[str, Any], report: Callable[[int], None] = lambda read: None
) -> None:
    found = digest(path, report)
    if found != file["sha256"]:
        raise DataError(
            f"{path} has the SHA-256 {found[:12]}…, and {file['sha256'][:12]}… by {INDEX}: it was altered, copy or "
            "convert it again"
        )


def _mapped(folder: str, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    path = pathlib.Path(folder, name)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found_shape, _, found_dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): convert the pictures again") from None
    if found_dtype != dtype or found_shape != shape:
        raise DataError(
            f"{path} is {found_dtype} {list(found_shape)}, and {np.dtype(dtype)} {list(shape)} by {INDEX}: convert the "
            "pictures again"
        )
    if len(mapping) > _memory_bytes() // 2:
        # Else each read of a row brings in megabytes around it, to push others out: 13 ms a row where 22 µs do.
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype, math.prod(shape), start).reshape(shape)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _rows(array: np.ndarray, ids: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    # take lets other threads run, indexing does not.
    return numpy_rows(lambda ids: array.take(ids, axis=0), ids, dtype, array.shape[1:])
