"""Writes packed folders: whole or not at all, going on where it was stopped, the same bytes each time."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import tensorflow as tf

from input_pipeline.batches import DataError, Source
from input_pipeline.packed import FORMAT, IMAGES, INDEX, LABELS, VERSION, digest

CHUNK = 256
"""Pictures read at once."""
SAVE_SECONDS = 2.0
PROGRESS = "progress.json"


def pack(
    source: Source,
    destination: str,
    identity: str = "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Packs the features "image" and "label" of a source into a new folder, for `Packed`.

    It is written beside the destination, as `.NAME.partial`, and renamed when it is complete and on the disk. One that
    is there from a conversion with the same identity is gone on with.

    Args:
      source: of images, float32 `[height, width, channels]` in [0, 1], made of bytes.
      destination: must not be there.
      identity: of what is converted and how.
      report: told the pictures done, first those of an earlier start, and in all.

    Raises:
      DataError: if the destination is there, another conversion writes it, or the source has no images.
      OSError: if it cannot be written.
    """
    target = pathlib.Path(destination)
    if target.exists():
        raise DataError(f"{target} is there already: remove it, or name another folder")
    image, label = source.element_spec.get("image"), source.element_spec.get("label")
    if image is None or len(image.shape) != 3:
        raise DataError(f'feature "image" of the source is {image or "missing"}: it must be images')
    count = len(source)
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "count": count,
        "shape": list(image.shape),
        "classes": list(getattr(source, "classes", ())),
        "cardinality": None if label is None else label.cardinality,
    }
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        _lock(lock, target)
        state = {"identity": identity, **plan}
        done = _done_before(partial, state)
        shapes: dict[str, tuple[type, tuple[int, ...]]] = {}
        shapes[IMAGES] = (np.uint8, (count, *image.shape))
        if label is not None:
            shapes[LABELS] = (np.int32, (count,))
        files = {name: _opened(partial / name, *shape, done) for name, shape in shapes.items()}
        try:
            _write(source, files, partial, state, done, report)
        finally:
            for file in files.values():
                file.close()
        plan["files"] = {
            name: {"bytes": (partial / name).stat().st_size, "sha256": digest(partial / name)}
            for name in files
        }
        _replace(partial / INDEX, plan)
        os.fsync(lock)
        os.rename(partial, target)
        _sync(target.parent)
        (target / PROGRESS).unlink()
    finally:
        os.close(lock)


def _lock(folder: int, target: pathlib.Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another conversion writes {target}: wait for it, or end it") from None


def _done_before(partial: pathlib.Path, state: dict[str, Any]) -> int:
    """Pictures that an earlier start of the same conversion has written; without one the folder is emptied."""
    try:
        before = json.loads((partial / PROGRESS).read_bytes())
    except FileNotFoundError:
        before = {}
    done = before.pop("done", 0)
    if before == state:
        return done
    for entry in partial.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return 0


def _opened(path: pathlib.Path, dtype: type, shape: tuple[int, ...], done: int) -> IO[bytes]:
    """An .npy file of that shape, behind its first `done` rows; what was written after them is cut off."""
    file = path.open("r+b" if done else "w+b")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape[1:], dtype=np.int64))
    file.seek(done * row_bytes, os.SEEK_CUR)
    file.truncate()
    return file


def _write(
    source: Source,
    files: dict[str, IO[bytes]],
    partial: pathlib.Path,
    state: dict[str, Any],
    done: int,
    report: Callable[[int, int], None],
) -> None:
    saved = time.monotonic()
    report(done, state["count"])
    for arrays in _chunks(source, done):
        for name, file in files.items():
            file.write(arrays[name].tobytes())
        done += len(arrays[IMAGES])
        if time.monotonic() - saved > SAVE_SECONDS or done == state["count"]:
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            _replace(partial / PROGRESS, {**state, "done": done})
            saved = time.monotonic()
        report(done, state["count"])


def _chunks(source: Source, start: int) -> Iterator[dict[str, np.ndarray]]:
    """File name -> rows, in the order of the ids from `start` on."""
    count = len(source)

    def read(first: tf.Tensor) -> dict[str, tf.Tensor]:
        # As many each time, for a graph of static shapes; what is too much at the end is cut off.
        ids = tf.minimum(first + tf.range(CHUNK, dtype=tf.int64), count - 1)
        batch = source.read(ids)
        # Levels of bytes come back whole: k / 255 * 255 is k but for rounding.
        arrays = {IMAGES: tf.cast(tf.round(batch["image"] * 255), tf.uint8)}
        if "label" in batch:
            arrays[LABELS] = tf.cast(batch["label"], tf.int32)
        return arrays

    read = tf.autograph.experimental.do_not_convert(read)
    data = tf.data.Dataset.range(start, count, CHUNK)
    data = data.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)
    for first, arrays in zip(range(start, count, CHUNK), data.as_numpy_iterator(), strict=True):
        yield {name: array[: count - first] for name, array in arrays.items()}


def _replace(path: pathlib.Path, contents: dict[str, Any]) -> None:
    """Writes JSON so that the file is what it was or whole, also if the machine stops."""
    scratch = path.with_name(f".{path.name}")
    with scratch.open("w") as file:
        json.dump(contents, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    _sync(path.parent)


def _sync(folder: pathlib.Path) -> None:
    """Returns when the names in a folder are on the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
