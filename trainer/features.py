"""Networks in whose features pictures are compared: a classifier of this project, or Inception with weights from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.batches import Batches, Transform, apply
from input_pipeline.noise import Noise
from trainer import pretrained
from trainer.exits import ConfigError, DataProblem, one_line
from trainer.trainer import Trainer

WEIGHTS = (".h5", ".hdf5", ".keras")
"""How names of files of Keras' weights end."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a network sees in n pictures.

    Attributes:
      features: `[n, features]`, floating.
      probabilities: `[n, classes]` of the data's classes; None of a network that does not know them.
    """

    features: np.ndarray
    probabilities: np.ndarray | None = None


class FeatureNet(Protocol):
    """Sees uint8 pictures `[n, height, width, channels]`; raises ConfigError if it is not for such ones.

    Attributes:
      name: for people, of the space that its features are in: numbers of two spaces cannot be compared.
      digest: of all that the features depend on besides the pictures.
      folder: where what it has seen may be kept.
    """

    name: str
    digest: bytes
    folder: pathlib.Path

    def __call__(self, pictures: np.ndarray) -> Seen: ...


class _OnDevices:
    """A function of pictures, computed on several devices at once, each a part of the same size; the last parts are filled up, and
    what comes of that is cut off.

    Args:
      see: from uint8 pictures `[b, height, width, channels]` and the number of the first, int64, to tensors `[b, …]`.
      devices: their names; None for TensorFlow's choice.
      batch: pictures a device sees at a time.
    """

    def __init__(
        self,
        see: Callable[[tf.Tensor, tf.Tensor], Sequence[tf.Tensor]],
        devices: Sequence[str | None],
        batch: int,
    ) -> None:
        self._see, self._devices, self._batch = see, devices, batch
        self._run = tf.function(self._on_all, autograph=False)

    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        """What comes of n pictures, `[n, …]` each."""
        devices = len(self._devices)
        # All blocks of one size, since another would be traced anew.
        size = devices * min(self._batch, -(-len(pictures) // devices))
        blocks = []
        for first in range(0, len(pictures), size):
            block = pictures[first : first + size]
            filling = np.zeros([size - len(block), *block.shape[1:]], block.dtype)
            seen = self._run(
                tf.constant(np.concatenate([block, filling])), tf.constant(first, tf.int64)
            )
            blocks.append([tensor.numpy()[: len(block)] for tensor in seen])
        return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]

    def _on_all(self, pictures: tf.Tensor, first: tf.Tensor) -> list[tf.Tensor]:
        found = []
        for device, part in zip(self._devices, tf.split(pictures, len(self._devices)), strict=True):
            with tf.device(device):
                found.append(self._see(part, first))
            first += part.shape[0]
        return [tf.concat(parts, 0) for parts in zip(*found, strict=True)]


class ClassifierNet:
    """A restored training of `models.classifier.Classifier`, for pictures of the size that it was trained on.

    It is given them as its own held-out ones are, after those of its `Experiment.validation_transforms` that follow the last
    change of size: they have its size already.

    Args:
      classifier: restored.
      devices: on which it sees a part of the pictures each.

    Raises:
      ConfigError: if it is the training of something else.
    """

    BATCH = 500

    def __init__(self, classifier: Trainer, devices: Sequence[str | None] = (None,)) -> None:
        recognise = getattr(classifier.objective, "recognise", None)
        if recognise is None:
            raise ConfigError(
                f"--features={classifier.workdir} is a run of {type(classifier.objective).__name__}: name one of a Classifier"
            )
        self._recognise = recognise
        self._see = _OnDevices(self._recognised, devices, self.BATCH)
        self._transforms = _after_sizes(classifier.batches)
        self._shape = classifier.batches.element_spec["image"].shape
        self.name = str(classifier.workdir)
        self.folder = classifier.workdir or pathlib.Path()
        networks = sorted(classifier.objective.networks.items())
        weights = pretrained.digest(weight for _, network in networks for weight in network.weights)
        self.digest = hashlib.sha256(f"{self._transforms} {weights}".encode()).digest()

    def __call__(self, pictures: np.ndarray) -> Seen:
        if pictures.shape[1:] != self._shape:
            raise ConfigError(
                f"the pictures are {list(pictures.shape[1:])}, and the classifier of {self.name} is for "
                f"{list(self._shape)}: train one on the same data, and give both the same sizes in "
                "Experiment.validation_transforms"
            )
        return Seen(*self._see(pictures))

    def _recognised(self, pictures: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.cast(pictures, tf.float32) / 255
        noise = Noise(0, "features", rows=images.shape[0], first=first)
        return self._recognise(apply(self._transforms, {"image": images}, noise)["image"])


def _after_sizes(batches: Batches) -> list[Transform]:
    """The validation transforms behind the last that changes a picture's shape."""
    spec = (batches.validation or batches.source).element_spec
    behind: list[Transform] = []
    for transform in batches.validation_transforms:
        changed = transform.element_spec(spec)
        same = changed["image"].shape == spec["image"].shape
        behind = [*behind, transform] if same else []
        spec = changed
    return behind


class InceptionNet:
    """The 2048 averages of the last convolutions of keras.applications.InceptionV3 (Szegedy et al. 2016), for pictures of any size.

    They are resized to 299 × 299 pixels and scaled to [-1, 1]; grey ones become three equal channels. Keras' ImageNet weights
    are not those of the network that published FIDs are computed with. Nothing is downloaded.

    Args:
      weights: a file of its weights as Keras saves them, with or without the layer of the classes.
      folder: see `FeatureNet`.
      devices: on which it sees a part of the pictures each.

    Raises:
      ConfigError: if there is no such file, or it holds weights of another network.
      DataProblem: if it cannot be read.
    """

    SIDE = 299
    BATCH = 32

    def __init__(
        self,
        weights: pathlib.Path,
        folder: pathlib.Path,
        devices: Sequence[str | None] = (None,),
    ) -> None:
        self._network = _inception(weights)
        self._see = _OnDevices(self._averages, devices, self.BATCH)
        # Of the weights and not of the file: the layer of the classes makes no difference to the features.
        digest = hashlib.sha256(f"InceptionV3 {self.SIDE}".encode())
        for weight in self._network.get_weights():
            digest.update(weight.tobytes())
        self.digest = digest.digest()
        self.name = f"Keras' InceptionV3 with the weights of {weights} ({self.digest.hex()[:12]})"
        self.folder = folder

    def __call__(self, pictures: np.ndarray) -> Seen:
        if pictures.shape[-1] not in (1, 3):
            raise ConfigError(
                f"the pictures have {pictures.shape[-1]} channels, and InceptionV3 is for 1, grey, or 3, colours"
            )
        coloured = np.broadcast_to(pictures, [*pictures.shape[:-1], 3])
        return Seen(*self._see(coloured))

    def _averages(self, pictures: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor]:
        resized = tf.image.resize(
            pictures, [self.SIDE, self.SIDE], tf.image.ResizeMethod.BILINEAR, antialias=True
        )
        scaled = keras.applications.inception_v3.preprocess_input(resized)
        return (tf.reduce_mean(self._network(scaled, training=False), [1, 2]),)


def _inception(path: pathlib.Path) -> keras.Model:
    """From pictures `[b, 299, 299, 3]` to the last convolutions, `[b, 8, 8, 2048]`, with the weights of a file."""
    wanted = f"name a file of keras.applications.InceptionV3's weights ({', '.join(WEIGHTS)})"
    if not path.is_file():
        raise ConfigError(f"--features={path} is not there: {wanted} or the folder of a run")
    if path.suffix not in WEIGHTS:
        raise ConfigError(f"--features={path} is neither a folder nor Keras' weights: {wanted}")
    whole = keras.applications.InceptionV3(weights=None)
    network = keras.Model(whole.input, whole.get_layer("mixed10").output)
    try:
        with warnings.catch_warnings():
            # Keras warns of each layer that it does not find before it raises.
            warnings.simplefilter("ignore")
            try:
                network.load_weights(path)
            except ValueError:
                # Of HDF5 as Keras 2 wrote it the number of layers must be right.
                whole.load_weights(path)
    except ValueError:
        raise ConfigError(f"--features={path} holds weights of another network: {wanted}") from None
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
        raise DataProblem(
            f"--features={path} cannot be read ({one_line(error)}): save or copy it again"
        ) from None
    return network
