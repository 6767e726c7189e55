"""The sources of pictures that a command line of scripts/convert names: its flags, and what they make."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

from trainer.exits import UsageError

if TYPE_CHECKING:
    from input_pipeline.batches import Source

SOURCES = """\
SRC is one of
  a folder of JPEG, PNG, WebP, GIF and BMP files, with a sub-folder for each class or none
  a folder with the four files of MNIST or a set of its form (--part)
  an idx file, compressed or not (--labels)
  a NumPy array, file.npy or file.npz:name (--labels)
  a prepared set of TensorFlow Datasets, tfds:mnist (--data_dir), or its folder, such as ~/tensorflow_datasets/mnist/3.0.1
    (--split, --image_feature, --label_feature)
  TFRecord files of tf.train.Example, 'folder/train-*' in quotes (--image_feature, --label_feature, --classes; --shape,
    where pictures are neither JPEG nor PNG but their bytes)

DST holds images.npy, labels.npy and index.json, the same bytes each time. It is written as .DST.partial and renamed when
it is complete; stopped before, the same command goes on. In a configuration it is Packed.folder = "DST".
"""
BAD = ("on_bad_record", "bad_budget")
DECODING = ("size", "channels", "fit", *BAD)
"""Flags of sources that decode files or records."""
OF_KINDS = tuple("labels part split data_dir image_feature label_feature classes shape".split())
"""Flags of sources of some kinds."""
FLAGS = {"image": "--image_feature", "label": "--label_feature", "name": "SRC", "files": "SRC"}
"""Of arguments that have another name."""
DATASET = "tfds:"
"""What the name of a set of TensorFlow Datasets follows."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what says which source `source` names, and how its pictures are read."""
    parser.add_argument(
        "--size", metavar="HxW", help="pictures of files are cut to this form and resized"
    )
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help="pictures of files become grey or coloured"
    )
    parser.add_argument(
        "--fit", choices=("crop", "stretch"), help="what --size does (default: crop)"
    )
    parser.add_argument(
        "--on_bad_record",
        choices=("fail", "skip"),
        help="a file or record that is no picture is an error, or the next one takes its place (default: fail)",
    )
    parser.add_argument(
        "--bad_budget", type=int, metavar="N", help="more bad ones are an error (default: 100)"
    )
    parser.add_argument("--labels", metavar="SRC", help="idx file or array of the labels")
    parser.add_argument("--part", choices=("train", "test"), help="of MNIST's (default: train)")
    parser.add_argument("--split", help="of TensorFlow Datasets (default: train)")
    parser.add_argument(
        "--data_dir",
        metavar="FOLDER",
        help="where sets of TensorFlow Datasets are prepared (default: ~/tensorflow_datasets, or $TFDS_DATA_DIR)",
    )
    parser.add_argument(
        "--image_feature", metavar="KEY", help="of pictures (default: image/encoded, or image)"
    )
    parser.add_argument(
        "--label_feature", metavar="KEY", help="of integers (default: no labels, or label)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="how many --label_feature has")
    parser.add_argument(
        "--shape", metavar="HxWxC", help="of pictures of records that are bytes, one a channel"
    )


def named_source(line: argparse.Namespace) -> tuple[Source, list[pathlib.Path]]:
    """The source that the command line names, and its files."""
    from input_pipeline.image_folder import ImageFolder
    from input_pipeline.images import mnist
    from input_pipeline.records import is_tfrecord
    from input_pipeline.tfrecords import shards

    path = pathlib.Path(os.path.expanduser(line.source))
    given = {name for name in (*DECODING, *OF_KINDS) if getattr(line, name) is not None}
    if "fit" in given and "size" not in given:
        raise UsageError(f"--fit={line.fit} says what --size does: give both, or neither")
    decoding = {name: getattr(line, name) for name in given.intersection(DECODING)}
    if "size" in given:
        decoding["size"] = _numbers(line, "size", "64x48", "height and width in pixels")
    if line.source.startswith(DATASET) or (path / "features.json").is_file():
        return _dataset(line, given, decoding)
    if path.is_dir() and any(path.glob("*-images-idx3-ubyte*")):
        _refuse(given - {"part"}, "MNIST's files")
        return mnist(line.source, line.part or "train"), sorted(path.iterdir())
    if path.is_dir():
        _refuse(given.difference(DECODING), "a folder of pictures")
        folder = ImageFolder(line.source, cache_mib=0, **decoding)
        return folder, folder.paths
    records = shards(line.source)
    of_records = given & {"image_feature", "label_feature", "shape"}
    if of_records or len(records) > 1 or any(map(is_tfrecord, records)):
        return _records(line, given, decoding), records
    array = _array(line)  # First: what is not there is no array either.
    _refuse(given - {"labels"}, "an array")
    return array


def _dataset(
    line: argparse.Namespace, given: set[str], decoding: dict[str, Any]
) -> tuple[Source, list[pathlib.Path]]:
    from input_pipeline.tensorflow_dataset import TensorFlowDataset

    _refuse(given & {"labels", "part", "classes", "shape"}, "TensorFlow Datasets")
    if not line.source.startswith(DATASET):
        _refuse(given & {"data_dir"}, "the folder of a set")
    dataset = TensorFlowDataset(
        line.source.removeprefix(DATASET),
        split=line.split or "train",
        data_dir=line.data_dir,
        image=line.image_feature or "image",
        label=line.label_feature,
        cache_mib=0,
        **decoding,
    )
    return dataset, dataset.paths


def _records(line: argparse.Namespace, given: set[str], decoding: dict[str, Any]) -> Source:
    from input_pipeline.tfrecords import TFRecords

    _refuse(given & {"labels", "part", "split", "data_dir"}, "TFRecord files")
    if len(given & {"label_feature", "classes"}) == 1:
        raise UsageError("--label_feature and --classes belong together: give both or neither")
    if line.classes is not None and line.classes < 1:
        raise UsageError(f"--classes={line.classes}: it must be at least 1")
    if "shape" in given:
        _refuse(set(decoding), "pictures that are bytes (--shape)")
        what = "height, width and channels"
        decoding = {"shape": _numbers(line, "shape", "28x28x1", what)}
    return TFRecords(
        line.source,
        image=line.image_feature or "image/encoded",
        label=line.label_feature,
        classes=line.classes,
        cache_mib=0,
        **decoding,
    )


def _array(line: argparse.Namespace) -> tuple[Source, list[pathlib.Path]]:
    from input_pipeline.images import idx_images, numpy_images

    arrays = [os.path.expanduser(text) for text in (line.source, line.labels) if text]
    files = [
        pathlib.Path(text.partition(".npz:")[0] + ".npz" * (".npz:" in text)) for text in arrays
    ]
    named = arrays[0].endswith(".npy") or ".npz" in pathlib.Path(arrays[0]).name
    return (numpy_images if named else idx_images)(line.source, line.labels), files


def _refuse(flags: set[str], what: str) -> None:
    if flags:
        raise UsageError(f"--{min(flags)} is not for {what}: leave it out")


def _numbers(line: argparse.Namespace, flag: str, like: str, what: str) -> tuple[int, ...]:
    """Of a flag such as --size=64x48; as many as are in `like`."""
    text = getattr(line, flag)
    found = re.split("[x×]", text)
    if len(found) != like.count("x") + 1 or not all(
        re.fullmatch(r"[1-9]\d*", one) for one in found
    ):
        raise UsageError(f"--{flag} is {text}: it must be {what}, such as {like}")
    return tuple(map(int, found))


def in_flags(message: str) -> str:
    """What a source says of its arguments, which have other names here: ImageFolder.size is --size."""
    sources = r"\b(?:ImageFolder|TFRecords|TensorFlowDataset)\.(\w+)"
    return re.sub(sources, lambda found: FLAGS.get(found[1], f"--{found[1]}"), message)
