"""Images in memory and the files they are read from; each kind of damage is named."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.batches import DataError
from input_pipeline.images import Images, idx_images, mnist, numpy_images, read_idx, read_numpy

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0], np.uint8)


def write_idx(path, array, code=8):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture
def files(tmp_path):
    """name -> the same images and labels, in each form."""
    np.save(tmp_path / "images.npy", PICTURES[..., np.newaxis])
    np.save(tmp_path / "labels.npy", LABELS.astype(np.int64))
    np.savez(tmp_path / "both.npz", x=PICTURES, y=LABELS)
    np.savez_compressed(tmp_path / "one.npz", PICTURES)
    return {
        "idx": (
            idx_images,
            write_idx(tmp_path / "images-idx3-ubyte", PICTURES),
            write_idx(tmp_path / "labels-idx1-ubyte", LABELS),
        ),
        "idx.gz": (
            idx_images,
            write_idx(tmp_path / "images.gz", PICTURES),
            write_idx(tmp_path / "labels.gz", LABELS),
        ),
        "npy": (numpy_images, f"{tmp_path}/images.npy", f"{tmp_path}/labels.npy"),
        "npz": (numpy_images, f"{tmp_path}/both.npz:x", f"{tmp_path}/both.npz:y"),
        "npz of one": (numpy_images, f"{tmp_path}/one.npz", None),
    }


@pytest.mark.parametrize("form", ["idx", "idx.gz", "npy", "npz", "npz of one"])
def test_each_form_holds_the_same(form, files):
    make, *paths = files[form]
    source = make(*paths)
    assert len(source) == 5
    read = source.read(tf.constant([4, 0, 4], tf.int64))
    assert source.element_spec["image"].shape == (3, 4, 1)
    assert read["image"].dtype == source.element_spec["image"].dtype
    np.testing.assert_array_equal(
        read["image"], (PICTURES[[4, 0, 4]] / np.float32(255))[..., np.newaxis]
    )
    np.testing.assert_array_equal(source.decode(read["image"])[..., 0], PICTURES[[4, 0, 4]])
    if paths[1]:
        assert source.element_spec["label"].cardinality == 3
        np.testing.assert_array_equal(read["label"], LABELS[[4, 0, 4]])
    else:
        assert read.keys() == source.element_spec.keys() == {"image"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_four_files(suffix, tmp_path):
    for name, count in (("train", 5), ("t10k", 2)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", PICTURES[:count])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", LABELS[:count])
    for part, count in (("train", 5), ("test", 2)):
        read = mnist(str(tmp_path), part).read(tf.range(count, dtype=tf.int64))
        np.testing.assert_array_equal(np.rint(read["image"][..., 0] * 255), PICTURES[:count])
        np.testing.assert_array_equal(read["label"], LABELS[:count])
    with pytest.raises(ValueError, match='the part of mnist is "t10k"'):
        mnist(str(tmp_path), "t10k")
    with pytest.raises(DataError, match=r"elsewhere/train-images-idx3-ubyte cannot be read"):
        mnist(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(("code", "dtype"), [(9, "i1"), (11, ">i2"), (12, ">i4"), (14, ">f8")])
def test_idx_files_of_other_numbers(code, dtype, tmp_path):
    array = np.arange(-3, 3).reshape(2, 3).astype(dtype)
    np.testing.assert_array_equal(read_idx(write_idx(tmp_path / "a", array, code)), array)


def test_classes_may_be_more_than_the_labels_here():
    assert Images(PICTURES, LABELS, classes=10).element_spec["label"].cardinality == 10
    with pytest.raises(
        DataError, match=f"the largest label is {LABELS.max()}, and there are 1 classes"
    ):
        Images(PICTURES, LABELS, classes=1)


def damaged(tmp_path, data):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    return str(path)


IDX = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no idx file (it begins with nothing"),
        (b"\x89PNG\r\n", "is no idx file (it begins with 89504e47"),
        (IDX[:-1], r"has 17 bytes, and 18 by its header for [2, 3]"),
        (IDX + b"\0", "has 19 bytes, and 18"),
        (IDX[:7], "has 7 bytes, and 12 by its header for [0, 0]"),
        (gzip.compress(IDX, mtime=0)[:-9], "was cut off or altered: fetch it again"),
        (gzip.compress(IDX, mtime=0)[:-3] + b"abc", "cannot be read (it is damaged)"),
    ],
)
def test_a_damaged_idx_file_is_named(data, message, tmp_path):
    path = damaged(tmp_path, data)
    with pytest.raises(DataError) as error:
        idx_images(path)
    assert path in str(error.value) and message in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file or directory\)"):
        idx_images(f"{tmp_path}/nowhere")
    with pytest.raises(DataError, match=r"nowhere\.npy is not there"):
        numpy_images(f"{tmp_path}/nowhere.npy")


def numpy_file(save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def encrypted(archive):
    """As one says of itself."""
    flags = archive.index(b"PK\1\2") + 8
    return archive[:flags] + bytes([archive[flags] | 1]) + archive[flags + 1 :]


WHOLE = numpy_file(np.save, PICTURES)
OBJECTS = np.array([1, None])


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "", "is no NumPy file (it begins with nothing): write it with numpy.save"),
        (b"GIF89a", "", "is no NumPy file (it begins with 474946383961)"),
        (pickle.dumps([1]), "", "is no NumPy file (it begins with 80"),
        (WHOLE[:40], "", "was cut off or altered: fetch or write it again"),
        (WHOLE[:-1], "", "was cut off or altered"),
        (WHOLE.replace(b"(5,", b"(9" + 12 * b"9"), "", "was cut off or altered"),
        (WHOLE.replace(b"), }", b"), #"), "", "was cut off or altered"),
        (encrypted(numpy_file(np.savez, x=LABELS)), "", "is damaged"),
        (numpy_file(np.save, OBJECTS), "", "holds Python objects, which are not read"),
        (numpy_file(np.savez, x=OBJECTS), ":x", "x in PATH holds Python objects"),
        (numpy_file(np.savez), "", "has no arrays: write it with numpy.savez"),
    ],
)
def test_what_is_no_numpy_array_is_named(data, name, message, tmp_path):
    path = tmp_path / "some.npz"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read_numpy(f"{path}{name}")
    assert str(path) in str(error.value) and message.replace("PATH", str(path)) in str(error.value)


def test_an_array_that_cannot_be_read_is_named(tmp_path, files):
    with pytest.raises(
        DataError, match=r"cannot be read \(Is a directory\): mend it, or name another"
    ):
        read_numpy(str(tmp_path))
    _, images, _ = files["npz"]
    with pytest.raises(DataError, match=r"has the arrays x, y: name one, such as .*both\.npz:x"):
        read_numpy(images.removesuffix(":x"))
    with pytest.raises(DataError, match='has no array "z", but x, y: name one, such as'):
        read_numpy(images.replace(":x", ":z"))


def test_which_of_two_files_is_of_another_form_is_said(tmp_path, files):
    _, images, labels = files["npz"]
    with pytest.raises(DataError, match=r"npz:y: the images are uint8 \[5\]: they must be bytes"):
        numpy_images(labels, labels)
    with pytest.raises(DataError, match=r"npz:x: the labels are uint8 \[5, 3, 4\] for 5 images"):
        numpy_images(images, images)
    _, images, labels = files["idx"]
    with pytest.raises(DataError, match="labels-idx1-ubyte: the images are"):
        idx_images(labels, images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PICTURES[0], None, r"the images are uint8 \[3, 4\]"),
        (PICTURES.astype(np.float32), None, r"the images are float32 \[5, 3, 4\]"),
        (PICTURES[:0], None, "at least one"),
        (PICTURES, LABELS[:4], r"the labels are uint8 \[4\] for 5 images"),
        (PICTURES, LABELS.astype(np.float32), r"the labels are float32 \[5\]"),
        (PICTURES[:, :0], None, r"the images are uint8 \[5, 0, 4\]"),
        (PICTURES, LABELS.astype(np.int8) - 1, "labels are from -1 to .*: they must be numbers of"),
        (
            PICTURES,
            LABELS + np.int64(2**32),
            r"labels are from \d+ to \d+: they must be numbers of classes",
        ),
    ],
)
def test_arrays_of_another_form_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        Images(images, labels)
