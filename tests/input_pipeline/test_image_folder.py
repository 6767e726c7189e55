"""A folder of pictures: order, classes, cutting to one size; what cannot be used is named."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline.batches import Batches, DataError, Slice
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


def test_batches_of_a_folder_have_static_shapes(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png")
    source = ImageFolder(str(tmp_path))
    data = Batches(source, global_batch=4).training(Slice())
    assert data.element_spec["image"].shape == (1, 4, 6, 4, 3)
    rows = next(iter(data))["image"][0]
    everything = read(source, *range(5))["image"]
    assert all(any(np.array_equal(row, one) for one in everything) for row in rows)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: None, "has no pictures: put files that end in .jpg, .jpeg, .png there"),
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
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (
            lambda path: picture(path, height=5),
            "has 5×4 pixels, and the first picture 6×4: set ImageFolder.size",
        ),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(damage, message, tmp_path):
    """As the training meets it: an error of the data set."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    source = ImageFolder(str(tmp_path))
    damage(tmp_path / "b.png")
    with pytest.raises(tf.errors.OpError) as error:
        next(iter(Batches(source, global_batch=2).training(Slice())))
    assert f"DataError: {tmp_path / 'b.png'}" in str(error.value) and message in str(error.value)


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="channels 2"):
        ImageFolder(str(tmp_path), channels=2)
