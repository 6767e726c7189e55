"""scripts/convert: from each kind of source to a packed folder, and what it says when it cannot."""

from __future__ import annotations

import errno
import gzip
import importlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline import packing, writing
from input_pipeline.images import Images
from input_pipeline.packed import Packed
from input_pipeline.packed_corpus import packed_corpus
from input_pipeline.text_files import text_files

ROOT = Path(__file__).resolve().parents[1]
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2], np.uint8)


@pytest.fixture(scope="module")
def conversion():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield importlib.import_module("conversion")


def example(image, label, key="image/encoded"):
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A folder with the same pictures and labels in each form."""
    folder = tmp_path_factory.mktemp("forms")
    for name, count in (("train", 6), ("t10k", 2)):
        for kind, array in (("images-idx3", PICTURES[:count]), ("labels-idx1", LABELS[:count])):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            path = folder / "mnist" / f"{name}-{kind}-ubyte.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(head + array.tobytes()))
    for shard in range(2):
        with tf.io.TFRecordWriter(f"{folder}/train.tfrecord-{shard}") as writer:
            for array, label in list(zip(PICTURES, LABELS, strict=True))[3 * shard : 3 * shard + 3]:
                file = io.BytesIO()
                Image.fromarray(array).save(file, "PNG")
                writer.write(example(file.getvalue(), int(label)))
    for name in ("a.tfrecord", "a"):
        path = folder / "set[1]" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((folder / "train.tfrecord-1").read_bytes())
    with tf.io.TFRecordWriter(f"{folder}/records") as writer:
        for array, label in zip(PICTURES, LABELS, strict=True):
            writer.write(example(array.tobytes(), int(label), "pixels"))
    np.save(folder / "images.npy", PICTURES)
    np.savez(folder / "both.npz", x=PICTURES, y=LABELS)
    for number, (array, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        path = folder / "folder" / "abc"[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(4, 5, 1)),
                "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            }
        ),
        split_datasets={
            split: [
                (at, {"image": PICTURES[at][..., np.newaxis], "label": LABELS[at]})
                for at in range(count)
            ]
            for split, count in (("train", 6), ("test", 2))
        },
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


@pytest.fixture
def sources(forms, tmp_path):
    """A copy of it, as a test may change."""
    return shutil.copytree(forms, tmp_path, dirs_exist_ok=True)


IDX = "mnist/train-images-idx3-ubyte.gz --labels=mnist/train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("arguments", "order", "labelled"),
    [
        ("mnist", range(6), True),
        ("mnist --part=test", range(2), True),
        (IDX, range(6), True),
        ("images.npy", range(6), False),
        ("both.npz:x --labels=both.npz:y", range(6), True),
        ("folder", [1, 4, 2, 3, 0, 5], True),
        ("tiny/1.0.0", range(6), True),
        ("tiny/1.0.0 --split=test --label_feature=label", range(2), True),
        ("train.tfrecord-* --label_feature=label --classes=3", range(6), True),
        ("train.tfrecord-1", [3, 4, 5], False),
        ("~/train.tfrecord-1", [3, 4, 5], False),
        ("records --image_feature=pixels --shape=4x5x1", range(6), False),
        ("set[1]/a.tfrecord", [3, 4, 5], False),
        ("set[1]/a", [3, 4, 5], False),
        ("tfds:tiny --data_dir=. --split=test", range(2), True),
        ("tfds:tiny:1.0.0 --data_dir=~", range(6), True),
        ("~/both.npz:x --labels=~/both.npz:y", range(6), True),
        ("~/folder", [1, 4, 2, 3, 0, 5], True),
        ("~/mnist", range(6), True),
    ],
)
def test_each_kind_of_source(arguments, order, labelled, sources, conversion, monkeypatch, capsys):
    monkeypatch.chdir(sources)
    monkeypatch.setenv("HOME", str(sources))
    source, *rest = arguments.split()
    assert conversion.main(["images", source, "packed", *rest]) == 0
    assert capsys.readouterr().out == "packed\n"
    packed = Packed("packed")
    named = "folder" in source or "tiny" in source
    assert packed.classes == (["a", "b", "c"] if named else [])
    found = packed.read(tf.range(len(packed), dtype=tf.int64))
    order = list(order)
    np.testing.assert_array_equal(packed.decode(found["image"])[..., 0], PICTURES[order])
    assert ("label" in found) == labelled
    if labelled:
        np.testing.assert_array_equal(found["label"], LABELS[order])
    assert conversion.main(["verify", "packed"]) == 0
    assert "bytes as they were written" in capsys.readouterr().out


def test_pictures_are_brought_to_a_size(sources, conversion, monkeypatch):
    monkeypatch.chdir(sources)
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save("folder/c/another.jpg")
    assert conversion.main("images folder packed --size 3x2 --channels 1".split()) == 0
    assert Packed("packed").element_spec["image"].shape == (3, 2, 1)
    assert len(Packed("packed")) == 7


def test_names_of_pictures_may_be_any_bytes(sources, conversion, monkeypatch):
    monkeypatch.chdir(sources)
    os.rename("folder/a/1.png", b"folder/a/\xe9.png")
    assert conversion.main(["images", "folder", "packed"]) == 0
    found = np.load("packed/images.npy")[..., 0]
    np.testing.assert_array_equal(found, PICTURES[[4, 1, 2, 3, 0, 5]])


def test_another_folder_of_the_same_pictures_gives_the_same_bytes(sources, conversion, monkeypatch):
    monkeypatch.chdir(sources)
    subprocess.run(["cp", "-r", "folder", "copy"], check=True)
    for name in ("folder", "copy"):
        assert conversion.main(["images", name, f"{name}_packed"]) == 0
    for name in ("images.npy", "labels.npy", "index.json"):
        one, other = (Path(f"{folder}_packed", name) for folder in ("folder", "copy"))
        assert one.read_bytes() == other.read_bytes()


def interrupt(conversion, patch, done):
    """Ends the next conversion as Ctrl-C does once so many pictures are known to be on the disk, of which each chunk has two."""
    patch.setattr(packing, "CHUNK", 2)
    patch.setattr(writing, "SAVE_SECONDS", 0)

    def stop(self, found, total):
        if found == done:
            raise KeyboardInterrupt

    patch.setattr(conversion.Progress, "__call__", stop)


def test_another_array_of_the_same_file_begins_again(sources, conversion, monkeypatch, capsys):
    """Though it is as long and has the same form."""
    monkeypatch.chdir(sources)
    np.savez("two.npz", x=PICTURES, y=255 - PICTURES)
    with monkeypatch.context() as patch:
        interrupt(conversion, patch, 4)
        assert conversion.main(["images", "two.npz:x", "packed"]) == 130
    assert capsys.readouterr().err == "lockstep: interrupted; the same command goes on\n"
    assert conversion.main(["images", "two.npz:y", "packed"]) == 0
    found = np.load("packed/images.npy")
    np.testing.assert_array_equal(found[..., 0], 255 - PICTURES)


def alter_first_row():
    """Of a conversion that was stopped: it is gone if it begins again."""
    with open(".packed.partial/images.npy", "r+b") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        file.write(bytes([7] * PICTURES[0].size))


@pytest.mark.parametrize("remedy", ["mended", "skip"])
def test_a_bad_picture_costs_nothing_that_was_done(
    remedy, sources, conversion, monkeypatch, capsys
):
    """It goes on once the picture is mended, or told to skip it."""
    monkeypatch.chdir(sources)
    good = Path("folder/c/5.png").read_bytes()
    Path("folder/c/5.png").write_bytes(b"?")
    monkeypatch.setattr(packing, "CHUNK", 2)
    monkeypatch.setattr(writing, "SAVE_SECONDS", 0)
    assert conversion.main(["images", "folder", "packed"]) == 65
    assert "c/5.png cannot be read" in capsys.readouterr().err
    alter_first_row()
    if remedy == "mended":
        Path("folder/c/5.png").write_bytes(good)
        assert conversion.main(["images", "folder", "packed"]) == 0
    else:
        assert conversion.main("images folder packed --on_bad_record=skip".split()) == 0
    found = np.load("packed/images.npy")[..., 0]
    np.testing.assert_array_equal(found[0], np.full_like(found[0], 7))
    last = 5 if remedy == "mended" else 1
    np.testing.assert_array_equal(found[1:], PICTURES[[4, 2, 3, 0, last]][: len(found) - 1])


@pytest.mark.parametrize("change", ["picture", "skip"])
def test_what_made_a_difference_begins_again(change, sources, conversion, monkeypatch, capsys):
    """A picture that was packed already, and that bad ones are no more skipped after one was."""
    monkeypatch.chdir(sources)
    if change == "skip":
        Path("folder/a/4.png").write_bytes(b"?")
    command = "images folder packed --on_bad_record=skip".split()
    with monkeypatch.context() as patch:
        interrupt(conversion, patch, 4)
        assert conversion.main(command) == 130
    capsys.readouterr()
    if change == "skip":
        assert conversion.main(["images", "folder", "packed"]) == 65
        assert "a/4.png cannot be read" in capsys.readouterr().err
    else:
        Image.fromarray(PICTURES[0]).save("folder/a/1.png")
        os.utime("folder/a/1.png", ns=(0, 0))
        with monkeypatch.context() as patch:
            interrupt(conversion, patch, 2)
            assert conversion.main(command) == 130
        alter_first_row()
        # What has begun again is gone on with as any other.
        assert conversion.main(command) == 0
        first, second = np.load("packed/images.npy")[:2, ..., 0]
        assert np.all(first == 7)
        np.testing.assert_array_equal(second, PICTURES[4])


def test_a_picture_that_took_the_place_of_a_bad_one_makes_a_difference(
    sources, conversion, monkeypatch
):
    """Though it is behind those that are done."""
    monkeypatch.chdir(sources)
    Path("folder/a/4.png").write_bytes(b"?")
    command = "images folder packed --on_bad_record=skip".split()
    with monkeypatch.context() as patch:
        interrupt(conversion, patch, 2)
        assert conversion.main(command) == 130
    Image.fromarray(255 - PICTURES[2]).save("folder/b/2.png")
    os.utime("folder/b/2.png", ns=(0, 0))
    assert conversion.main(command) == 0
    found = np.load("packed/images.npy")[..., 0]
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[1], 255 - PICTURES[2])


LINES = "".join(f"line {i} of the text, naïvely\n" for i in range(200))


@pytest.mark.parametrize(
    ("arguments", "tokens", "vocabulary"),
    [
        ("", "characters", None),
        ("--tokens=bytes --validation=0.25", "bytes", None),
        ("--tokens=words --vocabulary=20 --test=0.1", "words", 20),
        ("--column=text", "characters", None),
        ("--tokens=subwords --vocabulary=300 --validation=other --test=0", "subwords", 300),
        ("--tokens=sentencepiece --vocabulary=300", "sentencepiece", 300),
    ],
)
def test_texts(arguments, tokens, vocabulary, tmp_path, conversion, monkeypatch, capsys):
    """The same as without packing, and the same bytes each time."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(LINES)
    Path("other").mkdir()
    Path("other/one.txt").write_text("another line\n")
    source, column = "text.txt", None
    if "column" in arguments:
        source, column = "table.csv", "text"
        Path(source).write_text("text\n" + LINES.replace(",", ""))
    for folder in ("packed", "again"):
        assert conversion.main(["text", source, folder, *arguments.split()]) == 0
        assert capsys.readouterr().out == f"{folder}\n"
        assert conversion.main(["verify", folder]) == 0
        assert "bytes as they were written" in capsys.readouterr().out
    shares = dict(re.findall(r"--(validation|test)=(\S+)", arguments))
    held_out = {k: v if v == "other" else float(v) for k, v in shares.items()}
    expected = text_files(source, tokens, vocabulary, column=column, **held_out)
    packed = packed_corpus("packed")
    assert packed.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        assert packed.part(name).dtype == part.dtype
        np.testing.assert_array_equal(packed.part(name), part)
    assert packed.tokenizer.to_json() == expected.tokenizer.to_json()
    for path in Path("packed").iterdir():
        assert path.read_bytes() == Path("again", path.name).read_bytes()


def test_bad_pictures_are_replaced_up_to_a_budget(sources, conversion, monkeypatch, capsys):
    """The next in order that can be read takes the place of each."""
    monkeypatch.chdir(sources)
    for name in ("b/2.png", "c/5.png"):
        (sources / "folder" / name).write_bytes(b"?")
    command = "images folder packed --on_bad_record=skip".split()
    assert conversion.main([*command, "--bad_budget=1"]) == 65
    said = capsys.readouterr().err
    assert "2 pictures cannot be read, more than --bad_budget = 1: mend or replace" in said
    assert conversion.main(command) == 0
    packed = Packed("packed")
    found = packed.read(tf.range(6, dtype=tf.int64))
    taken = [1, 4, 3, 3, 0, 1]
    np.testing.assert_array_equal(packed.decode(found["image"])[..., 0], PICTURES[taken])
    np.testing.assert_array_equal(found["label"], LABELS[taken])


def damage_picture(folder):
    (folder / "folder/b/2.png").write_bytes(b"?")


def add_another_size(folder):
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "folder/c/6.png")


def link_to_nothing(folder):
    (folder / "folder/a/x.png").symlink_to("nothing")


def write_text(folder):
    (folder / "text").write_text(LINES)


def write_accents(folder):
    write_text(folder)
    (folder / "other").write_text("é")


def damage_packed(folder):
    (folder / "packed").mkdir()
    (folder / "packed/index.json").write_text("{}")


@pytest.mark.parametrize(
    ("arguments", "prepare", "code", "message"),
    [
        ("images nowhere packed", None, 65, "nowhere cannot be read (No such file or directory)"),
        ("images nowhere packed --size=3x3", None, 65, "nowhere cannot be read (No such file"),
        ("images empty packed", lambda f: (f / "empty").mkdir(), 65, "empty has no pictures"),
        (
            "images folder packed",
            damage_picture,
            65,
            "folder/b/2.png cannot be read (it is no picture",
        ),
        ("images folder packed", add_another_size, 65, "set --size"),
        ("images folder packed --fit=stretch", None, 64, "--fit"),
        ("images mnist packed --bad_budget=3", None, 64, "--bad_budget is not for MNIST's files"),
        ("images folder packed --bad_budget=-3", None, 64, "--bad_budget is -3"),
        ("images folder mnist", None, 73, "mnist is there already: remove it"),
        ("images folder packed --size=8", None, 64, "--size is 8: it must be height and width"),
        ("images mnist packed --size=8x8", None, 64, "--size is not for MNIST's files"),
        (
            "images folder packed",
            link_to_nothing,
            65,
            "folder/a/x.png cannot be read (No such file",
        ),
        ("images folder packed --split=test", None, 64, "--split is not for a folder of pictures"),
        ("images tiny/1.0.0 packed --split=tets", None, 65, "tiny/1.0.0 has no split tets"),
        ("images tiny/1.0.0 packed --classes=3", None, 64, "--classes is not for TensorFlow Datas"),
        ("images folder packed --part=test", None, 64, "--part is not for a folder of pictures"),
        ("images folder packed --data_dir=.", None, 64, "--data_dir is not for a folder of pict"),
        (
            "images tiny/1.0.0 packed --data_dir=.",
            None,
            64,
            "--data_dir is not for the folder of a",
        ),
        (
            "images tfds:none packed --data_dir=.",
            None,
            65,
            "none is not prepared in .: set --data_dir",
        ),
        ("images records packed", None, 65, "name one of its features (label, pixels)"),
        ("images records packed --shape=4x5", None, 64, "--shape is 4x5: it must be height, width"),
        (
            "images records packed --shape=4x5x1 --size=2x2",
            None,
            64,
            "--size is not for pictures that",
        ),
        (
            "images records packed --image_feature=pixels --shape=4x5x3",
            None,
            65,
            "has 20 bytes in pixels, and [4, 5, 3] are 60: set --shape to what they are",
        ),
        ("images images.npy packed --labels=both.npz:z", None, 65, 'both.npz has no array "z"'),
        ("images images.npy packed --labels=images.npy", None, 65, "images.npy: the labels are"),
        (
            "images folder images.npy/packed",
            None,
            73,
            "cannot be read or written (not a directory)",
        ),
        ("text nowhere packed", None, 65, "nowhere cannot be read (No such file or directory)"),
        ("text both.npz packed", None, 65, "both.npz is not UTF-8 at byte"),
        ("text nowhere mnist", None, 73, "mnist is there already: remove it"),
        ("text folder packed", None, 65, "folder has no files *.txt"),
        ("text text packed --column=x", write_text, 65, "text is no table: name a file .csv"),
        ("text text packed --tokens=letters", write_text, 64, "--tokens=letters: no folder is"),
        (
            "text text packed --validation=other",
            write_accents,
            65,
            "add them by --extra_characters, or choose --tokens=bytes",
        ),
        ("text text packed --vocabulary=9", write_text, 64, "--vocabulary is 9: it is for words"),
        ("text text packed --tokens=subwords", write_text, 64, "say how many subwords"),
        ("text text packed --validation=1", write_text, 64, "held out are validation 1.0"),
        ("text text packed --validation=x", write_text, 65, "x cannot be read (No such file"),
        ("verify folder", None, 65, "folder is no packed folder, or an incomplete one"),
        ("verify packed", damage_packed, 65, "is not of the format 'lockstep images'"),
    ],
)
@pytest.mark.usefixtures("short_delays")
def test_what_cannot_be_done_is_said_in_one_line(
    arguments, prepare, code, message, sources, conversion, monkeypatch, capsys
):
    monkeypatch.chdir(sources)
    if prepare:
        prepare(sources)
    assert conversion.main(arguments.split()) == code
    said = capsys.readouterr().err
    assert said.startswith("lockstep: ") and said.count("\n") == 1 and message in said


def test_what_tf_data_says_beside_it_is_not_shown(sources):
    """TensorFlow logs errors of its threads, and greets, unless it is told before it is imported."""
    add_another_size(sources)
    command = [sys.executable, ROOT / "scripts/conversion.py", "images", "folder", "packed"]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True)
    said = "lockstep: folder/c/6.png has 3×3 pixels, and the first picture 4×5: set --size\n"
    assert (done.returncode, done.stdout, done.stderr) == (65, "", said)


def test_a_library_that_is_missing_is_no_bad_data(sources, conversion, monkeypatch, capsys):
    monkeypatch.chdir(sources)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert conversion.main(["images", "tiny/1.0.0", "packed"]) == 69
    said = capsys.readouterr().err
    assert said.startswith("lockstep: TensorFlow Datasets is not installed")


def write_another_idx(folder):
    (folder / "images").write_bytes(b"\0\0\7\3" + bytes(20))


def add_colours(folder):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "folder/c/6.png")


def flip_a_packed_byte(folder):
    packing.pack(Images(PICTURES), f"{folder}/packed")
    data = bytearray((folder / "packed/images.npy").read_bytes())
    data[-7] ^= 1
    (folder / "packed/images.npy").write_bytes(data)


@pytest.mark.parametrize(
    ("arguments", "prepare", "begins", "ends"),
    [
        (
            "images images packed",
            write_another_idx,
            "images is no idx file (it begins with 00000703, not with 0000",
            "name one such as train-images-idx3-ubyte.gz",
        ),
        (
            "images folder packed",
            add_colours,
            "folder/c/6.png is coloured, and the first picture grey",
            "set --channels to 1 or 3",
        ),
        (
            "verify packed",
            flip_a_packed_byte,
            "packed/images.npy has the SHA-256 ",
            "it was altered, copy or convert it again",
        ),
    ],
)
def test_bad_data_are_named_with_what_to_do(
    arguments, prepare, begins, ends, sources, conversion, monkeypatch, capsys
):
    monkeypatch.chdir(sources)
    prepare(sources)
    assert conversion.main(arguments.split()) == 65
    *progress, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"lockstep: {begins}") and said.endswith(f": {ends}")
    assert all(line.endswith("%)") for line in progress)


def test_a_full_disk_is_named_and_gone_on_with(sources, conversion, monkeypatch, capsys):
    """Which of what is written has no name."""
    monkeypatch.chdir(sources)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert conversion.main(["images", "images.npy", "packed"]) == 73
    assert capsys.readouterr().err == (
        "lockstep: packed cannot be read or written (no space left on device): make room and give the same command again, which goes on\n"
    )
    assert conversion.main(["images", "images.npy", "packed"]) == 0
    assert len(Packed("packed")) == 6


def test_errors_have_the_exit_codes_of_the_launcher(sources, conversion, monkeypatch, capsys):
    monkeypatch.chdir(sources)

    def fail(error):
        def pack(*arguments):
            raise error

        monkeypatch.setattr(packing, "pack", pack)
        code = conversion.main(["images", "images.npy", "packed"])
        return code, capsys.readouterr().err

    shut = PermissionError(errno.EACCES, "Permission denied", "there")
    assert fail(shut) == (
        77,
        "lockstep: there cannot be read or written (permission denied): change its permissions and give the same "
        "command again, which goes on\n",
    )
    code, said = fail(IndexError("a bug"))
    assert code == 70 and said.startswith("Traceback") and said.endswith("IndexError: a bug\n")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(conversion, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bar, lines = Terminal(), io.StringIO()
    for stream in (bar, lines):
        with conversion.Progress(stream, "pictures") as progress:
            for done in (0, 500, 2000):
                progress(done, 2000)
    assert "2,000/2,000 pictures" in bar.getvalue()
    assert lines.getvalue() == "2,000/2,000 pictures (100 %)\n"
