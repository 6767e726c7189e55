"""Heat maps to the pixel."""

import numpy as np
import PIL.ImageFont
import pytest

from trainer import heat_maps

COLUMN, ROW, MARGIN = heat_maps.COLUMN, heat_maps.ROW, heat_maps.MARGIN
TOP = MARGIN + heat_maps.TITLE_SIZE + heat_maps.GAP
"""Of the first panel, in pixels."""


@pytest.fixture(params=[True, False])
def fonts(request, monkeypatch):
    """With a font of the machine, if it has one, and with Pillow's."""
    if not request.param:
        monkeypatch.setattr(heat_maps, "FONTS", ("none such.ttf",))


def cells(picture, top, rows, columns):
    """The colours of a panel's numbers `[rows, columns, 3]`, each of which fills a rectangle."""
    area = picture[top : top + rows * ROW, MARGIN : MARGIN + columns * COLUMN]
    blocks = area.reshape(rows, ROW, columns, COLUMN, 3)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))
    return blocks[:, 0, :, 0]


@pytest.mark.usefixtures("fonts")
def test_numbers_have_their_colours_and_columns_their_labels():
    first = np.array([[-1, 0, 1], [0.25, -0.5, 2]])
    picture = heat_maps.heat_maps({"one": first, "two": np.zeros([1, 3])}, ["a", "\n", " "])
    assert picture.dtype == np.uint8
    white, blue, red = [247, 247, 247], [5, 48, 97], [103, 0, 31]
    assert cells(picture, TOP, 2, 3).tolist() == [
        [blue, white, red],
        [[230, 172, 162], [67, 147, 195], red],
    ]
    # Below a panel are its labels: a letter, the two of \n, and nothing for a space.
    labels = slice(TOP + 2 * ROW + 2, TOP + 2 * ROW + 2 + heat_maps.LABEL_SIZE + 4)
    ink = [
        (picture[labels, MARGIN + n * COLUMN : MARGIN + (n + 1) * COLUMN] < 128).sum()
        for n in range(3)
    ]
    assert ink[0] > 0 and ink[1] > 0 and ink[2] == 0
    second = labels.stop + MARGIN + heat_maps.TITLE_SIZE + heat_maps.GAP
    assert (cells(picture, second, 1, 3) == 247).all()


@pytest.mark.usefixtures("fonts")
def test_words_are_written_upright():
    """The picture is as much longer as the longest is, up to a limit, and no wider."""
    panel = {"gate": np.zeros([4, 2])}
    short, words, long = (
        heat_maps.heat_maps(panel, [word, "a"]) for word in ("b", "statement", "statement" * 20)
    )
    assert short.shape[1] == words.shape[1] == long.shape[1]
    height = heat_maps.LABEL_SIZE + 4
    length = heat_maps._font(heat_maps.LABEL_SIZE).getlength("statement")
    assert len(words) - len(short) == pytest.approx(length - height, abs=1)
    assert len(long) - len(short) == heat_maps.LONGEST_LABEL - height


def test_pillows_own_font_is_the_last_resort(monkeypatch):
    monkeypatch.setattr(heat_maps, "FONTS", ())
    assert isinstance(heat_maps._font(12), PIL.ImageFont.FreeTypeFont)
