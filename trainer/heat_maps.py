"""Heat maps of numbers along a text, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMN, ROW = 14, 8
"""Pixels of a number."""
MARGIN, GAP, BAR = 16, 6, 18
TITLE_SIZE, LABEL_SIZE = 15, 12
LONGEST_LABEL = 100
"""Pixels, at which the labels of words are cut."""
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")
"""Looked for in this order, since Pillow's own font has English letters only."""
SCALE = np.array([-1, -0.5, 0, 0.5, 1])
COLOURS = np.array([[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]])
"""From -1, blue, to 1, red, red, green and blue: the map RdBu of Brewer and Harrower (2003)."""
SPECIAL = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def heat_maps(panels: Mapping[str, np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """A picture of panels that share their columns.

    Args:
      panels: by title, numbers from -1 to 1, `[rows, columns]`.
      labels: of the columns, below each panel; upright if one has more than 2 characters.

    Returns:
      uint8 `[height, width, 3]`.
    """
    labels = [label.translate(SPECIAL) for label in labels]
    upright = any(len(label) > 2 for label in labels)
    font, title_font = _font(LABEL_SIZE), _font(TITLE_SIZE)
    drawn = [_label(label, font, upright) for label in labels]
    below = max(label.height for label in drawn)
    title_height = TITLE_SIZE + GAP
    heights = [title_height + ROW * len(panel) + 2 + below + MARGIN for panel in panels.values()]
    left, right = MARGIN, MARGIN + COLUMN * len(labels)
    size = (right + 2 * MARGIN + BAR + 2 * LABEL_SIZE + MARGIN, MARGIN + sum(heights))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    top = MARGIN
    for (title, panel), height in zip(panels.items(), heights, strict=True):
        draw.text((left, top), title, "black", title_font)
        area = _coloured(panel).repeat(ROW, 0).repeat(COLUMN, 1)
        picture.paste(Image.fromarray(area), (left, top + title_height))
        for column, label in enumerate(drawn):
            x = left + COLUMN * column + (COLUMN - label.width) // 2
            picture.paste(label, (x, top + title_height + area.shape[0] + 2))
        top += height
    _draw_bar(picture, draw, right + 2 * MARGIN, MARGIN + title_height, font)
    return np.asarray(picture)


def _coloured(values: np.ndarray) -> np.ndarray:
    """Numbers `[…]` -> uint8 `[…, 3]`; those beyond -1 and 1 as these."""
    channels = [np.interp(values, SCALE, channel) for channel in COLOURS.T]
    return np.stack(channels, -1).round().astype(np.uint8)


def _label(text: str, font: ImageFont.FreeTypeFont, upright: bool) -> Image.Image:
    width, height = max(1, round(font.getlength(text))), LABEL_SIZE + 4
    label = Image.new("RGB", (min(width, LONGEST_LABEL), height), "white")
    ImageDraw.Draw(label).text((0, 0), text, "black", font)
    return label.transpose(Image.Transpose.ROTATE_270) if upright else label


def _draw_bar(
    picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, font: ImageFont.FreeTypeFont
) -> None:
    """The scale of colours, from 1 down to -1."""
    height = 16 * ROW
    values = np.linspace(1, -1, height)[:, np.newaxis].repeat(BAR, 1)
    picture.paste(Image.fromarray(_coloured(values)), (x, y))
    for place, text in enumerate(("1", "0", "-1")):
        middle = y + place * (height - 1) // 2
        draw.text((x + BAR + GAP, middle), text, "black", font, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
