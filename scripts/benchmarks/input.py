"""What the sources of images give: examples a second of each, beside Keras' and PyTorch's folders of pictures.

It writes a set of random pictures as JPEG files, packs it, and writes it as TFRecords and, where it is installed, as a set
of TensorFlow Datasets. Everything is measured in turn in one process, PyTorch in its own with two workers, several rounds of
each from files in the page cache, and compared by the medians of the rounds: a ratio says more than a rate on a machine that
others use too, and the processor's time more than either. All give batches of float32 in [0, 1], shuffled; Images and Packed
are measured on 28×28 grey pictures too, and folders of photographs, which are cropped and resized. What is cached is
measured after a first pass over the set.

Then what does not grow with the set: the memory of a training's input over packed sets of two sizes, each in a process of its
own, and the time to the first batch of an index, anywhere in a training, with the opening of the data set.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from measuring.pytorch import start
from PIL import Image

from input_pipeline.batches import Batches, Feature, Slice, Source, Unindexed
from input_pipeline.image_folder import ImageFolder
from input_pipeline.images import Images
from input_pipeline.packed import Packed
from input_pipeline.packing import pack
from input_pipeline.streamed import StreamedTFRecords
from input_pipeline.tensorflow_dataset import TensorFlowDataset
from input_pipeline.tfrecords import TFRecords

CLASSES = 10
SHARDS = 4
SMALL = (60_000, 28, 28, 1)
WORKERS = 2
PHOTOGRAPH = (375, 500)
"""Height and width."""
UNCACHED, CACHED, LARGE = ", no cache", ", cached", " of photographs"
BATCHES = 400
"""After which memory is measured."""


def write_pictures(folder: pathlib.Path, count: int, height: int, width: int) -> None:
    """JPEG files of smooth colours, with as many bytes as photographs of that size, in folders of classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (height // 4, width // 4, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def write_shards(source: ImageFolder, folder: pathlib.Path) -> None:
    """The same files as TFRecords."""
    folder.mkdir()
    for shard in range(SHARDS):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.tfrecord")) as writer:
            for path in source.paths[shard::SHARDS]:
                picture = tf.train.BytesList(value=[path.read_bytes()])
                label = tf.train.Int64List(value=[source.classes.index(path.parent.name)])
                features = {
                    "image/encoded": tf.train.Feature(bytes_list=picture),
                    "image/class/label": tf.train.Feature(int64_list=label),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


def prepare(source: ImageFolder, folder: pathlib.Path) -> bool:
    """The same files as a set of TensorFlow Datasets, if they are installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        print(
            'TensorFlow Datasets are left out: pip install -e ".[datasets]" to compare with them',
            file=sys.stderr,
        )
        return False
    tfds.disable_progress_bar()
    files = [
        (at, {"image": str(path), "label": path.parent.name})
        for at, path in enumerate(source.paths)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pictures",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=source.element_spec["image"].shape, encoding_format="jpeg"
                ),
                "label": tfds.features.ClassLabel(names=source.classes),
            }
        ),
        split_datasets={"train": files},
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=SHARDS),
    )
    return True


def keras_folder(
    folder: pathlib.Path, side: int, batch: int, cached: bool = False, crop: bool = False
) -> Iterator:
    """As Keras' guides read a folder, with their rescaling, and cache its batches; cropped as `ImageFolder` does."""
    data = keras.utils.image_dataset_from_directory(
        str(folder),
        image_size=(side, side),
        batch_size=batch,
        crop_to_aspect_ratio=crop,
        verbose=False,
    )
    if cached:
        data = data.cache()
    data = data.map(lambda x, y: (x / 255, y), num_parallel_calls=tf.data.AUTOTUNE)
    return iter(data.repeat().prefetch(tf.data.AUTOTUNE))


Measure = Callable[[float], tuple[float, float, float]]
"""Reads for some seconds at least: images, seconds, and those of the processor."""


def read(batches: Iterator, batch: int, seconds: float) -> tuple[float, float, float]:
    """As `Measure` says."""
    count, begin, processor = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - begin) < seconds:
        next(batches)
        count += batch
    return count, passed, time.process_time() - processor


def memory(folder: pathlib.Path, count: int, batch: int) -> dict[str, float]:
    """MiB that reading packed 8×8 grey pictures adds to a process, see measuring/resident.py."""
    pack(Images(np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)), str(folder))
    program = pathlib.Path(__file__).parent / "measuring" / "resident.py"
    command = [sys.executable, str(program), str(folder), str(batch), str(BATCHES)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


class Ids:
    """A source of nothing but its index: examples are their ids."""

    element_spec = {"id": Feature((), "int64")}

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"id": ids}

    def decode(self, samples: np.ndarray) -> np.ndarray:
        return samples


def first_batch(length: int, batch: int, step: int) -> float:
    """Seconds until the data set of an index gives its first batch from a step on."""
    begin = time.perf_counter()
    next(iter(Batches(Ids(length), batch).training(Slice(), step=step)))
    return time.perf_counter() - begin


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=20_000, help="how many JPEG files")
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--photographs", type=int, default=2_000, help="how many, of 500×375")
    parser.add_argument("--batch", type=int, default=256, help="examples a batch")
    parser.add_argument("--rounds", type=int, default=5, help="of each")
    parser.add_argument("--seconds", type=float, default=3, help="of a round of each")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[10**4, 10**6],
        metavar="N",
        help="of packed sets whose memory is measured",
    )
    parser.add_argument("--index", type=int, default=10**8, metavar="N", help="ids of the index")
    line = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        measure(pathlib.Path(scratch), line)
        for size in line.sizes if sys.platform == "linux" else ():
            found = memory(pathlib.Path(scratch, str(size)), size, line.batch)
            print(
                f"{size:>11,} packed 8×8 pictures, {BATCHES} batches: {found['own']:.1f} MiB, and {found['mapped']:.1f} MiB of the "
                "file"
            )
    epoch = line.index // line.batch
    for step in (0, epoch // 2, 10 * epoch):
        seconds = first_batch(line.index, line.batch, step)
        print(f"{line.index:>11,} ids, first batch from step {step:,} on: {seconds:.2f} s")


def measure(scratch: pathlib.Path, line: argparse.Namespace) -> None:
    write_pictures(scratch / "folder", line.pictures, line.side, line.side)
    write_pictures(scratch / "photographs", line.photographs, *PHOTOGRAPH)
    folder = ImageFolder(str(scratch / "folder"), cache_mib=0)
    pack(folder, str(scratch / "packed"))
    write_shards(folder, scratch / "shards")
    small = np.random.default_rng(0).integers(0, 256, SMALL, np.uint8)
    pack(Images(small), str(scratch / "small"))
    loaded = Images(np.load(scratch / "packed/images.npy"), np.load(scratch / "packed/labels.npy"))
    shards = f"{scratch}/shards/*.tfrecord"

    def ours(source: Source | Unindexed, first: int = 0) -> Measure:
        return after(first, iter(Batches(source, line.batch).training(Slice())))

    def theirs(name: str, first: int = 0) -> Measure:
        crop = name == "photographs"
        return after(first, keras_folder(scratch / name, line.side, line.batch, first > 0, crop))

    def after(first: int, batches: Iterator) -> Measure:
        """Measures what follows so many images."""
        for _ in range(math.ceil(first / line.batch)):
            next(batches)
        return functools.partial(read, batches, line.batch)

    records = {"label": "image/class/label", "classes": CLASSES}
    large = str(scratch / "photographs")
    measures = {
        f"ImageFolder{UNCACHED}": ours(folder),
        "ImageFolder": ours(ImageFolder(str(scratch / "folder")), line.pictures),
        "Keras": theirs("folder"),
        f"Keras{CACHED}": theirs("folder", line.pictures),
        f"ImageFolder{LARGE}{UNCACHED}": ours(ImageFolder(large, size=line.side, cache_mib=0)),
        f"ImageFolder{LARGE}": ours(ImageFolder(large, size=line.side), line.photographs),
        f"Keras{LARGE}": theirs("photographs"),
        f"TFRecords{UNCACHED}": ours(TFRecords(shards, **records, cache_mib=0)),
        "StreamedTFRecords": ours(StreamedTFRecords(shards, **records)),
        "Packed": ours(Packed(str(scratch / "packed"))),
        "Images": ours(loaded),
        "Packed 28×28": ours(Packed(str(scratch / "small"))),
        "Images 28×28": ours(Images(small)),
    }
    if prepare(folder, scratch / "prepared"):
        prepared = TensorFlowDataset(
            "pictures", data_dir=str(scratch / "prepared"), label="label", cache_mib=0
        )
        measures[f"TensorFlowDataset{UNCACHED}"] = ours(prepared)
    # As its guides read a folder.
    pytorch = start(
        "pytorch_folder.py", folder=str(scratch / "folder"), batch=line.batch, workers=WORKERS
    )
    if pytorch:
        measures["PyTorch"] = lambda seconds: tuple(pytorch.ask(seconds=seconds))
    rates: dict[str, list[float]] = {name: [] for name in measures}
    processor: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(line.rounds):
        for name, measured in measures.items():
            # What was read ahead while others were measured is used up first.
            measured(line.seconds / 3)
            images, seconds, of_processor = measured(line.seconds)
            rates[name].append(images / seconds)
            processor[name].append(1e6 * of_processor / images)
    if pytorch:
        pytorch.close()
    print(
        f"{line.pictures:,} JPEG files of {line.side}×{line.side}, {line.photographs:,} photographs, batches of {line.batch}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, {line.rounds} rounds of {line.seconds:g} s"
    )
    for name, values in rates.items():
        used = f", {statistics.median(processor[name]):.1f} µs of processor an image"
        print(
            f"{name:>36}: {statistics.median(values):>9,.0f} images/s (from {min(values):,.0f} to {max(values):,.0f}){used}"
        )
    pairs = [
        (name, other)
        for other in ("Keras", f"Keras{CACHED}", "PyTorch")
        for name in (f"ImageFolder{UNCACHED}", "ImageFolder", "Packed")
    ]
    pairs += [(f"ImageFolder{LARGE}{cache}", f"Keras{LARGE}") for cache in (UNCACHED, "")]
    for name, other in pairs:
        if other in rates:
            rounds = zip(rates[name], rates[other], strict=True)
            ratio = statistics.median(a / b for a, b in rounds)
            print(f"{name} / {other}: {ratio:.2f} (median of the rounds)")


if __name__ == "__main__":
    main()
