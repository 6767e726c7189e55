"""What the bytes of an encoded picture say before they are decoded: how it is to be turned, and who may decode it."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises where a file is no picture or damaged."""
UPRIGHT, SIDEWAYS = 1, 5
"""EXIF's orientation: of pictures that are shown as they are, and the first of those whose sides change places."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes it upright."""
JPEG, PNG, RIFF = b"\xff\xd8\xff", b"\x89PNG", b"RIFF"
"""Beginnings of files; the last of WebP's, which have EXIF at their end."""
HEAD = 4096
"""Bytes in which most files say what they are."""
EXIF = b"Exif\0\0", b"eXIf", b"Raw profile type exif"
"""What it follows: in JPEG files, in PNG files, and in those of ImageMagick."""
FRAMES, SCAN = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xDA
"""Markers of JPEG's segments: of those that say what its pixels are, and of the pixels."""
COMPONENTS = 9
"""Where in a frame the number of components is, as many as channels, or the 4 of CMYK."""
DATA = b"IDAT"
"""Of PNG's pixels."""
PIXELS = rb"\x00[\x0b\x11]\x08\C{4}[\x01\x03]|IDAT"
"""What `_pixels` finds: the rest of a frame of 1 or 3 components, or PNG's data."""


def orientation(data: bytes) -> int:
    """How a picture is to be turned: EXIF's number, from 1 (not at all) to 8; 1 of data that are no picture.

    In JPEG and PNG files it counts before the pixels, behind colour profiles and texts of any length.
    """
    end = _pixels(data)
    if not data.startswith(RIFF) and all(data.find(mark, 0, end) < 0 for mark in EXIF):
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except DAMAGE:
        return UPRIGHT
    return int(found) if found in range(UPRIGHT, 9) else UPRIGHT


def plain(data: bytes) -> bool:
    """Whether TensorFlow makes of it what Pillow does: a grey or coloured JPEG or PNG that is shown as it is.

    TensorFlow writes beyond its memory where it is given an animated WebP, and has other colours for CMYK.
    """
    return _pixels(data) is not None and orientation(data) == UPRIGHT


def _pixels(data: bytes) -> int | None:
    """Where those of a PNG, or what is said of those of a JPEG of 1 or 3 components, begin; None of anything else."""
    if data.startswith(PNG):
        found = data.find(DATA)
        return None if found < 0 else found
    at = 2 if data.startswith(JPEG) else len(data)
    while at + COMPONENTS < len(data) and data[at] == 0xFF and data[at + 1] != SCAN:
        if data[at + 1] in FRAMES:
            return at if data[at + COMPONENTS] in (1, 3) else None
        # A segment begins with its length; before a marker there may be bytes that fill up.
        filled = data[at + 1] == 0xFF
        at += 1 if filled else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def all_plain(encoded: tf.Tensor) -> tf.Tensor:
    """Whether all pictures are `plain`, in a graph: bool `[]` of strings `[k]`."""

    def look(encoded: np.ndarray) -> np.bool_:
        return np.bool_(all(plain(data) for data in encoded))

    def have(pattern: bytes) -> tf.Tensor:
        return tf.strings.regex_full_match(heads, rb"\C*(?:%s)\C*" % pattern)

    # Only those whose head does not say it go to Python, which would cost all of them a tenth.
    heads = tf.strings.substr(encoded, 0, HEAD)
    known = [tf.strings.substr(encoded, 0, len(start)) == start for start in (JPEG, PNG)]
    return tf.cond(
        tf.reduce_all(
            (known[0] | known[1]) & have(PIXELS) & ~have(b"|".join(map(re.escape, EXIF)))
        ),
        lambda: True,
        lambda: tf.ensure_shape(tf.numpy_function(look, [encoded], tf.bool, stateful=False), []),
    )
