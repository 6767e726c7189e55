"""Samples in the forms in which a person looks at them: pictures in a grid, texts on a page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

LONGEST_SIDE = 800
"""Pixels. Small pictures are enlarged while their grid stays within this, to fit a screen."""
GAP_GREY = 64
"""Neither black nor white, in which many pictures end."""


def grid(pictures: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Pictures side by side, row by row, in a nearly square grid with a gap of one pixel.

    Args:
      pictures: uint8 `[n, height, width, 1 or 3]`.
      classes: if picture i is of class i modulo them: as nearly square as with each column of one class.

    Returns:
      uint8 `[grid_height, grid_width, 1 or 3]`: the grid, each pixel of it (gaps too, or
      neighbours run together) k×k pixels, with the greatest whole k that keeps it within
      `LONGEST_SIDE`, and at least 1. Cells without a picture have the colour of the gap.
    """
    pictures = np.asarray(pictures)
    count = _check(pictures, 4)
    columns = math.isqrt(count - 1) + 1
    if classes and classes <= count:
        columns = classes * max(1, round(columns / classes))
    rows = -(-count // columns)
    cells = np.full([rows * columns, *pictures.shape[1:]], GAP_GREY, np.uint8)
    cells[:count] = pictures
    return table(cells.reshape(rows, columns, *pictures.shape[1:]))


def table(cells: np.ndarray) -> np.ndarray:
    """As `grid`, of pictures that have their places: uint8 `[rows, columns, height, width, 1 or 3]`."""
    _check(cells, 5)
    rows, columns, height, width, channels = cells.shape
    gapped = np.full([rows, columns, height + 1, width + 1, channels], GAP_GREY, np.uint8)
    gapped[:, :, :-1, :-1] = cells
    whole = gapped.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    whole = whole[:-1, :-1]
    factor = max(1, LONGEST_SIDE // max(whole.shape[:2]))
    return whole.repeat(factor, axis=0).repeat(factor, axis=1)


def _check(pictures: np.ndarray, dimensions: int) -> int:
    """The length of the first dimension."""
    shape = pictures.shape
    wrong = pictures.dtype != np.uint8 or len(shape) != dimensions or 0 in shape
    if wrong or shape[-1] not in (1, 3):
        axes = ["n"] if dimensions == 4 else ["rows", "columns"]
        raise ValueError(
            f"pictures are {pictures.dtype} {list(shape)}: "
            f"they must be uint8 [{', '.join(axes)}, height, width, 1 or 3], with no dimension 0"
        )
    return shape[0]


def animation(frames: Sequence[bytes]) -> bytes:
    """An animated GIF of PNG files, two frames a second, that stays at the last one for three seconds.

    Frames of another size than the last are left out.
    """
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    first, *more = (picture for picture in pictures if picture.size == pictures[-1].size)
    file, durations = io.BytesIO(), [500] * len(more) + [3000]
    first.save(file, "GIF", save_all=True, append_images=more, duration=durations, loop=0)
    return file.getvalue()


def png(picture: np.ndarray) -> bytes:
    """The PNG file of a picture, uint8 `[height, width, 1 or 3]`."""
    file = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, format="PNG")
    return file.getvalue()


def file(decoded: np.ndarray | Sequence[str], classes: int | None = None) -> tuple[str, bytes]:
    """The suffix and the bytes of the file that shows samples: a grid of pictures, or texts on a page.

    Args:
      decoded: uint8 pictures `[n, height, width, 1 or 3]`, or texts.
      classes: of pictures, see `grid`.

    Raises:
      TypeError: for anything else.
    """
    if isinstance(decoded, np.ndarray):
        return ".png", png(grid(decoded, classes))
    if isinstance(decoded, (list, tuple)) and all(isinstance(text, str) for text in decoded):
        return ".txt", page(decoded).encode(errors="replace")
    raise TypeError(
        f"samples are {type(decoded).__name__}: they must be an array of pictures or a list of texts"
    )


def page(texts: Sequence[str], skip: int = 0) -> str:
    """Texts one below the other, each under its number, for a .txt file; without the first `skip`."""
    return "\n".join(
        f"{heading(number, len(texts))}\n{text}\n"
        for number, text in enumerate(texts[skip:], skip + 1)
    )


def heading(number: int, count: int) -> str:
    """The line above a text on a page."""
    return f"=== {number}/{count} ==="


def markdown(texts: Sequence[str]) -> str:
    """Texts as Markdown, each under its number.

    They are indented code, which shows spaces and line ends as they are, and which, unlike a
    fence, no text can end.
    """
    return "\n\n".join(
        f"**{number}/{len(texts)}**\n\n" + "\n".join("    " + line for line in text.split("\n"))
        for number, text in enumerate(texts, 1)
    )
