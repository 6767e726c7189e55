"""Writes pictures as packed folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from input_pipeline.batches import DataError, Source
from input_pipeline.decoding import MODES
from input_pipeline.manifest import PICTURES
from input_pipeline.packed import IMAGES, LABELS
from input_pipeline.writing import Identity, check_new, write_folder

CHUNK = 256
"""Pictures read at once."""


def pack(
    source: Source,
    destination: str,
    identity: Identity = lambda done, skipped: "",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Packs the features "image" and "label" of a source into a new folder, for `Packed`, as `writing.write_folder` does.

    Args:
      source: of images, float32 `[height, width, channels]` in [0, 1], made of bytes. If it skips bad ones, its `skipped`
        are theirs of all starts of the conversion, so that its budget is too.
      destination: must not be there.
      identity: of what is converted and how.
      report: told the pictures done, first those of an earlier start, and in all.

    Raises:
      DataError: if the destination is there, another conversion writes it, or the source has no images.
      OSError: if it cannot be written.
    """
    check_new(destination)
    image, label = source.element_spec.get("image"), source.element_spec.get("label")
    if image is None or len(image.shape) != 3:
        raise DataError(f'feature "image" of the source is {image or "missing"}: it must be images')
    if image.shape[-1] not in MODES:
        raise DataError(
            f"pictures of the source are {list(image.shape)}: they must be [height, width, channels] with 1 channel, grey, "
            "or 3, colours"
        )
    fields = {
        "count": len(source),
        "shape": list(image.shape),
        "classes": list(getattr(source, "classes", ())),
        "cardinality": None if label is None else label.cardinality,
    }
    rows: dict[str, tuple[type, tuple[int, ...]]] = {IMAGES: (np.uint8, image.shape)}
    if label is not None:
        rows[LABELS] = (np.int32, ())
    write_folder(
        destination,
        PICTURES,
        fields,
        identity=identity,
        rows=rows,
        total=len(source),
        chunks=lambda start: _chunks(source, start),
        skipped=getattr(source, "skipped", None),
        report=report,
    )


def _chunks(source: Source, start: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Pictures done and rows by file name, in the order of the ids from `start` on."""
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
        rows = {name: array[: count - first] for name, array in arrays.items()}
        yield first + len(rows[IMAGES]), rows
