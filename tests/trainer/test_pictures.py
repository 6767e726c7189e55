"""Grids to the pixel, files to the byte."""

import io

import numpy as np
import PIL.Image
import pytest

from trainer import pictures

GREY = pictures.GAP_GREY


def test_grid_of_three_pictures_by_hand():
    # 2 columns: 3 × 2 + a gap of 1 are 5 wide, 2 × 1 + a gap of 1 are 5 high: 800 // 5 = 160.
    three = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]], np.uint8)
    by_hand = [
        [1, 2, GREY, 5, 6],
        [3, 4, GREY, 7, 8],
        [GREY, GREY, GREY, GREY, GREY],
        [9, 10, GREY, GREY, GREY],
        [11, 12, GREY, GREY, GREY],
    ]
    result = pictures.grid(three[..., None])
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[..., 0], np.kron(by_hand, np.ones([160, 160], np.uint8)))


def test_colours_stay_together():
    two = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    result = pictures.grid(two)  # 5 × 1, each pixel 160 × 160.
    assert result.shape == (160, 800, 3)
    assert result[0, ::160].tolist() == [[0, 1, 2], [3, 4, 5], [GREY] * 3, [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 8, 8, 1), (781, 781)),  # 8 × 8 + 7 = 71, times 11.
        ((60, 8, 8, 1), (781, 781)),
        ((16, 28, 28, 1), (690, 690)),  # 4 × 28 + 3 = 115, times 6.
        ((5, 10, 20, 3), (252, 744)),  # 3 columns of 20, 2 rows of 10: 62 × 21, times 12.
        ((1, 8, 8, 1), (800, 800)),
        ((4, 500, 300, 3), (1001, 601)),  # Too large already: as it is.
    ],
)
def test_size_of_the_grid(shape, size):
    assert pictures.grid(np.zeros(shape, np.uint8)).shape == (*size, shape[3])


@pytest.mark.parametrize(
    ("count", "classes", "columns"), [(64, 3, 9), (100, 10, 10), (10, 4, 4), (5, 8, 3), (9, 0, 3)]
)
def test_columns_of_classes(count, classes, columns):
    """Of as many columns as are a multiple of the classes, where there is one picture of each."""
    side = pictures.grid(np.zeros([count, 500, 500, 1], np.uint8), classes).shape[1]
    assert side == 501 * columns - 1


def test_every_small_grid_is_visible_and_fits():
    for count in range(1, 101):
        side = pictures.grid(np.zeros([count, 8, 8, 1], np.uint8)).shape[1]
        assert 400 <= side <= 800, count


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ([4, 8, 8], np.uint8),
        ([4, 8, 8, 2], np.uint8),
        ([0, 8, 8, 1], np.uint8),
        ([4, 8, 8, 1], np.float32),
    ],
)
def test_what_is_no_pictures_is_refused(shape, dtype):
    with pytest.raises(ValueError) as caught:
        pictures.grid(np.zeros(shape, dtype))
    assert str(caught.value) == (
        f"pictures are {np.dtype(dtype)} {shape}: "
        "they must be uint8 [n, height, width, 1 or 3], with no dimension 0"
    )


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_keeps_every_pixel(channels, mode):
    picture = np.random.default_rng(0).integers(0, 256, [5, 7, channels], np.uint8)
    image = PIL.Image.open(io.BytesIO(pictures.png(picture)))
    assert (image.format, image.mode) == ("PNG", mode)
    np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)


def test_page():
    assert pictures.page(["a\n b", ""]) == "=== 1/2 ===\na\n b\n\n=== 2/2 ===\n\n"


def test_markdown_is_indented_code():
    expected = "**1/2**\n\n    a\n    ```\n     b\n\n**2/2**\n\n    c"
    assert pictures.markdown(["a\n```\n b", "c"]) == expected


def test_a_table_keeps_its_places():
    cells = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
    result = pictures.table(cells)  # 5 × 3, each pixel 160 × 160.
    assert result.shape == (480, 800, 1)
    by_hand = [[0, GREY, 1, GREY, 2], [GREY] * 5, [3, GREY, 4, GREY, 5]]
    np.testing.assert_array_equal(result[::160, ::160, 0], by_hand)
    with pytest.raises(ValueError, match=r"uint8 \[rows, columns, height, width, 1 or 3\]"):
        pictures.table(cells[0])


def test_an_animation_shows_each_picture_and_stays_at_the_last():
    levels = [0, 100, 255]
    frames = [pictures.png(np.full([4, 5, 1], level, np.uint8)) for level in levels]
    with PIL.Image.open(io.BytesIO(pictures.animation(frames))) as animation:
        assert (animation.n_frames, animation.size) == (3, (5, 4))
        for number, level in enumerate(levels):
            animation.seek(number)
            assert np.asarray(animation.convert("L"))[0, 0] == level
            assert animation.info["duration"] == (3000 if number == 2 else 500)


def test_an_animation_leaves_out_pictures_of_another_size():
    sizes = ([4, 5, 1], [8, 8, 1], [4, 5, 1])
    frames = [pictures.png(np.full(size, 9 * n, np.uint8)) for n, size in enumerate(sizes)]
    with PIL.Image.open(io.BytesIO(pictures.animation(frames))) as animation:
        assert (animation.n_frames, animation.size) == (2, (5, 4))
