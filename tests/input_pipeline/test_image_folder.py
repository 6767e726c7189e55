"""A folder of pictures: order, classes, cutting to one size; what cannot be used is named."""

import errno
import io
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageCms

from input_pipeline.batches import Batches, DataError, Slice
from input_pipeline.headers import HEAD
from input_pipeline.image_folder import ImageFolder

RANDOM = np.random.default_rng(0)


def picture(path, height=6, width=4, channels=3):
    """Writes a picture and returns its bytes, `[height, width, channels]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RANDOM.integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(array if channels == 3 else array[..., 0]).save(path)
    return array


def read(source, *ids):
    return {k: v.numpy() for k, v in source.read(tf.constant(ids, tf.int64)).items()}


def test_pictures_come_in_the_order_of_their_names(tmp_path):
    written = {name: picture(tmp_path / name) for name in ("b.png", "a.png", "c.PNG")}
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    source = ImageFolder(str(tmp_path))
    assert len(source) == 3 and source.classes == []
    assert source.element_spec["image"].shape == (6, 4, 3)
    found = read(source, 0, 2, 0)
    assert found.keys() == {"image"}
    for image, name in zip(found["image"], ("a.png", "c.PNG", "a.png"), strict=True):
        np.testing.assert_array_equal(image, written[name] / np.float32(255))
    np.testing.assert_array_equal(source.decode(found["image"])[1], written["c.PNG"])


def test_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = ImageFolder(str(tmp_path))
    assert source.classes == ["cat", "dog"] and source.element_spec["label"].cardinality == 2
    np.testing.assert_array_equal(read(source, 0, 1, 2)["label"], [0, 0, 1])


def test_pictures_are_cut_to_squares_and_converted(tmp_path):
    # The middle of a picture of stripes is one grey; the rest is cut off.
    stripes = np.repeat(np.array([[0] * 8 + [100] * 16 + [255] * 8], np.uint8), 16, 0)
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    picture(tmp_path / "tall.jpg", height=64, width=48)
    source = ImageFolder(str(tmp_path), size=8, channels=3)
    found = read(source, 0, 1)["image"]
    assert found.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(found[1, :, 2:-2], 100 / 255, atol=1e-6)
    grey = ImageFolder(str(tmp_path), size=8, channels=1)
    assert read(grey, 0)["image"].shape == (1, 8, 8, 1)


def test_pictures_are_brought_to_any_form(tmp_path):
    """Each on its own; by hand: halves of one grey each, of which the middle form keeps both."""
    halves = np.repeat(np.array([[0] * 16 + [200] * 16], np.uint8), 16, 0)
    Image.fromarray(halves).save(tmp_path / "a.png")
    Image.fromarray(halves.T).save(tmp_path / "b.png")
    cropped = read(ImageFolder(str(tmp_path), size=(8, 4)), 0, 1)["image"] * 255
    assert cropped.shape == (2, 8, 4, 1)
    np.testing.assert_allclose(cropped[0, :, [0, 3], 0], [[0] * 8, [200] * 8], atol=20)
    np.testing.assert_allclose(cropped[1, [0, 7], :, 0], [[0] * 4, [200] * 4], atol=0)
    stretched = read(ImageFolder(str(tmp_path), size=(8, 4), fit="stretch"), 0, 1)["image"] * 255
    np.testing.assert_allclose(stretched[0, :, [0, 3], 0], [[0] * 8, [200] * 8], atol=20)
    reference = Image.fromarray(halves.T).resize((4, 8), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(stretched[1, ..., 0], np.asarray(reference), atol=1e-4)


def test_whatever_decodes_pictures_they_are_the_same(tmp_path):
    """JPEG of each subsampling and PNG: as Pillow decodes them, bit for bit."""
    smooth = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
    large = Image.fromarray(smooth).resize((50, 38), Image.Resampling.BICUBIC)
    for number, sampling in enumerate(("4:4:4", "4:2:2", "4:2:0")):
        large.save(tmp_path / f"{number}.jpg", quality=80, subsampling=sampling)
    large.save(tmp_path / "3.png")
    large.save(tmp_path / "4.jpg", progressive=True)
    # This one has colours by number, and is converted.
    large.quantize(16).save(tmp_path / "5.png")
    found = read(ImageFolder(str(tmp_path)), *range(6))["image"]
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        pillow = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(found[number], pillow / np.float32(255))


def test_the_channels_are_those_of_the_pictures_or_converted(tmp_path):
    grey = picture(tmp_path / "a.png", channels=1)
    sixteen = RANDOM.integers(0, 2**16, (6, 4), np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "b.png")
    source = ImageFolder(str(tmp_path))
    assert source.element_spec["image"].shape == (6, 4, 1)
    found = np.rint(read(source, 0, 1)["image"] * 255)
    np.testing.assert_array_equal(found[0], grey[..., :1])
    np.testing.assert_array_equal(found[1, ..., 0], sixteen >> 8)
    coloured = read(ImageFolder(str(tmp_path), channels=3), 0, 1)["image"]
    np.testing.assert_array_equal(coloured * 255, np.repeat(found, 3, axis=-1))


def test_pictures_are_turned_as_exif_says(tmp_path):
    """In each of its eight ways, whether they are resized or not, and beside pictures without it."""
    # Corners of four greys, of which by the standard's table the first row and column are where 2, 3, … say.
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    for suffix in ("jpg", "png", "webp"):
        folder = tmp_path / suffix
        folder.mkdir()
        Image.fromarray(upright).save(folder / f"0.{suffix}", quality=100)
        for turn, array in stored.items():
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = turn
            Image.fromarray(array).save(folder / f"{turn}.{suffix}", quality=100, exif=exif)
        for source in (ImageFolder(str(folder)), ImageFolder(str(folder), size=32)):
            found = read(source, *range(9))["image"] * 255
            np.testing.assert_allclose(found[..., 0], np.broadcast_to(upright, [9, 32, 32]), atol=3)
            np.testing.assert_array_equal(found[7], read(source, 7)["image"][0] * 255)


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_is_found_behind_a_colour_profile(suffix, size, tmp_path):
    """Of 5 KB, which Pillow writes before EXIF in PNG files; and none, behind another or not, turns nothing."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += RANDOM.bytes(4600)
    profile[:4] = len(profile).to_bytes(4, "big")
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    upright = np.stack([upright] * 3, -1)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for name, array, more in (
        ("0", upright, {}),
        ("1", np.rot90(upright, 1), {"exif": turned, "icc_profile": bytes(profile)}),
        ("2", upright, {"icc_profile": bytes(profile)}),
    ):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(array).save(path, quality=100, subsampling="4:4:4", **more)
    if suffix == "png":
        assert (tmp_path / "1.png").read_bytes().index(b"eXIf") > HEAD
    found = read(ImageFolder(str(tmp_path), size=size), 0, 1, 2)["image"] * 255
    np.testing.assert_allclose(found, np.broadcast_to(upright, [3, 32, 32, 3]), atol=3)


def test_sides_change_places_where_a_picture_is_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    smooth = Image.fromarray(RANDOM.integers(0, 256, (6, 12, 3), np.uint8)).resize((240, 120))
    smooth.save(tmp_path / "a.jpg", exif=exif)
    assert ImageFolder(str(tmp_path)).element_spec["image"].shape == (240, 120, 3)
    # As those of the picture decoded whole, but for what a smaller scale of JPEG rounds.
    found = read(ImageFolder(str(tmp_path), size=(30, 15)), 0)["image"][0]
    whole = Image.open(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(whole.resize((15, 30), Image.Resampling.BICUBIC)) / 255
    assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize("suffix", ["webp", "gif", "bmp"])
def test_other_kinds_of_pictures(suffix, tmp_path):
    """Alone, and behind a picture that TensorFlow decodes."""
    array = np.kron(np.array([[10, 200], [90, 30]], np.uint8), np.ones((8, 8), np.uint8))
    coloured = np.stack([array, array[::-1], array[:, ::-1]], -1)
    Image.fromarray(coloured).save(tmp_path / f"b.{suffix}", lossless=True)
    alone = read(ImageFolder(str(tmp_path)), 0)["image"][0] * 255
    np.testing.assert_allclose(alone, coloured, atol=1e-4)
    Image.fromarray(255 - coloured).save(tmp_path / "a.png")
    both = read(ImageFolder(str(tmp_path)), 0, 1)["image"] * 255
    np.testing.assert_allclose(both, [255 - coloured, coloured], atol=1e-4)


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    """Behind a picture that TensorFlow decodes, which it does not with animated WebP: it writes beyond its memory."""
    first, second = (RANDOM.integers(0, 256, (24, 20, 3), np.uint8) for _ in range(2))
    picture(tmp_path / "a.png", 24, 20)
    for name in ("b.webp", "c.gif"):
        frames = [Image.fromarray(array) for array in (first, second)]
        frames[0].save(
            tmp_path / name, "webp", lossless=True, save_all=True, append_images=frames[1:]
        )
    for cache_mib in (0, 1):
        found = read(ImageFolder(str(tmp_path), cache_mib=cache_mib), 0, 1, 2)["image"] * 255
        np.testing.assert_allclose(found[1:], [first, first], atol=1e-4)


@pytest.mark.parametrize("kind", ["transparent GIF", "CMYK"])
def test_a_picture_is_the_same_behind_any_other(kind, tmp_path):
    """Also one that TensorFlow reads otherwise than Pillow."""
    data = io.BytesIO()
    if kind == "CMYK":
        inks = np.broadcast_to(np.array([200, 30, 30, 20], np.uint8), (8, 8, 4))
        Image.fromarray(inks, "CMYK").save(data, "JPEG")
        encoded = data.getvalue()
        start = encoded.index(b"\xff\xee")  # Adobe's word, whose inks are inverted.
        length = int.from_bytes(encoded[start + 2 : start + 4], "big")
        encoded = encoded[:start] + encoded[start + 2 + length :]
    else:
        halves = Image.fromarray(np.kron([[0, 1]], np.ones((8, 4))).astype(np.uint8), "P")
        halves.putpalette([250, 200, 100, 10, 20, 30])
        halves.save(data, "GIF", transparency=0)
        encoded = data.getvalue()
    alone, behind = tmp_path / "alone", tmp_path / "behind"
    for folder in (alone, behind):
        folder.mkdir()
        (folder / "b.jpg").write_bytes(encoded)
    picture(behind / "a.png", 8, 8)
    expected = read(ImageFolder(str(alone), channels=3), 0)["image"][0]
    for source in (ImageFolder(str(behind)), ImageFolder(str(behind), cache_mib=0)):
        np.testing.assert_array_equal(read(source, 0, 1)["image"][1], expected)


EXIF_ENTRIES = {
    "resolution of letters": struct.pack("<HHI", 0x11A, 2, 3) + b"72\0\0",
    "maker of numbers": struct.pack("<HHII", 0x10F, 5, 1, 38),
    "position of letters": struct.pack("<HHI", 0x213, 2, 3) + b"ab\0\0",
}


@pytest.mark.parametrize("entry", EXIF_ENTRIES.values(), ids=EXIF_ENTRIES)
@pytest.mark.parametrize("before", [0, 5000])
@pytest.mark.parametrize("size", [None, 32])
def test_exif_may_be_odd_and_anywhere_before_the_pixels(entry, before, size, tmp_path):
    """What else it holds matters nothing; XMP of 5 KB may come first."""
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8))
    turn = struct.pack("<HHIHH", ExifTags.Base.Orientation, 3, 1, 3, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turn + entry + bytes(4) + b"\x48\0\0\0\x01\0\0\0"
    data = io.BytesIO()
    Image.fromarray(upright[::-1, ::-1]).save(data, "JPEG", quality=100, exif=exif)
    start = data.getvalue().index(b"\xff\xe1")
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + bytes(before)
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp if before else b""
    Image.fromarray(upright).save(tmp_path / "0.jpg", quality=100)
    encoded = data.getvalue()[:start] + segment + data.getvalue()[start:]
    (tmp_path / "1.jpg").write_bytes(encoded)
    found = read(ImageFolder(str(tmp_path), size=size), 0, 1)["image"] * 255
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(upright, [2, 32, 32]), atol=3)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_32_bits_are_refused(mode, tmp_path):
    picture(tmp_path / "a.png")
    Image.new(mode, (4, 6), 300).save(tmp_path / "b.png", "TIFF")
    with pytest.raises(
        (DataError, tf.errors.OpError), match=r"b\.png cannot be read \(its pixels are numbers of"
    ):
        read(ImageFolder(str(tmp_path)), 0, 1)


def test_a_picture_too_large_is_told_so(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", 20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError, match=r"a\.png cannot be read \(it has more than 200 pixels\): make"
    ):
        ImageFolder(str(tmp_path), size=8)


def test_the_home_folder_may_be_named(tmp_path, monkeypatch):
    picture(tmp_path / "pictures/a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ImageFolder("~/pictures")) == 1


def test_names_may_be_any_bytes(tmp_path, short_delays):
    """As of an old archive, "café" in Latin-1; messages name it by its bytes."""
    for size in (None, 6):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        bad = pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
        written = picture(bad)
        picture(folder / "d.png")
        source = ImageFolder(str(folder), size=size and (6, 4), cache_mib=0)
        np.testing.assert_array_equal(read(source, 0)["image"][0], written / np.float32(255))
        for damage, message in (
            (lambda path: path.write_bytes(b"?"), "cannot be read (it is no picture, or damaged)"),
            (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        ):
            damage(bad)
            with pytest.raises(tf.errors.OpError) as error:
                tf.function(lambda s=source: s.read(tf.constant([0], tf.int64)))()
            assert f"DataError: {folder}/caf\\xe9.png {message}" in str(error.value)


def test_what_is_left_out_is_counted(tmp_path, caplog):
    for name in ("a/1.png", "b/2.png", "b/old/3.png", "b/old/older/4.jpg"):
        picture(tmp_path / name)
    for name in ("a/5.TIF", "b/6.tif", "labels.csv", "b/LICENSE"):
        (tmp_path / name).write_text("?")
    assert len(ImageFolder(str(tmp_path))) == 2
    assert caplog.messages == [
        f"left out of {tmp_path}: 1 .csv, 2 .tif, 1 without an ending, 2 deeper than a class, such as "
        f"{tmp_path}/b/old/3.png (pictures: 2)"
    ]
    caplog.clear()
    ImageFolder(str(tmp_path / "a/../b/old/older"))
    assert not caplog.messages


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Here by hand, since nothing is forbidden to root."""
    picture(tmp_path / "cat/1.png")
    scan = os.scandir

    def forbidding(path):
        if str(path).endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(DataError) as error:
        ImageFolder(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/cat cannot be read (Permission denied): make it readable, or name another folder"
    )


def bad_folder(folder, count=9, bad=(2, 3, 8)):
    """A folder whose pictures are full of their numbers, but for some that are no pictures."""
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(path)
        if number in bad:
            path.write_bytes(b"?")
    # By folders: 0 2 4 6 8, 1 3 5 7.
    return ImageFolder(str(folder), on_bad_record="skip", bad_budget=len(bad))


def test_the_next_picture_takes_the_place_of_a_bad_one(tmp_path):
    source = bad_folder(tmp_path)
    for _ in range(2):  # The second time from a folder known.
        found = read(source, *range(9))
        numbers = np.rint(found["image"][:, 0, 0, 0] * 255).astype(int)
        np.testing.assert_array_equal(numbers, [0, 4, 4, 6, 1, 1, 5, 5, 7])
        np.testing.assert_array_equal(found["label"], numbers % 2)
    data = ImageFolder(str(tmp_path), size=2, on_bad_record="skip", bad_budget=3)
    np.testing.assert_array_equal(read(data, *range(9))["image"], found["image"])


def test_the_place_is_taken_from_the_first_after_the_last(tmp_path):
    source = bad_folder(tmp_path, bad=(0, 7))
    numbers = np.rint(read(source, 8, 0, 1)["image"][:, 0, 0, 0] * 255)
    np.testing.assert_array_equal(numbers, [2, 2, 2])


def test_skipped_pictures_are_the_same_on_any_layout(tmp_path):
    def images(worker, step):
        data = Batches(bad_folder(tmp_path), global_batch=4, seed=3).training(worker, step=step)
        return [element["image"][0].numpy() for element in data.take(4 * worker.count)]

    alone = images(Slice(), 2)
    first, second = (images(Slice(4, 2 * worker, 2), 2) for worker in range(2))
    for step in range(4):
        parts = [*first[2 * step : 2 * step + 2], *second[2 * step : 2 * step + 2]]
        np.testing.assert_array_equal(np.concatenate(parts), alone[step])


def test_more_bad_pictures_than_the_budget_are_an_error(tmp_path):
    bad_folder(tmp_path, bad=(2, 3, 5, 8))
    source = ImageFolder(str(tmp_path), on_bad_record="skip", bad_budget=3)
    read(source, 1, 4)
    with pytest.raises(DataError) as error:
        read(source, 6)
    assert str(error.value) == (
        "4 pictures cannot be read, more than ImageFolder.bad_budget = 3: mend or replace "
        f"{tmp_path}/0/8.png, {tmp_path}/1/3.png, {tmp_path}/1/5.png, …"
    )
    with pytest.raises(DataError, match="none of the 9 pictures can be read"):
        bad_folder(tmp_path, bad=range(9))


@pytest.mark.parametrize("size", [None, (3, 2)])
def test_pictures_are_decoded_once_where_the_cache_holds_all(tmp_path, size):
    """By files that are gone: a part of a batch is decoded beside what is in the cache."""
    for number in range(9):
        picture(tmp_path / f"{number % 2}" / f"{number}.png")
    expected = read(ImageFolder(str(tmp_path), size, cache_mib=0), *range(9))
    source = ImageFolder(str(tmp_path), size)
    load = tf.function(source.read)
    for first in (0, 3):
        load(tf.constant(range(first, first + 4), tf.int64))
    for path in source.paths[:7]:
        path.unlink()
    for ids in (range(7), [6, 0, 6], [7, 0, 1, 2, 8, 3, 4, 5]):
        found = load(tf.constant(ids, tf.int64))
        # A graph multiplies by 1/255 what is divided outside of it.
        np.testing.assert_allclose(found["image"], expected["image"][ids], atol=1e-7)
        np.testing.assert_array_equal(found["label"], expected["label"][ids])


def test_the_cache_knows_what_took_the_place_of_a_bad_picture(tmp_path):
    source = bad_folder(tmp_path)
    expected = read(source, *range(9))
    for path in source.paths:
        path.unlink()
    found = read(source, *range(9))
    np.testing.assert_array_equal(found["image"], expected["image"])
    np.testing.assert_array_equal(found["label"], expected["label"])
    assert len(source.skipped) == 3


def test_a_set_that_is_too_large_for_the_cache_is_not_kept(tmp_path):
    """Three pictures of 0.75 MiB, of which two fit into 2 MiB."""
    for number in range(3):
        picture(tmp_path / f"{number}.png", height=512, width=512)
    for cache_mib, kept in ((2, False), (3, True)):
        source = ImageFolder(str(tmp_path), cache_mib=cache_mib)
        before = read(source, 1, 2)["image"]
        picture(source.paths[1], height=512, width=512)
        assert np.array_equal(read(source, 1)["image"][0], before[0]) == kept


def test_batches_of_a_folder_have_static_shapes(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png")
    source = ImageFolder(str(tmp_path))
    data = Batches(source, global_batch=4).training(Slice())
    assert data.element_spec["image"].shape == (1, 4, 6, 4, 3)
    rows = next(iter(data))["image"][0]
    everything = read(source, *range(5))["image"]
    assert all(any(np.array_equal(row, one) for one in everything) for row in rows)


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    for name in ("a/1.png", "b/2.png", "b/.3.png", ".thumbnails/1.png"):
        picture(tmp_path / name)
    source = ImageFolder(str(tmp_path))
    assert source.classes == ["a", "b"]
    assert [path.name for path in source.paths] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda f: None,
            "has no pictures: put files that end in .jpg, .jpeg, .png, .webp, .gif, .bmp",
        ),
        (
            lambda f: picture(f / "train" / "cat" / "1.png"),
            "there, or in folders, one a class, or name FOLDER/train",
        ),
        (lambda f: f.rmdir(), "is no folder"),
        (
            lambda f: (picture(f / "a.png"), picture(f / "b" / "c.png")),
            "has pictures, such as a.png, and folders of pictures, such as b",
        ),
        (lambda f: (f / "a.png").write_bytes(b"?"), "a.png cannot be read (it is no picture"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(write, message, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    with pytest.raises(DataError) as error:
        ImageFolder(str(folder))
    assert message.replace("FOLDER", str(folder)) in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (
            lambda path: picture(path, height=5),
            "has 5×4 pixels, and the first picture 6×4: set ImageFolder.size",
        ),
        (
            lambda path: picture(path, channels=1),
            "is grey, and the first picture coloured: set ImageFolder.channels to 1 or 3",
        ),
        (
            lambda path: picture(path, height=5, channels=1),
            "is grey and has 5×4 pixels, and the first picture is coloured and has 6×4: set ImageFolder.size, and "
            "ImageFolder.channels to 1 or 3",
        ),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(damage, message, tmp_path, short_delays):
    """As the training meets it: an error of the data set."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    source = ImageFolder(str(tmp_path))
    damage(tmp_path / "b.png")
    with pytest.raises(tf.errors.OpError) as error:
        next(iter(Batches(source, global_batch=2).training(Slice())))
    assert f"DataError: {tmp_path / 'b.png'}" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": 2},
            "ImageFolder.channels is 2: it must be 1 for grey, 3 for colour, or None",
        ),
        ({"size": (4, 0)}, r"ImageFolder.size is \(4, 0\): it must be height and width"),
        ({"size": (4,)}, r"ImageFolder.size is \(4,\)"),
        ({"fit": "pad"}, 'ImageFolder.fit is "pad": it must be "crop" or "stretch"'),
        ({"on_bad_record": "ignore"}, 'ImageFolder.on_bad_record is "ignore"'),
        ({"bad_budget": -1}, "ImageFolder.bad_budget is -1: it must be at least 0"),
        ({"cache_mib": -1}, "ImageFolder.cache_mib is -1: it must be at least 0"),
    ],
)
def test_arguments_are_checked(arguments, message, tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), **arguments)
