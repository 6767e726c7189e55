"""Packed folders: what was packed comes back, the same bytes after any interruption; what is damaged is named."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import manifest, packing, writing
from input_pipeline.batches import DataError, Feature
from input_pipeline.image_folder import ImageFolder
from input_pipeline.images import Images
from input_pipeline.manifest import verify
from input_pipeline.packed import Packed
from input_pipeline.packing import pack

RANDOM = np.random.default_rng(0)
COUNT = 3 * packing.CHUNK + 17
PICTURES = RANDOM.integers(0, 256, (COUNT, 3, 5, 3), np.uint8)
LABELS = RANDOM.integers(0, 7, COUNT)
SOURCE = Images(PICTURES, LABELS, classes=9)


def same(done, skipped):
    return "same"


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack(SOURCE, str(folder))
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def test_what_was_packed_comes_back(packed):
    source = Packed(str(packed))
    assert len(source) == COUNT and source.classes == []
    assert source.element_spec == SOURCE.element_spec
    ids = tf.constant([COUNT - 1, 0, 300, 0], tf.int64)
    found, expected = source.read(ids), SOURCE.read(ids)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(source.decode(found["image"]), PICTURES[ids.numpy()])


def test_the_files_are_what_numpy_and_their_index_say(packed):
    np.testing.assert_array_equal(np.load(packed / "images.npy"), PICTURES)
    labels = np.load(packed / "labels.npy")
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS)
    index = json.loads((packed / "index.json").read_text())
    files = index.pop("files")
    assert index == {
        "format": "lockstep images",
        "version": 1,
        "count": COUNT,
        "shape": [3, 5, 3],
        "classes": [],
        "cardinality": 9,
    }
    assert files == {
        name: {
            "bytes": (packed / name).stat().st_size,
            "sha256": hashlib.sha256((packed / name).read_bytes()).hexdigest(),
        }
        for name in ("images.npy", "labels.npy")
    }
    assert sorted(path.name for path in packed.iterdir()) == [
        "images.npy",
        "index.json",
        "labels.npy",
    ]
    assert [path.name for path in packed.parent.iterdir()] == ["set"]


def test_images_without_labels(tmp_path):
    pack(Images(PICTURES[:5]), f"{tmp_path}/set")
    source = Packed(f"{tmp_path}/set")
    assert source.element_spec == {"image": Feature((3, 5, 3), "float32")}
    assert source.read(tf.constant([4], tf.int64)).keys() == {"image"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("save_seconds", [0, 1000])
@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    chunks, save_seconds, packed, tmp_path, monkeypatch
):
    """Also where rows were written after the last that are known to be on the disk."""
    monkeypatch.setattr(writing, "SAVE_SECONDS", save_seconds)
    seen = []

    def stop(done, total):
        if done == chunks * packing.CHUNK:
            raise Killed

    with pytest.raises(Killed):
        pack(SOURCE, f"{tmp_path}/set", same, stop)
    assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]
    with pytest.raises(DataError, match=r"is no packed folder, or an incomplete one"):
        Packed(f"{tmp_path}/.set.partial")
    with (tmp_path / ".set.partial/images.npy").open("ab") as file:
        file.write(b"half a row")
    pack(SOURCE, f"{tmp_path}/set", same, lambda done, total: seen.append((done, total)))
    assert seen[0] == (chunks * packing.CHUNK if save_seconds == 0 else 0, COUNT)
    assert seen[-1] == (COUNT, COUNT)
    assert contents(tmp_path / "set") == contents(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("damage", ["cut", "gone", b"{", b"[]", b"1"])
def test_an_interrupted_conversion_that_is_damaged_begins_again(
    damage, packed, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0)

    def stop(done, total):
        if done == packing.CHUNK:
            raise Killed

    with pytest.raises(Killed):
        pack(SOURCE, f"{tmp_path}/set", same, stop)
    images = tmp_path / ".set.partial/images.npy"
    if damage == "cut":
        os.truncate(images, images.stat().st_size - 1)
    elif damage == "gone":
        images.unlink()
    else:
        images.with_name(writing.PROGRESS).write_bytes(damage)
    seen = []
    pack(SOURCE, f"{tmp_path}/set", same, lambda done, total: seen.append(done))
    assert seen[0] == 0
    assert contents(tmp_path / "set") == contents(packed)


def test_bad_pictures_of_all_starts_of_a_conversion_count(tmp_path, monkeypatch):
    """Two of them far apart, of which the second is met by the second start alone."""
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0)
    monkeypatch.setattr(packing, "CHUNK", 2)
    folder, packed = tmp_path / "pictures", tmp_path / "set"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(folder / f"{number}.png")

    def source(budget):
        return ImageFolder(str(folder), on_bad_record="skip", bad_budget=budget)

    def stop(done, total):
        if done == 4:
            raise Killed

    (folder / "1.png").write_bytes(b"?")
    with pytest.raises(Killed):
        pack(source(1), str(packed), same, stop)
    (folder / "6.png").write_bytes(b"?")
    with pytest.raises(tf.errors.OpError) as error:
        pack(source(1), str(packed), same)
    assert (
        f"DataError: 2 pictures cannot be read, more than ImageFolder.bad_budget = 1: mend or replace {folder}/1.png, "
        f"{folder}/6.png"
    ) in str(error.value)
    enough = source(2)
    pack(enough, str(packed), same)
    assert enough.skipped == [f"{folder}/1.png", f"{folder}/6.png"]
    numbers = np.load(packed / "images.npy")[:, 0, 0, 0]
    np.testing.assert_array_equal(numbers, [0, 2, 2, 3, 4, 5, 7, 7])
    assert not (packed / writing.PROGRESS).exists()


def test_another_conversion_begins_again(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0)

    def stop(done, total):
        if done:
            raise Killed

    with pytest.raises(Killed):
        pack(
            Images(255 - PICTURES, LABELS, classes=9),
            f"{tmp_path}/set",
            lambda *_: "inverted",
            stop,
        )
    pack(SOURCE, f"{tmp_path}/set", lambda *_: "as it is")
    assert contents(tmp_path / "set") == contents(packed)


def test_what_is_there_is_not_overwritten(packed):
    with pytest.raises(DataError, match="set is there already: remove it, or name another folder"):
        pack(SOURCE, str(packed))


def test_one_conversion_at_a_time(tmp_path):
    def meanwhile(done, total):
        with pytest.raises(DataError, match=r"another conversion writes .*set: wait for it"):
            pack(SOURCE, f"{tmp_path}/set")

    pack(SOURCE, f"{tmp_path}/set", report=meanwhile)
    verify(f"{tmp_path}/set")


def test_only_images_are_packed(tmp_path):
    class Text:
        element_spec = {"tokens": Feature((5,), "int32", 7)}

    with pytest.raises(DataError, match='feature "image" of the source is missing'):
        pack(Text(), f"{tmp_path}/set")
    for shape in ((2, 4, 4, 2), (2, 3, 8, 8)):
        with pytest.raises(
            DataError, match=r"of the source are \[.*\]: they must be \[height, width"
        ):
            pack(Images(np.zeros(shape, np.uint8)), f"{tmp_path}/set")


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "is no packed folder, or an incomplete one"),
        (lambda f: shutil.rmtree(f), "is no packed folder, or an incomplete one"),
        (lambda f: (f / "index.json").write_text("{"), r"index\.json cannot be read"),
        (
            lambda f: edit(f / "index.json", version=2),
            "is not of the format 'lockstep images', version 1",
        ),
        *(
            (
                lambda f, files=files: edit(f / "index.json", files=files),
                "does not say of each file",
            )
            for files in (None, [], {}, {"images.npy": 3}, {"images.npy": {"bytes": "3"}})
        ),
        (lambda f: (f / "labels.npy").unlink(), r"labels\.npy cannot be read \(No such file"),
        (
            lambda f: os.truncate(f / "images.npy", 1000),
            r"images\.npy has 1,000 bytes, and 35,453 by index\.json: it was cut off or altered",
        ),
        (lambda f: flip(f / "images.npy"), r"images\.npy has the SHA-256 .*: it was altered"),
        (lambda f: flip(f / "labels.npy", 150), r"labels\.npy has the SHA-256"),
        (
            lambda f: edit(f / "index.json", shape=[5, 3, 3]),
            r"images\.npy is uint8 \[785, 3, 5, 3\], and uint8 \[785, 5, 3, 3\] by index\.json",
        ),
    ],
)
def test_a_damaged_folder_is_named_when_it_is_opened(damage, message, copy):
    damage(copy)
    with pytest.raises(DataError, match=message):
        Packed(str(copy))


def test_large_files_are_verified_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "CHECKED_BYTES", 1 << 20)
    pack(Images(np.zeros((17, 256, 256), np.uint8)), f"{tmp_path}/set")
    told = []
    total = verify(f"{tmp_path}/set", lambda done, total: told.append((done, total)))
    assert told[-1] == (total, total) and total > manifest.CHECKED_BYTES
    flip(tmp_path / "set/images.npy")
    Packed(f"{tmp_path}/set")
    with pytest.raises(DataError, match=r"images\.npy has the SHA-256"):
        verify(f"{tmp_path}/set")


def test_opening_and_reading_take_no_memory_of_the_sets_size(tmp_path):
    """Of a sparse file of 10^8 pictures: their 78 GB are neither read nor held."""
    resource = pytest.importorskip("resource")
    pack(Images(np.zeros((1, 28, 28), np.uint8)), f"{tmp_path}/set")
    count, folder = 10**8, tmp_path / "set"
    with (folder / "images.npy").open("r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28, 1)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * 784)
        size = file.seek(0, os.SEEK_END)
    files = {"images.npy": {"bytes": size, "sha256": "0" * 64}}
    edit(folder / "index.json", count=count, files=files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = Packed(str(folder))
    ids = tf.constant(np.random.default_rng(0).integers(0, count, 2000))
    assert len(source) == count and not source.read(ids)["image"].numpy().any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
